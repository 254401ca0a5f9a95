"""What a worker did, a line for each step, in a file that survives the worker's death."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

__all__ = ["Entry", "Log", "read_log"]

Outcome = Literal["try", "ack", "unknown", "fail"]


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One step of one write.

    Args:
        outcome: "try" before it is sent; then "ack", "unknown" (it may have been applied) or "fail" (it was not).
        correlation_id: The saga.
        token: The write; in the saga's state if and only if it was applied.
    """

    outcome: Outcome
    correlation_id: str
    token: str


class Log:
    """A log that is written entry by entry, each at once handed to the operating system.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, outcome: Outcome, correlation_id: str, token: str) -> None:
        """Append an entry."""
        os.write(self._file, msgspec.json.encode(Entry(outcome, correlation_id, token)) + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_log(path: Path) -> Iterator[Entry]:
    """The entries of a log; a last line that a kill cut off is none.

    Args:
        path: The file.
    """
    if not path.exists():
        return
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield msgspec.json.decode(line, type=Entry)

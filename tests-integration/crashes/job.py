"""What the processes of a crash test agree on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from saga_bus.core import Intervals

__all__ = ["INTERVALS", "Job"]

# Short, so that what a killed worker left is picked up within the test.
INTERVALS = Intervals(
    timers=timedelta(seconds=0.3),
    confirm=timedelta(seconds=0.5),
    recover=timedelta(seconds=1),
    grace=timedelta(seconds=2),
)


@dataclass(frozen=True)
class Job:
    """A crash test, as its worker processes are told.

    Args:
        open_store: Makes a store; pickled, so a class, a function of an importable module, or a partial of one.
        open_transport: Makes a transport; likewise.
        folder: Where the workers write what they have to say.
        concurrency: How many messages each worker has in hand at once.
    """

    open_store: Callable[[], Any]
    open_transport: Callable[[], Any]
    folder: Path
    concurrency: int

    @property
    def stop_file(self) -> Path:
        """The workers stop in order when this file is there."""
        return self.folder / "stop"

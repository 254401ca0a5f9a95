"""Where the database is: a path, ``:memory:`` or a ``sqlite://`` URL, read without any I/O."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from saga_bus.store import InvalidSagaError

__all__ = ["MEMORY", "Location", "parse_location"]

MEMORY = ":memory:"
_SCHEME = "sqlite://"


@dataclass(frozen=True)
class Location:
    """A database and the options that came with its URL.

    Args:
        path: An absolute path, None for a database in memory.
        options: Keyword arguments of the store.
    """

    path: Path | None
    options: dict[str, Any]

    def __str__(self) -> str:
        return MEMORY if self.path is None else str(self.path)


def parse_location(database: str | os.PathLike[str]) -> Location:
    """Read a path or a URL.

    Args:
        database: A path, ``:memory:``, ``sqlite:///relative.db``, ``sqlite:////absolute.db``, or
            ``sqlite://`` for memory; a URL takes ``?table=...&durability=...&busy_timeout=...``.

    Raises:
        InvalidSagaError: It is none of these, or has an unknown option.
    """
    text = _text(database)
    if text[: len(_SCHEME)].lower() != _SCHEME:
        if "://" in text or text.startswith("file:"):
            raise InvalidSagaError(f"{text.partition(':')[0]}: is not taken here; give a path or sqlite:///path")
        return Location(_path(text), {})
    place, _, query = text[len(_SCHEME) :].partition("?")
    if place and not place.startswith("/"):
        raise InvalidSagaError("a SQLite URL has no host: sqlite:///relative.db or sqlite:////absolute.db")
    return Location(_path(_unquoted(place[1:]) or MEMORY), _options(query))


def _text(database: str | os.PathLike[str]) -> str:
    text = os.fspath(database) if isinstance(database, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\x00" in text:
        raise InvalidSagaError(f"the database must be a path or a URL, not {database!r}")
    return text


def _path(text: str) -> Path | None:
    # Absolute from the start: the file must not change when the process changes its directory.
    return None if text == MEMORY else Path(os.path.abspath(text))  # noqa: PTH100 - it also removes ".."


def _unquoted(text: str) -> str:
    try:
        plain = unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise InvalidSagaError("the path of the SQLite URL is not UTF-8") from error
    if "\x00" in plain:
        raise InvalidSagaError("the path of the SQLite URL holds a NUL character")
    return plain


_READERS: dict[str, Callable[[str], Any]] = {"table": str, "durability": str, "busy_timeout": float}


def _options(query: str) -> dict[str, Any]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict") if query else []
    except ValueError as error:
        raise InvalidSagaError(f"the options of the SQLite URL cannot be read: {error}") from error
    options: dict[str, Any] = {}
    for name, value in pairs:
        if name not in _READERS:
            raise InvalidSagaError(f"unknown option {name!r} in the SQLite URL: {', '.join(_READERS)}")
        if name in options:
            raise InvalidSagaError(f"the option {name!r} stands twice in the SQLite URL")
        try:
            options[name] = _READERS[name](value)
        except ValueError as error:
            raise InvalidSagaError(f"bad value {value!r} of the option {name!r} in the SQLite URL") from error
    return options

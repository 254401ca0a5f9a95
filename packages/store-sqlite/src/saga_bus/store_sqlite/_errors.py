"""SQLite's errors as ours: one table, by SQLite's primary result code (https://www.sqlite.org/rescode.html)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from saga_bus.store import SagaStoreError, SchemaError, StoreUnavailableError

__all__ = ["driver_errors", "is_busy", "result_code", "translated"]

_MEANINGS: dict[int, tuple[type[SagaStoreError], str]] = {
    sqlite3.SQLITE_BUSY: (StoreUnavailableError, "the database stayed locked for the whole busy timeout"),
    sqlite3.SQLITE_LOCKED: (StoreUnavailableError, "the table is locked"),
    sqlite3.SQLITE_FULL: (StoreUnavailableError, "the disk or the database file is full"),
    sqlite3.SQLITE_IOERR: (StoreUnavailableError, "the disk reported an error"),
    sqlite3.SQLITE_NOMEM: (StoreUnavailableError, "out of memory"),
    sqlite3.SQLITE_INTERRUPT: (StoreUnavailableError, "the statement was interrupted"),
    sqlite3.SQLITE_PROTOCOL: (StoreUnavailableError, "the locks of the write-ahead log could not be had"),
    sqlite3.SQLITE_READONLY: (SagaStoreError, "the database is read-only"),
    sqlite3.SQLITE_PERM: (SagaStoreError, "access to the database file was refused"),
    sqlite3.SQLITE_AUTH: (SagaStoreError, "access to the database file was refused"),
    sqlite3.SQLITE_CANTOPEN: (SagaStoreError, "the database file cannot be opened"),
    sqlite3.SQLITE_CORRUPT: (SagaStoreError, "the database file is damaged: restore a backup"),
    sqlite3.SQLITE_NOTADB: (SchemaError, "the file is no SQLite database"),
    sqlite3.SQLITE_SCHEMA: (SchemaError, "the schema changed while a statement ran"),
    sqlite3.SQLITE_CONSTRAINT: (SagaStoreError, "a constraint that is not the store's own refused the row"),
}
_MISSING = ("no such table", "no such column", "no such index", "has no column named")


def result_code(error: sqlite3.Error) -> int:
    """The primary result code of an error, 0 where Python's own module raised it.

    Args:
        error: The driver's error.
    """
    code: int = getattr(error, "sqlite_errorcode", 0) or 0
    return code & 0xFF


def is_busy(error: sqlite3.Error) -> bool:
    """Whether somebody else holds the lock that a statement needs.

    Args:
        error: The driver's error.
    """
    return result_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def translated(error: sqlite3.Error) -> SagaStoreError:
    """Our error for the driver's; raise it ``from`` that one.

    Args:
        error: The driver's error.
    """
    if any(phrase in str(error) for phrase in _MISSING):
        return SchemaError(f"{error}: run create_schema()")
    kind, meaning = _MEANINGS.get(result_code(error), (SagaStoreError, "SQLite refused"))
    return kind(f"{meaning} ({error})")


@contextmanager
def driver_errors() -> Iterator[None]:
    """Translate the driver's errors of a block.

    Raises:
        SagaStoreError: The driver raised one.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise translated(error) from error

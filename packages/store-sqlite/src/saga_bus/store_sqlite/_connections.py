"""Opening connections and making them fit for saga state."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import ClassVar, Literal
from weakref import WeakValueDictionary

from saga_bus.store import InvalidSagaError, SagaStoreError, SchemaError
from saga_bus.store_sqlite import _schema as schema
from saga_bus.store_sqlite._errors import driver_errors, result_code, translated
from saga_bus.store_sqlite._transactions import patiently

__all__ = [
    "Durability",
    "GivenConnection",
    "Settings",
    "open_file",
    "open_memory",
    "prepare_file",
    "use_wal",
]

Durability = Literal["full", "normal"]

_SYNCHRONOUS: dict[Durability, str] = {"full": "FULL", "normal": "NORMAL"}


@dataclass(frozen=True)
class Settings:
    """What all connections of a store have in common.

    Args:
        table: The table's name, not quoted.
        durability: "full" or "normal".
        busy_timeout: How long to wait for a lock, in seconds.
    """

    table: str
    durability: Durability
    busy_timeout: float


def open_file(path: Path, settings: Settings, *, create: bool = False) -> sqlite3.Connection:
    """Open a connection to a file.

    Args:
        path: The file, absolute.
        settings: The store's settings.
        create: Whether to make the file where it is missing.

    Raises:
        SchemaError: The file is missing.
        SagaStoreError: It cannot be opened.
    """
    uri = f"{path.as_uri()}?mode={'rwc' if create else 'rw'}"
    try:
        return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=settings.busy_timeout)
    except sqlite3.Error as error:
        if result_code(error) == sqlite3.SQLITE_CANTOPEN:
            if not path.parent.is_dir():
                raise SagaStoreError(f"there is no directory {path.parent}") from error
            if not path.exists() and not create:
                raise SchemaError(f"there is no database file {path}: run create_schema()") from error
        raise translated(error) from error


def use_wal(connection: sqlite3.Connection, settings: Settings) -> None:
    """Turn the write-ahead log on, so that readers and the writer do not wait for each other.

    Args:
        connection: A connection to a file.
        settings: The store's settings.

    Raises:
        SagaStoreError: SQLite refused, for another reason than that the file is read-only.
    """
    try:
        connection.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[settings.durability]}")
        if settings.durability == "full":
            # On macOS a plain fsync leaves the data in the drive's cache; elsewhere this does nothing.
            connection.execute("PRAGMA fullfsync = ON")
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            patiently(connection, "PRAGMA journal_mode = WAL", settings.busy_timeout)
    except sqlite3.Error as error:
        if result_code(error) != sqlite3.SQLITE_READONLY:
            raise translated(error) from error


def prepare_file(connection: sqlite3.Connection, settings: Settings, *, writes: bool = False) -> None:
    """Make a connection to a file fit for work, or refuse its schema.

    Args:
        connection: A connection that was just opened.
        settings: The store's settings.
        writes: Whether it is for the writer, which waits for the lock by itself.

    Raises:
        SchemaError: The table is missing, older or newer.
        SagaStoreError: SQLite refused.
    """
    use_wal(connection, settings)
    with driver_errors():
        schema.check(connection, settings.table)
        if writes:
            connection.execute("PRAGMA busy_timeout = 0")


def open_memory() -> sqlite3.Connection:
    """Open a database in memory."""
    return sqlite3.connect(":memory:", isolation_level=None)


class GivenConnection:
    """A caller's connection, and what keeps the stores on it from getting into each other's transactions.

    Args:
        connection: The connection.
    """

    _known: ClassVar[WeakValueDictionary[int, GivenConnection]] = WeakValueDictionary()

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.lock = Lock()

    @classmethod
    def of(cls, connection: sqlite3.Connection) -> GivenConnection:
        """The one object of a connection, whichever stores use it.

        Args:
            connection: The connection.
        """
        return cls._known.setdefault(id(connection), cls(connection))

    def usable(self) -> sqlite3.Connection:
        """The connection, if a thread of the store can use it.

        Raises:
            InvalidSagaError: It is bound to another thread, closed, or always inside a transaction.
        """
        try:
            self.connection.cursor().close()
            always_in_transaction = getattr(self.connection, "autocommit", True) is False
        except sqlite3.ProgrammingError as error:
            raise InvalidSagaError(
                f"the given connection cannot be used: {error}; make it with check_same_thread=False"
            ) from error
        if always_in_transaction:
            raise InvalidSagaError("the given connection has autocommit=False, so it is always in a transaction")
        return self.connection

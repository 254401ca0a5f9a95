"""Opening connections and making them fit for saga state."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from saga_bus.store import InvalidSagaError, SagaStoreError, SchemaError
from saga_bus.store_sqlite import _schema as schema
from saga_bus.store_sqlite._errors import driver_errors, result_code, translated
from saga_bus.store_sqlite._transactions import patiently, transaction

__all__ = ["Durability", "Settings", "open_file", "open_memory", "prepare_file", "prepare_memory", "usable", "use_wal"]

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


def prepare_memory(connection: sqlite3.Connection, settings: Settings) -> None:
    """Create the schema of a database in memory.

    Args:
        connection: A connection that was just opened.
        settings: The store's settings.
    """
    with transaction(connection, patience=0):
        schema.create(connection, settings.table)


def usable(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Refuse a given connection that the store's thread cannot use.

    Args:
        connection: The connection.

    Returns:
        The same connection.

    Raises:
        InvalidSagaError: It is bound to another thread, closed, or always inside a transaction.
    """
    if getattr(connection, "autocommit", True) is False:
        raise InvalidSagaError("the given connection has autocommit=False: every moment of it is in a transaction")
    try:
        connection.cursor().close()
    except sqlite3.ProgrammingError as error:
        raise InvalidSagaError(
            f"the given connection cannot be used: {error}; make it with check_same_thread=False"
        ) from error
    return connection

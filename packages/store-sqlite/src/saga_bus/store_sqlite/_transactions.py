"""Group commit: many operations in one transaction, each with an outcome of its own."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from saga_bus.store import (
    ConcurrencyError,
    OutcomeUnknownError,
    StateCodecError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from saga_bus.store_sqlite._errors import driver_errors, is_busy, result_code, translated

__all__ = ["Operation", "patiently", "read_group", "transaction", "write_group"]

Operation = Callable[[sqlite3.Connection], Any]

_PAUSE = 0.001  # seconds


def write_group(operations: Sequence[Operation], patience: float, connection: sqlite3.Connection) -> list[Any]:
    """Run operations in one transaction; when this returns they are committed.

    Args:
        operations: Each is one statement that SQLite undoes by itself where it fails.
        patience: How long to wait for the write lock, in seconds.
        connection: A connection without a transaction.

    Returns:
        Each operation's result, or the error that is its own affair (a conflict, a state that is too large).

    Raises:
        StoreUnavailableError: Nothing was written: the lock, the disk or the memory was not to be had.
        OutcomeUnknownError: The disk failed in the commit.
        SagaStoreError: Nothing was written for another reason.
    """
    with transaction(connection, patience):
        return [_outcome(operation, connection) for operation in operations]


def read_group(operations: Sequence[Operation], connection: sqlite3.Connection) -> list[Any]:
    """Run reads.

    Args:
        operations: Each is one SELECT.
        connection: Any connection.

    Returns:
        Each read's result.

    Raises:
        SagaStoreError: SQLite refused one of them.
    """
    try:
        if len(operations) == 1 or connection.in_transaction:
            return [operation(connection) for operation in operations]
        # In one transaction, because half of what a read costs is to lock the file and to unlock it.
        connection.execute("BEGIN")
        try:
            return [operation(connection) for operation in operations]
        finally:
            _roll_back(connection)  # it wrote nothing, and this cannot fail as a commit can
    except sqlite3.Error as error:
        raise translated(error) from error


@contextmanager
def transaction(connection: sqlite3.Connection, patience: float) -> Iterator[None]:
    """A write transaction that is committed at the end of the block, and rolled back where it fails.

    Args:
        connection: A connection without a transaction.
        patience: How long to wait for the write lock, in seconds.

    Raises:
        UnsupportedOperationError: Somebody else began a transaction on the connection.
        SagaStoreError: As in `write_group`.
    """
    with driver_errors():  # a connection that its owner closed cannot even say this
        is_taken = connection.in_transaction
    if is_taken:
        raise UnsupportedOperationError("the given connection has an open transaction: use store.bind(connection)")
    try:
        patiently(connection, "BEGIN IMMEDIATE", patience)
        yield
    except BaseException as error:
        _roll_back(connection)
        if isinstance(error, sqlite3.Error):
            raise translated(error) from error
        raise
    _commit(connection, patience)


def patiently(connection: sqlite3.Connection, sql: str, patience: float) -> None:
    """Run a statement, again while somebody else holds the lock that it needs.

    SQLite's own busy handler soon waits 100 ms between two tries, which lets a process that commits without
    pause starve the others; this one tries every millisecond.

    Args:
        connection: Any connection.
        sql: A statement that is all or nothing.
        patience: How long to try, in seconds.

    Raises:
        sqlite3.Error: It failed, or stayed locked for so long.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            connection.execute(sql)
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= deadline:
                raise
        else:
            return
        time.sleep(_PAUSE)


def _outcome(operation: Operation, connection: sqlite3.Connection) -> Any:
    try:
        return operation(connection)
    except (ConcurrencyError, StateCodecError) as error:
        if not connection.in_transaction:  # SQLite gave up the whole transaction
            raise StoreUnavailableError("SQLite rolled the transaction back") from error
        return error


def _commit(connection: sqlite3.Connection, patience: float) -> None:
    try:
        patiently(connection, "COMMIT", patience)
    except sqlite3.Error as error:
        _roll_back(connection)
        if result_code(error) == sqlite3.SQLITE_IOERR:
            # The record of the commit may have reached the disk, and would then be found after a crash.
            raise OutcomeUnknownError(f"the disk failed in a commit ({error})") from error
        raise translated(error) from error


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise translated(error) from error

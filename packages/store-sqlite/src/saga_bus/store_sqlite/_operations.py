"""What a store does to its table, each operation on a connection and inside whatever transaction it has."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from typing import Any

from saga_bus.store import (
    DuplicateSagaError,
    FoundRow,
    SagaFilter,
    SagaQuery,
    SagaRow,
    StateEncodeError,
    StateTooLargeError,
    version_conflict,
)
from saga_bus.store.checks import microseconds
from saga_bus.store_sqlite._errors import result_code
from saga_bus.store_sqlite._queries import count_statement, find_statement
from saga_bus.store_sqlite._rows import rows
from saga_bus.store_sqlite._schema import hour_of
from saga_bus.store_sqlite._statements import Statements

__all__ = ["Operations"]


class Operations:
    """The operations on one table; the connection comes last, so that the other arguments can be bound first.

    They raise our errors where the saga is the reason, and the driver's otherwise. A write is one statement,
    which SQLite undoes by itself where it fails, so it needs no savepoint.

    Args:
        table: The table's name, not quoted.
    """

    def __init__(self, table: str) -> None:
        self._table = table
        self._sql = Statements(table)

    def insert(self, row: SagaRow, correlation_id: str, connection: sqlite3.Connection) -> None:
        """Write a new saga or raise `DuplicateSagaError`."""
        updated_at = microseconds(row.updated_at)
        parameters = (
            row.saga_name,
            row.saga_id,
            correlation_id,
            row.version,
            row.is_completed,
            microseconds(row.created_at),
            updated_at,
            _optional_microseconds(row.archived_at),
            _optional_microseconds(row.timeout_expires_at),
            row.outbox_pending,
            _text(row),
            hour_of(updated_at),
        )
        try:
            _write(connection, self._sql.insert, parameters, row)
        except sqlite3.IntegrityError as error:
            taken_id = error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
            if not taken_id and not str(error).endswith(".correlation_id"):
                raise
            raise DuplicateSagaError(
                saga_name=row.saga_name,
                saga_id=row.saga_id,
                correlation_id=correlation_id,
                conflict="saga_id" if taken_id else "correlation_id",
            ) from error

    def update(self, row: SagaRow, expected_version: int, connection: sqlite3.Connection) -> None:
        """Write the next version of a saga or raise `version_conflict(...)`."""
        created_at, updated_at = microseconds(row.created_at), microseconds(row.updated_at)
        new = (
            row.version,
            updated_at,
            _optional_microseconds(row.archived_at),
            _optional_microseconds(row.timeout_expires_at),
            row.outbox_pending,
            _text(row),
        )
        place = (row.is_completed, hour_of(updated_at))  # in the index of its likes
        old = (row.saga_name, row.saga_id, expected_version)
        if _write(connection, self._sql.update, (*new, *old, *place, created_at), row):
            return
        if _write(connection, self._sql.update_and_move, (*new, *place, *old, created_at), row):
            return
        actual_version = self._version(row.saga_name, row.saga_id, connection)
        if actual_version != expected_version:
            raise version_conflict(
                row.saga_name, row.saga_id, expected_version=expected_version, actual_version=actual_version
            )
        _write(connection, self._sql.update_with_created_at, (*new, *place, created_at, *old), row)

    def delete(
        self, saga_name: str, saga_id: str, expected_version: int | None, connection: sqlite3.Connection
    ) -> None:
        """Delete a saga, or raise `version_conflict(...)` where another version was expected."""
        if expected_version is None:
            connection.execute(self._sql.delete, (saga_name, saga_id))
            return
        if not connection.execute(self._sql.delete_version, (saga_name, saga_id, expected_version)).rowcount:
            raise version_conflict(
                saga_name,
                saga_id,
                expected_version=expected_version,
                actual_version=self._version(saga_name, saga_id, connection),
            )

    def get_by_id(self, saga_name: str, saga_id: str, connection: sqlite3.Connection) -> bytes | None:
        """Fetch a document by its saga's id."""
        found = rows(connection, self._sql.select_by_id, (saga_name, saga_id))
        return _document(found[0][0]) if found else None

    def get_by_correlation_id(
        self, saga_name: str, correlation_id: str, connection: sqlite3.Connection
    ) -> bytes | None:
        """Fetch a document by its saga's correlation id."""
        found = rows(connection, self._sql.select_by_correlation_id, (saga_name, correlation_id))
        return _document(found[0][0]) if found else None

    def find(self, query: SagaQuery, connection: sqlite3.Connection) -> list[FoundRow]:
        """Fetch the rows of one page."""
        return [
            FoundRow(_name(saga_name), _name(saga_id), _name(correlation_id), moment, _document(state))
            for saga_name, saga_id, correlation_id, moment, state, *_ in rows(
                connection, *find_statement(self._table, query)
            )
        ]

    def count(self, where: SagaFilter, connection: sqlite3.Connection) -> int:
        """Count rows."""
        return int(rows(connection, *count_statement(self._table, where))[0][0])

    def purge(self, saga_name: str, before: datetime, batch_size: int, connection: sqlite3.Connection) -> int:
        """Delete a batch of completed sagas that were last updated before a moment."""
        moment = microseconds(before)
        return connection.execute(self._sql.purge, (saga_name, hour_of(moment), moment, batch_size)).rowcount

    def _version(self, saga_name: str, saga_id: str, connection: sqlite3.Connection) -> int | None:
        found = rows(connection, self._sql.select_version, (saga_name, saga_id))
        return int(found[0][0]) if found else None


def _write(connection: sqlite3.Connection, sql: str, parameters: tuple[Any, ...], row: SagaRow) -> int:
    try:
        return connection.execute(sql, parameters).rowcount
    except sqlite3.DataError as error:
        if result_code(error) != sqlite3.SQLITE_TOOBIG:
            raise
        raise StateTooLargeError(
            saga_name=row.saga_name,
            saga_id=row.saga_id,
            size=len(row.document),
            limit=connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH),
        ) from error


def _text(row: SagaRow) -> str:
    try:
        return row.document.decode()
    except UnicodeDecodeError as error:
        raise StateEncodeError(f"saga {row.saga_name!r}: the codec made a document that is not UTF-8") from error


def _document(state: str | bytes) -> bytes:
    # The caller's own connection may have a text_factory that gives bytes.
    return state if isinstance(state, bytes) else state.encode()


def _name(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()


def _optional_microseconds(moment: datetime | None) -> int | None:
    return None if moment is None else microseconds(moment)

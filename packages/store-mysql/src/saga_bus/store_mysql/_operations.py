"""What a store does to its table, each operation in a session and inside whatever transaction that has."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from saga_bus.store import (
    DuplicateSagaError,
    FoundRow,
    OutcomeUnknownError,
    SagaFilter,
    SagaQuery,
    SagaRow,
    SchemaError,
    StateEncodeError,
    StateTooLargeError,
    version_conflict,
)
from saga_bus.store_mysql._driver import Session
from saga_bus.store_mysql._errors import TOO_LARGE, MySQLError, code_of, conflict_of, driver_errors, translated
from saga_bus.store_mysql._literals import NULL, Quote, flag, integer, moment, optional_moment
from saga_bus.store_mysql._queries import count_statement, find_statement
from saga_bus.store_mysql._schema import Place
from saga_bus.store_mysql._statements import Statements

__all__ = ["Operations"]


class Operations:
    """The operations on one table, which raise our errors only.

    A write is one statement, which the server undoes by itself where it fails, so it needs no savepoint.

    Args:
        place: The table.
        commits: Whether a write is committed as it ends; otherwise the caller has an open transaction.
    """

    def __init__(self, place: Place, *, commits: bool) -> None:
        self._place = place
        self.commits = commits
        self.sql = Statements(place)
        self._select_version = self.sql.select_version if commits else self.sql.select_version_now
        self.max_packet: int | None = None  # bytes, None where it is not known

    # -- statements --------------------------------------------------------------------------------------

    def values(self, row: SagaRow, correlation_id: str, quote: Quote) -> bytes:
        """The values of a new row.

        Args:
            row: The row.
            correlation_id: Its correlation id.
            quote: Makes the literals of the session.

        Raises:
            StateTooLargeError: The server takes no statement that long.
        """
        sql = self.sql.values.filled(
            quote(row.saga_name.encode()),
            quote(row.saga_id.encode()),
            quote(correlation_id.encode()),
            integer(row.version),
            flag(row.is_completed),
            moment(row.created_at),
            moment(row.updated_at),
            _completed_at(row),
            optional_moment(row.archived_at),
            optional_moment(row.timeout_expires_at),
            flag(row.outbox_pending),
            quote(_text(row)),
        )
        self._refuse_too_large(row, len(sql) + len(self.sql.insert_into))
        return sql

    def updating(self, row: SagaRow, expected_version: int, quote: Quote) -> bytes:
        """The statement of an update.

        Args:
            row: The row.
            expected_version: The version that it replaces.
            quote: Makes the literals of the session.

        Raises:
            StateTooLargeError: The server takes no statement that long.
        """
        sql = self.sql.update.filled(
            integer(row.version),
            flag(row.is_completed),
            moment(row.created_at),
            moment(row.updated_at),
            _completed_at(row),
            optional_moment(row.archived_at),
            optional_moment(row.timeout_expires_at),
            flag(row.outbox_pending),
            quote(_text(row)),
            quote(row.saga_name.encode()),
            quote(row.saga_id.encode()),
            integer(expected_version),
        )
        self._refuse_too_large(row, len(sql))
        return sql

    def _refuse_too_large(self, row: SagaRow, size: int) -> None:
        # The server would cut the connection instead of answering. One byte more is the command's.
        if self.max_packet is not None and size >= self.max_packet:
            raise _too_large(row, self.max_packet)

    # -- the five operations -----------------------------------------------------------------------------

    async def insert(self, row: SagaRow, correlation_id: str, session: Session) -> None:
        """Write a new saga or raise `DuplicateSagaError`."""
        sql = self.sql.insert_into + self.values(row, correlation_id, session.quote)
        try:
            results = await session.run(sql, commits=self.commits)
        except MySQLError as error:
            conflict = conflict_of(error)
            if conflict is None:
                raise self._refused(row, error) from error
            raise DuplicateSagaError(
                saga_name=row.saga_name, saga_id=row.saga_id, correlation_id=correlation_id, conflict=conflict
            ) from error
        if results[0].warnings:
            await self._refuse_cut(row, correlation_id, session)

    async def update(self, row: SagaRow, expected_version: int, session: Session) -> None:
        """Write the next version of a saga or raise `version_conflict(...)`."""
        sql = self.updating(row, expected_version, session.quote)
        while True:
            try:
                results = await session.run(sql, commits=self.commits)
            except MySQLError as error:
                raise self._refused(row, error) from error
            if results[0].affected:  # the version changes, so a matched row is always a changed one
                if results[0].warnings:
                    await self._refuse_cut(row, None, session)
                return
            await self._refuse_other_version(row.saga_name, row.saga_id, expected_version, session)

    async def delete(self, saga_name: str, saga_id: str, expected_version: int | None, session: Session) -> None:
        """Delete a saga, or raise `version_conflict(...)` where another version was expected."""
        quote = session.quote
        keys = quote(saga_name.encode()), quote(saga_id.encode())
        if expected_version is None:
            with driver_errors():
                await session.run(self.sql.delete.filled(*keys), commits=self.commits)
            return
        sql = self.sql.delete_version.filled(*keys, integer(expected_version))
        while True:
            with driver_errors():
                results = await session.run(sql, commits=self.commits)
            if results[0].affected:
                return
            await self._refuse_other_version(saga_name, saga_id, expected_version, session)

    async def get_by_id(self, saga_name: str, saga_id: str, session: Session) -> bytes | None:
        """Fetch a document by its saga's id."""
        quote = session.quote
        return await _document(
            session, self.sql.select_by_id.filled(quote(saga_name.encode()), quote(saga_id.encode()))
        )

    async def get_by_correlation_id(self, saga_name: str, correlation_id: str, session: Session) -> bytes | None:
        """Fetch a document by its saga's correlation id."""
        quote = session.quote
        keys = quote(saga_name.encode()), quote(correlation_id.encode())
        return await _document(session, self.sql.select_by_correlation_id.filled(*keys))

    # -- what a server that is not strict makes of a write -----------------------------------------------

    async def cut(self, written: Sequence[tuple[SagaRow, str | None]], session: Session) -> list[SchemaError | None]:
        """Look at what is stored after a write of which the server has warnings.

        Most warnings mean no harm: with ``binlog_format = STATEMENT`` each group of updates has one.

        Args:
            written: The rows, with their correlation ids where they are new.
            session: The session that wrote them.

        Returns:
            For each row its error if the server has stored something else.

        Raises:
            OutcomeUnknownError: There was no telling.
        """
        quote = session.quote
        keys = [(row.saga_name.encode(), row.saga_id.encode()) for row, _ in written]
        key_list = b", ".join(b"(%b, %b)" % (quote(saga_name), quote(saga_id)) for saga_name, saga_id in keys)
        try:
            results = await session.run(self.sql.select_stored.filled(key_list), commits=self.commits)
        except MySQLError as error:
            if not self.commits:
                raise translated(error) from error
            raise OutcomeUnknownError("the server warned of the write, and does not tell what is stored") from error
        stored = {(saga_name, saga_id): rest for saga_name, saga_id, *rest in results[0].rows}
        return [
            _cut(row) if _differs(row, correlation_id, stored.get(key)) else None
            for key, (row, correlation_id) in zip(keys, written, strict=True)
        ]

    async def _refuse_cut(self, row: SagaRow, correlation_id: str | None, session: Session) -> None:
        (error,) = await self.cut([(row, correlation_id)], session)
        if error is not None:
            raise error

    # -- query and retention -----------------------------------------------------------------------------

    async def find(self, query: SagaQuery, session: Session) -> list[FoundRow]:
        """Fetch the rows of one page."""
        rows = await _rows(session, find_statement(self._place, query, session.quote))
        return [
            FoundRow(saga_name.decode(), saga_id.decode(), correlation_id.decode(), int(found), document)
            for saga_name, saga_id, correlation_id, found, document in rows
        ]

    async def count(self, where: SagaFilter, session: Session) -> int:
        """Count rows."""
        return int((await _rows(session, count_statement(self._place, where, session.quote)))[0][0])

    async def purge(self, saga_name: str, before: datetime, batch_size: int, session: Session) -> int:
        """Delete a batch of completed sagas that were last updated before a moment, leaving out the busy ones."""
        quote = session.quote
        name, bound = quote(saga_name.encode()), moment(before)
        select = self.sql.select_old.filled(name, bound, integer(batch_size))
        rows = (await session.run(b"BEGIN;" + select))[1].rows if self.commits else await _rows(session, select)
        if not rows:
            if self.commits:
                await session.roll_back()
            return 0
        keys = b", ".join(b"(%b, %b)" % (name, quote(saga_id)) for (saga_id,) in rows)
        delete = self.sql.delete_old.filled(keys, bound)
        results = await session.run(delete + b";COMMIT" if self.commits else delete, commits=self.commits)
        return results[0].affected

    # -- errors ------------------------------------------------------------------------------------------

    def _refused(self, row: SagaRow, error: MySQLError) -> Exception:
        if code_of(error) == TOO_LARGE:
            return _too_large(row, self.max_packet or len(row.document))
        return translated(error)

    async def _refuse_other_version(
        self, saga_name: str, saga_id: str, expected_version: int, session: Session
    ) -> None:
        quote = session.quote
        sql = self._select_version.filled(quote(saga_name.encode()), quote(saga_id.encode()))
        rows = await _rows(session, sql)
        actual_version = int(rows[0][0]) if rows else None
        # The expected version is there where the saga was deleted and inserted again since: then the write is due.
        if actual_version != expected_version:
            raise version_conflict(saga_name, saga_id, expected_version=expected_version, actual_version=actual_version)


async def _rows(session: Session, sql: bytes) -> Sequence[tuple[Any, ...]]:
    with driver_errors():
        return (await session.run(sql))[0].rows


async def _document(session: Session, sql: bytes) -> bytes | None:
    rows = await _rows(session, sql)
    return rows[0][0] if rows else None


def _text(row: SagaRow) -> bytes:
    # A server that is not strict would cut the document at the first byte that is no UTF-8.
    try:
        row.document.decode()
    except UnicodeDecodeError as error:
        raise StateEncodeError(f"saga {row.saga_name!r}: the codec made a document that is not UTF-8") from error
    return row.document


def _completed_at(row: SagaRow) -> bytes:
    return moment(row.updated_at) if row.is_completed else NULL


def _too_large(row: SagaRow, limit: int) -> StateTooLargeError:
    return StateTooLargeError(saga_name=row.saga_name, saga_id=row.saga_id, size=len(row.document), limit=limit)


def _differs(row: SagaRow, correlation_id: str | None, stored: Sequence[Any] | None) -> bool:
    if stored is None:  # under a key that was cut; or somebody has deleted it since, and a new one hardly
        return correlation_id is not None
    version, stored_correlation_id, document = stored
    if int(version) != row.version:
        return int(version) < row.version  # somebody has written a later one since
    return document != row.document or correlation_id not in (None, stored_correlation_id.decode("utf-8", "replace"))


def _cut(row: SagaRow) -> SchemaError:
    return SchemaError(
        f"saga {row.saga_name!r}, id {row.saga_id!r}: the server has cut what it stored, because a column is not as "
        "create_schema() made it and the session's sql_mode is not strict: check_schema() tells which column"
    )

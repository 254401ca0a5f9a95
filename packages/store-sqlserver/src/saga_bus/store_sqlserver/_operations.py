"""What a store does to its table, each operation on a session and inside whatever transaction it has."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from saga_bus.store import (
    Conflict,
    DuplicateSagaError,
    FoundRow,
    SagaFilter,
    SagaQuery,
    SagaRow,
    SagaStoreError,
    StateEncodeError,
    version_conflict,
)
from saga_bus.store_sqlserver._errors import is_check_violation, is_duplicate, refuses_readpast
from saga_bus.store_sqlserver._queries import count_statement, find_statement
from saga_bus.store_sqlserver._schema import Place
from saga_bus.store_sqlserver._sessions import Session
from saga_bus.store_sqlserver._statements import Statements
from saga_bus.store_sqlserver._values import document_of, key_of, moment_text, moment_value, stored_key, text_of

__all__ = ["Operations"]

_BY_ID = 1  # what select_taken says of a taken id
_TRIES = 3
_NEVER = moment_text(datetime.min.replace(tzinfo=UTC))  # in the rows that only fill a group up


class Operations:
    """The operations on one table; the session comes last, so that the other arguments can be bound first.

    A write is one statement, which SQL Server undoes by itself where it fails.

    Args:
        place: The table.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._sql = Statements(place)

    def insert(self, row: SagaRow, correlation_id: str, session: Session) -> None:
        """Write a new saga or raise `DuplicateSagaError`."""
        moments = _optional_moments(row)
        statement = self._sql.insert(archived=row.archived_at is not None, timeout=row.timeout_expires_at is not None)
        parameters = (
            stored_key(row.saga_name),
            stored_key(row.saga_id),
            stored_key(correlation_id),
            row.version,
            row.is_completed,
            moment_text(row.created_at),
            moment_text(row.updated_at),
            row.outbox_pending,
            text_of(row.document, row.saga_name),
            *moments,
        )
        for tries_left in reversed(range(_TRIES)):
            try:
                session.write(statement, parameters)
            except SagaStoreError as error:
                _refuse_depth(error, row)
                if error.__cause__ is None or not is_duplicate(error.__cause__):
                    raise
                # None is taken where the other saga was deleted meanwhile, or where it is hidden from this
                # transaction by its snapshot, and then trying again does not help; nor where it went with the whole
                # transaction, without which the saga must not be written.
                conflict = self._taken(row, correlation_id, session)
                if conflict is None and tries_left and not session.has_ended:
                    continue
                raise DuplicateSagaError(
                    saga_name=row.saga_name,
                    saga_id=row.saga_id,
                    correlation_id=correlation_id,
                    conflict=conflict or "saga_id",
                ) from error.__cause__
            return

    def update(self, row: SagaRow, expected_version: int, session: Session) -> None:
        """Write the next version of a saga or raise `version_conflict(...)`."""
        created = False
        while not self._write_update(row, expected_version, session, created=created):
            actual_version = self._version(row.saga_name, row.saga_id, session)
            if actual_version != expected_version:
                raise version_conflict(
                    row.saga_name, row.saga_id, expected_version=expected_version, actual_version=actual_version
                )
            # created_at was changed, or the saga came to this version between the two statements.
            created = True

    def delete(self, saga_name: str, saga_id: str, expected_version: int | None, session: Session) -> None:
        """Delete a saga, or raise `version_conflict(...)` where another version was expected."""
        keys = (stored_key(saga_name), stored_key(saga_id))
        if expected_version is None:
            session.write(self._sql.delete, keys)
            return
        while not session.write(self._sql.delete_version, (*keys, expected_version)):
            actual_version = self._version(saga_name, saga_id, session)
            if actual_version != expected_version:  # else the saga came to this version between the two statements
                raise version_conflict(
                    saga_name, saga_id, expected_version=expected_version, actual_version=actual_version
                )

    def get_by_id(self, saga_name: str, saga_id: str, session: Session) -> bytes | None:
        """Fetch a document by its saga's id."""
        return _document(session.read(self._sql.select_by_id, (stored_key(saga_name), stored_key(saga_id))))

    def get_by_correlation_id(self, saga_name: str, correlation_id: str, session: Session) -> bytes | None:
        """Fetch a document by its saga's correlation id."""
        keys = (stored_key(saga_name), stored_key(correlation_id))
        return _document(session.read(self._sql.select_by_correlation_id, keys))

    def get_group(
        self, keys: Sequence[tuple[str, str]], session: Session, *, by_correlation_id: bool
    ) -> list[bytes | None]:
        """Fetch the documents of several sagas that nobody has locked.

        Args:
            keys: Each a saga name, and a saga id or a correlation id.
            session: The session.
            by_correlation_id: Whether they are correlation ids.

        Returns:
            One for each key; None also where the row was locked.
        """
        size = _size_for(keys)  # the last key stands in for what is missing
        padded = [*keys, *([keys[-1]] * (size - len(keys)))]
        parameters = [stored_key(part) for key in padded for part in key]
        documents: list[bytes | None] = [None] * size
        for number, state in session.read(
            self._sql.select_group(size, by_correlation_id=by_correlation_id), parameters
        ):
            documents[number] = document_of(state)
        return documents[: len(keys)]

    def insert_group(self, items: Sequence[tuple[SagaRow, str]], session: Session) -> list[bool]:
        """Write several new sagas, all of them or, where it raises, none.

        Args:
            items: Rows and correlation ids.
            session: The session, which is in no transaction.

        Returns:
            True for each item.
        """
        parameters: list[Any] = []
        for row, correlation_id in items:
            parameters += (
                stored_key(row.saga_name),
                stored_key(row.saga_id),
                stored_key(correlation_id),
                row.version,
                row.is_completed,
                moment_text(row.created_at),
                moment_text(row.updated_at),
                row.outbox_pending,
                text_of(row.document, row.saga_name),
                *_texts(row.archived_at, row.timeout_expires_at),
            )
        size = _size_for(items)
        parameters += ("", "", "", 0, False, _NEVER, _NEVER, False, "{}", "", "") * (size - len(items))
        session.write_group(self._sql.insert_group(size), parameters)
        return [True] * len(items)

    def update_group(self, items: Sequence[tuple[SagaRow, int]], session: Session) -> list[bool]:
        """Write the next versions of several sagas, of those that nobody has locked.

        Args:
            items: Rows and expected versions, no two of one saga.
            session: The session, which is in no transaction.

        Returns:
            For each item whether it was written. If not, its row was locked, or another version was there, or none.
        """
        parameters: list[Any] = []
        for row, expected_version in items:
            parameters += (
                row.version,
                row.is_completed,
                moment_text(row.updated_at),
                row.outbox_pending,
                text_of(row.document, row.saga_name),
                *_texts(row.archived_at, row.timeout_expires_at),
                stored_key(row.saga_name),
                stored_key(row.saga_id),
                expected_version,
                moment_text(row.created_at),
            )
        size = _size_for(items)
        parameters += (0, False, _NEVER, False, "{}", "", "", "", "", 0, _NEVER) * (size - len(items))
        statement = self._sql.update_group(size, on_babelfish=session.is_babelfish)
        written = {
            (key_of(saga_name), key_of(saga_id)) for saga_name, saga_id in session.write_group(statement, parameters)
        }
        return [(row.saga_name, row.saga_id) in written for row, _ in items]

    def find(self, query: SagaQuery, session: Session) -> list[FoundRow]:
        """Fetch the rows of one page."""
        return [
            FoundRow(
                key_of(saga_name), key_of(saga_id), key_of(correlation_id), moment_value(moment), document_of(state)
            )
            for saga_name, saga_id, correlation_id, moment, state in session.read(*find_statement(self._place, query))
        ]

    def count(self, where: SagaFilter, session: Session) -> int:
        """Count rows."""
        ((number,),) = session.read(*count_statement(self._place, where))
        return int(number)

    def purge(self, saga_name: str, before: datetime, batch_size: int, session: Session) -> int:
        """Delete a batch of completed sagas that were last updated before a moment, of those that nobody has locked."""
        parameters = (stored_key(saga_name), moment_text(before))
        try:
            return session.write(self._sql.purge(batch_size, waits=False), parameters)
        except SagaStoreError as error:
            if error.__cause__ is None or not refuses_readpast(error.__cause__) or session.has_ended:
                raise
            return session.write(self._sql.purge(batch_size, waits=True), parameters)

    def _write_update(self, row: SagaRow, expected_version: int, session: Session, *, created: bool) -> int:
        statement = self._sql.update(
            archived=row.archived_at is not None, timeout=row.timeout_expires_at is not None, created=created
        )
        values = (
            row.version,
            row.is_completed,
            moment_text(row.updated_at),
            row.outbox_pending,
            text_of(row.document, row.saga_name),
            *_optional_moments(row),
        )
        keys = (stored_key(row.saga_name), stored_key(row.saga_id), expected_version)
        created_at = moment_text(row.created_at)
        try:
            return session.write(statement, (*values, created_at, *keys) if created else (*values, *keys, created_at))
        except SagaStoreError as error:
            _refuse_depth(error, row)
            raise

    def _taken(self, row: SagaRow, correlation_id: str, session: Session) -> Conflict | None:
        name = stored_key(row.saga_name)
        keys = (name, stored_key(row.saga_id), name, stored_key(correlation_id))
        taken = {number for (number,) in session.read(self._sql.select_taken, keys)}
        if not taken:
            return None
        return "saga_id" if _BY_ID in taken else "correlation_id"

    def _version(self, saga_name: str, saga_id: str, session: Session) -> int | None:
        found = session.read(self._sql.select_version, (stored_key(saga_name), stored_key(saga_id)))
        return int(found[0][0]) if found else None


def _refuse_depth(error: SagaStoreError, row: SagaRow) -> None:
    if error.__cause__ is not None and is_check_violation(error.__cause__):
        raise StateEncodeError(
            f"saga {row.saga_name!r} {row.saga_id!r}: SQL Server does not take the document as JSON, of which it reads "
            "up to 128 levels"
        ) from error.__cause__


def _size_for(items: Sequence[Any]) -> int:
    """The size of the statement for a group: few sizes, so few plans."""
    return 1 << (len(items) - 1).bit_length()


def _texts(*moments: datetime | None) -> list[str]:
    return ["" if moment is None else moment_text(moment) for moment in moments]


def _optional_moments(row: SagaRow) -> list[str]:
    return [moment_text(moment) for moment in (row.archived_at, row.timeout_expires_at) if moment is not None]


def _document(rows: list[tuple[Any, ...]]) -> bytes | None:
    return document_of(rows[0][0]) if rows else None

"""Groups: what many callers want at the same time, in one statement or one transaction, each with his own outcome."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeVar

from saga_bus.store import (
    OutcomeUnknownError,
    SagaRow,
    SagaStoreError,
    StateCodecError,
    StoreUnavailableError,
    version_conflict,
)
from saga_bus.store_mysql._driver import Session
from saga_bus.store_mysql._errors import MySQLError, conflict_of, is_transient, translated
from saga_bus.store_mysql._literals import Quote, Template
from saga_bus.store_mysql._operations import Operations

__all__ = ["ALONE", "get_group", "insert_group", "update_group"]

ItemT = TypeVar("ItemT")

_MAX_BYTES = 1_000_000  # of one text of statements, if its parts are not larger
_MOST_BESIDE = 4_500  # bytes of a row beside its document; quotes can double its keys, of 2,048 bytes, and the document


class _Alone:
    """The outcome of an item that its caller must run by himself: somebody else is in its way, or may be."""


ALONE: Final = _Alone()


async def get_group(session: Session, select: Template, keys: Sequence[tuple[str, str]]) -> list[bytes | None]:
    """Fetch documents by one of the two keys.

    Args:
        session: A session in autocommit mode.
        select: The statement, with a place for the list of keys; its rows are a key and a document.
        keys: Saga names and ids, or saga names and correlation ids.

    Returns:
        A document or None for each key.

    Raises:
        SagaStoreError: The server refused.
    """
    encoded = [(saga_name.encode(), key.encode()) for saga_name, key in keys]
    try:
        rows = (await session.run(select.filled(_key_list(dict.fromkeys(encoded), session.quote))))[0].rows
    except MySQLError as error:
        raise translated(error) from error
    found = {(saga_name, key): document for saga_name, key, document in rows}
    return [found.get(key) for key in encoded]


async def insert_group(
    session: Session, operations: Operations, items: Sequence[tuple[SagaRow, str]]
) -> list[BaseException | _Alone | None]:
    """Write new sagas, all that fit into a statement or none of them.

    Args:
        session: A session in autocommit mode.
        operations: The operations on the table.
        items: Rows and their correlation ids.

    Returns:
        For each item None, its error, or `ALONE`.
    """
    quote = session.quote
    outcomes: list[BaseException | _Alone | None] = [None] * len(items)
    texts: dict[int, bytes] = {}
    for number, (row, correlation_id) in enumerate(items):
        try:
            texts[number] = operations.values(row, correlation_id, quote)
        except StateCodecError as error:
            outcomes[number] = error
    for chunk in _chunks([(number, len(text)) for number, text in texts.items()]):
        insert = operations.sql.insert_into + b",\n".join(texts[number] for number in chunk)
        try:
            results = await session.run(session.dialect.impatient(insert), commits=True)
            if any(result.warnings for result in results):
                await _tell_cut(session, operations, [(number, *items[number]) for number in chunk], outcomes)
        except (MySQLError, SagaStoreError) as error:
            _set_all(outcomes, chunk, _outcome_of(error))
            if session.dialect.after_impatient:
                await _be_patient(session)
    return outcomes


async def update_group(
    session: Session, operations: Operations, items: Sequence[tuple[SagaRow, int]]
) -> list[BaseException | _Alone | None]:
    """Write the next versions of sagas, those that nobody else holds.

    Two round trips: the rows are locked and their versions read, which tells the outcomes; then the right ones
    are written and committed.

    Args:
        session: A session in autocommit mode.
        operations: The operations on the table.
        items: Rows and expected versions, no two of one saga.

    Returns:
        For each item None, its error, or `ALONE`.
    """
    outcomes: list[BaseException | _Alone | None] = [None] * len(items)
    for chunk in _chunks([(number, 2 * len(row.document) + _MOST_BESIDE) for number, (row, _) in enumerate(items)]):
        try:
            await _update_chunk(session, operations, items, chunk, outcomes)
        except BaseException as error:
            if not session.connection.closed:
                await session.roll_back()
            if not isinstance(error, MySQLError | SagaStoreError):
                raise
            _set_all(outcomes, chunk, _outcome_of(error))
    return outcomes


async def _update_chunk(
    session: Session,
    operations: Operations,
    items: Sequence[tuple[SagaRow, int]],
    chunk: Sequence[int],
    outcomes: list[BaseException | _Alone | None],
) -> None:
    quote, sql = session.quote, operations.sql
    keys = [(items[number][0].saga_name.encode(), items[number][0].saga_id.encode()) for number in chunk]
    _, locked = await session.run(sql.lock_group.filled(_key_list(keys, quote)))
    found = {(saga_name, saga_id): (int(version), rest) for saga_name, saga_id, version, rest in locked.rows}
    texts: list[bytes] = []
    written_rows: list[tuple[int, SagaRow, None]] = []
    for key, number in zip(keys, chunk, strict=True):
        row, expected_version = items[number]
        actual_version, correlation_id = found.get(key, (None, b""))
        if actual_version is None:
            outcomes[number] = ALONE  # somebody else holds it, or it is not there
        elif actual_version != expected_version:
            outcomes[number] = version_conflict(
                row.saga_name, row.saga_id, expected_version=expected_version, actual_version=actual_version
            )
        else:
            try:
                texts.append(operations.values(row, correlation_id.decode(), quote))
                written_rows.append((number, row, None))
            except StateCodecError as error:
                outcomes[number] = error
    if not texts:
        await session.roll_back()
        return
    write = sql.insert_into + b",\n".join(texts) + sql.over_what_is_there
    written, _ = await session.run(write + b";COMMIT", commits=True)
    if written.affected != 2 * len(texts):
        raise OutcomeUnknownError("the server did not update the rows that were locked for it")
    if written.warnings:
        await _tell_cut(session, operations, written_rows, outcomes)


async def _tell_cut(
    session: Session,
    operations: Operations,
    written: Sequence[tuple[int, SagaRow, str | None]],
    outcomes: list[BaseException | _Alone | None],
) -> None:
    errors = await operations.cut([(row, correlation_id) for _, row, correlation_id in written], session)
    for (number, _, _), error in zip(written, errors, strict=True):
        outcomes[number] = error


async def _be_patient(session: Session) -> None:
    try:
        await session.run(session.dialect.after_impatient.lstrip(b";"))
    except (MySQLError, SagaStoreError):
        session.close()  # a pooler may have put it on another connection, which knows of nothing


def _set_all(
    outcomes: list[BaseException | _Alone | None], numbers: Sequence[int], outcome: BaseException | _Alone
) -> None:
    for number in numbers:
        outcomes[number] = outcome


def _outcome_of(error: MySQLError | SagaStoreError) -> BaseException | _Alone:
    """What to tell a part of a group that failed; the parts before it are written, and keep their outcomes."""
    if isinstance(error, MySQLError):
        # The server says which value is a duplicate, but not of which row.
        if conflict_of(error) is not None or is_transient(error):
            return ALONE
        ours = translated(error)
        ours.__cause__ = error
        error = ours
    return error if isinstance(error, StoreUnavailableError) else ALONE  # any other one may be of one row only


def _key_list(keys: Any, quote: Quote) -> bytes:
    return b", ".join(b"(%b, %b)" % (quote(first), quote(second)) for first, second in keys)


def _chunks(sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    chunk: list[int] = []
    total = 0
    for number, size in sizes:
        if chunk and total + size > _MAX_BYTES:
            yield chunk
            chunk, total = [], 0
        chunk.append(number)
        total += size
    if chunk:
        yield chunk

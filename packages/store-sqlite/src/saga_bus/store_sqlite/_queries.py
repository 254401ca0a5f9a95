"""The statements of ``find`` and ``count``, each on an index that gives its order.

A query names its index (``INDEXED BY``): what somebody's ``ANALYZE`` finds shall not turn a page's worth of
reads into a scan of all sagas.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from saga_bus.store import SagaFilter, SagaOrder, SagaQuery
from saga_bus.store.checks import microseconds
from saga_bus.store.identifiers import quote_identifier
from saga_bus.store_sqlite._schema import (
    COMPLETED,
    DUE,
    NEWEST,
    NEWEST_OF_NAME,
    PENDING_NEWEST,
    PENDING_STALEST,
    STALEST,
    Index,
)

__all__ = ["count_statement", "find_statement"]

Statement = tuple[str, list[Any]]

_FIND = """\
SELECT saga_name, saga_id, correlation_id, {moment} AS moment, state
FROM {table} INDEXED BY {index}
WHERE {conditions}"""
_IN_ORDER = "\nORDER BY moment {direction}, saga_name {direction}, saga_id {direction}\nLIMIT ?"
_COUNT = "SELECT count(*) FROM {table}{index} WHERE {conditions}"

_MOMENTS: dict[SagaOrder, str] = {"newest": "created_at", "stalest": "updated_at", "due": "timeout_expires_at"}
_FLAGS = (
    ("completed", {True: "is_completed = 1", False: "is_completed = 0"}),
    ("archived", {True: "archived_at IS NOT NULL", False: "archived_at IS NULL"}),
    ("outbox_pending", {True: "outbox_pending = 1", False: "outbox_pending = 0"}),
)
_BOUNDS = (
    ("created_after", "created_at > ?"),
    ("created_before", "created_at < ?"),
    ("updated_after", "updated_at > ?"),
    ("updated_before", "updated_at < ?"),
    ("timeout_due_before", "is_completed = 0 AND timeout_expires_at < ?"),
)


def find_statement(table: str, query: SagaQuery) -> Statement:
    """The statement of one page and its parameters.

    Args:
        table: The table's name, not quoted.
        query: The page.
    """
    parts = [_page_part(table, query, where, index) for where, index in _parts(query.where, query.order)]
    sql = "\nUNION ALL\n".join(part for part, _ in parts)
    parameters = [value for _, values in parts for value in values]
    direction = "DESC" if query.order == "newest" else "ASC"
    return sql + _IN_ORDER.format(direction=direction), [*parameters, query.limit]


def count_statement(table: str, where: SagaFilter) -> Statement:
    """The statement that counts and its parameters.

    Args:
        table: The table's name, not quoted.
        where: Which sagas.
    """
    index = _counted_index(where)
    hint = "" if index is None else f" INDEXED BY {index.name(table)}"
    conditions, parameters = _conditions(where, index)
    sql = _COUNT.format(table=quote_identifier(table), index=hint, conditions=" AND ".join(conditions) or "1")
    return sql, parameters


def _parts(where: SagaFilter, order: SagaOrder) -> Iterator[tuple[SagaFilter, Index]]:
    """The indexes to walk, merged where there are two, each with the filter for it."""
    if order == "due":
        yield where, DUE
    elif where.outbox_pending:
        yield where, PENDING_NEWEST if order == "newest" else PENDING_STALEST
    elif order == "newest":
        yield where, NEWEST if where.saga_name is None else NEWEST_OF_NAME
    elif where.completed is None:
        for completed in (False, True):
            yield from _parts(_with_completed(where, completed=completed), order)
    else:
        yield where, COMPLETED if where.completed and where.saga_name is not None else STALEST


def _counted_index(where: SagaFilter) -> Index | None:
    if where.timeout_due_before is not None:
        return DUE
    if where.outbox_pending:
        return PENDING_STALEST
    if where.completed is not None:
        return COMPLETED if where.completed and where.saga_name is not None else STALEST
    return None  # SQLite itself takes the smallest index that has all the columns


def _with_completed(where: SagaFilter, *, completed: bool) -> SagaFilter:
    fields = {field: getattr(where, field) for field in where.__struct_fields__}
    return SagaFilter(**{**fields, "completed": completed})


def _page_part(table: str, query: SagaQuery, where: SagaFilter, index: Index) -> Statement:
    conditions, parameters = _conditions(where, index)
    if query.after is not None:
        place = {"saga_name": query.after.saga_name, "saga_id": query.after.saga_id}
        conditions.append(
            f"({', '.join(index.key)}) {'<' if query.order == 'newest' else '>'} ({', '.join('?' for _ in index.key)})"
        )
        parameters += [place.get(column, query.after.moment) for column in index.key]
    sql = _FIND.format(
        moment=_MOMENTS[query.order],
        table=quote_identifier(table),
        index=index.name(table),
        conditions=" AND ".join(conditions) or "1",
    )
    return sql, parameters


def _conditions(where: SagaFilter, index: Index | None) -> tuple[list[str], list[Any]]:
    conditions: list[str] = []
    parameters: list[Any] = []
    if where.saga_name is not None:
        # Where the name stands amid the index's key, SQLite must not take it for a constant: it would no longer
        # see that the index has the order that is asked for. The plus sign does that.
        conditions.append("+saga_name = ?" if index and "saga_name" in index.key else "saga_name = ?")
        parameters.append(where.saga_name)
    for field, texts in _FLAGS:
        value = getattr(where, field)
        if value is not None:
            conditions.append(texts[value])
    for field, text in _BOUNDS:
        moment = getattr(where, field)
        if moment is not None:
            conditions.append(text)
            parameters.append(microseconds(moment))
    return conditions, parameters

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
    COMPLETED_OF_NAME,
    DUE,
    NEWEST,
    NEWEST_OF_NAME,
    PENDING_NEWEST,
    PENDING_STALEST,
    RUNNING,
    Index,
    hour_of,
)

__all__ = ["count_statement", "find_statement"]

Statement = tuple[str, list[Any]]

_FIND = """\
SELECT saga_name, saga_id, correlation_id, {moment} AS moment, state{hour}
FROM {table} INDEXED BY {index}
WHERE {conditions}"""
_IN_ORDER: dict[SagaOrder, str] = {
    "newest": "\nORDER BY moment DESC, saga_name DESC, saga_id DESC\nLIMIT ?",
    # By the hour first, which changes nothing but lets SQLite see that the indexes have this order.
    "stalest": "\nORDER BY updated_hour, moment, saga_name, saga_id\nLIMIT ?",
    "due": "\nORDER BY moment, saga_name, saga_id\nLIMIT ?",
}
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
    ("timeout_due_before", "is_completed = 0 AND timeout_expires_at < ?"),
)
# On the hour for the index, and on the moment for the one hour that it falls into: no other row is looked up.
_UPDATED_BOUNDS = (
    ("updated_after", "updated_hour >= ? AND (updated_hour > ? OR updated_at > ?)"),
    ("updated_before", "updated_hour <= ? AND (updated_hour < ? OR updated_at < ?)"),
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
    return sql + _IN_ORDER[query.order], [*parameters, query.limit]


def count_statement(table: str, where: SagaFilter) -> Statement:
    """The statement that counts and its parameters.

    Args:
        table: The table's name, not quoted.
        where: Which sagas.
    """
    index = _counted_index(where)
    if index is None and (where.updated_after is not None or where.updated_before is not None):
        running, parameters = count_statement(table, _with_completed(where, completed=False))
        completed, further = count_statement(table, _with_completed(where, completed=True))
        return f"SELECT ({running}) + ({completed})", [*parameters, *further]
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
        yield where, _stalest_index(where)


def _counted_index(where: SagaFilter) -> Index | None:
    if where.timeout_due_before is not None:
        return DUE
    if where.outbox_pending:
        return PENDING_STALEST
    if where.completed is not None:
        return _stalest_index(where)
    return None  # SQLite itself takes the smallest index that has all the columns


def _stalest_index(where: SagaFilter) -> Index:
    if not where.completed:
        return RUNNING
    return COMPLETED if where.saga_name is None else COMPLETED_OF_NAME


def _with_completed(where: SagaFilter, *, completed: bool) -> SagaFilter:
    fields = {field: getattr(where, field) for field in where.__struct_fields__}
    return SagaFilter(**{**fields, "completed": completed})


def _page_part(table: str, query: SagaQuery, where: SagaFilter, index: Index) -> Statement:
    conditions, parameters = _conditions(where, index)
    moment = _MOMENTS[query.order]
    hour = ("updated_hour",) if query.order == "stalest" else ()
    if query.after is not None:
        place = {
            "updated_hour": hour_of(query.after.moment),
            moment: query.after.moment,
            "saga_name": query.after.saga_name,
            "saga_id": query.after.saga_id,
        }
        columns = [column for column in (*hour, moment, "saga_name", "saga_id") if column not in index.fixed]
        compared = "<" if query.order == "newest" else ">"
        conditions.append(f"({', '.join(columns)}) {compared} ({', '.join('?' for _ in columns)})")
        parameters += [place[column] for column in columns]
    sql = _FIND.format(
        moment=moment,
        hour="".join(f", {column}" for column in hour),
        table=quote_identifier(table),
        index=index.name(table),
        conditions=" AND ".join(conditions) or "1",
    )
    return sql, parameters


def _conditions(where: SagaFilter, index: Index | None) -> tuple[list[str], list[Any]]:
    conditions: list[str] = []
    parameters: list[Any] = []
    if where.saga_name is not None:
        # Where the name stands amid the order, SQLite must not take it for a constant: it would no longer see that
        # the index has the order that is asked for. The plus sign does that.
        conditions.append("+saga_name = ?" if index and "saga_name" not in index.fixed else "saga_name = ?")
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
    for field, text in _UPDATED_BOUNDS:
        moment = getattr(where, field)
        if moment is not None:
            bound = microseconds(moment)
            conditions.append(text)
            parameters += [hour_of(bound), hour_of(bound), bound]
    return conditions, parameters

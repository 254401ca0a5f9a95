"""The statements of ``find`` and ``count``, each on an index that gives its order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from saga_bus.store import FoundRow, SagaFilter, SagaOrder, SagaQuery
from saga_bus.store.checks import microseconds
from saga_bus.store_postgres._statements import DOCUMENT, fill

__all__ = ["count_statement", "find_statement", "found_rows"]

Statement = tuple[str, list[Any]]

_FIND = """\
SELECT s.saga_name, s.saga_id, s.correlation_id, s.{moment} AS moment, {document} AS document
FROM {table} AS s
WHERE {conditions}
ORDER BY {columns}
LIMIT {limit}"""
_MERGED = "SELECT * FROM (\n{parts}\n) AS s ORDER BY moment, saga_name, saga_id LIMIT {limit}"
_COUNT = "SELECT count(*) FROM {table} AS s WHERE {conditions}"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOMENTS: dict[SagaOrder, str] = {"newest": "created_at", "stalest": "updated_at", "due": "timeout_expires_at"}
_FLAGS = (
    ("completed", {True: "s.is_completed AND s.ended_at IS NOT NULL", False: "NOT s.is_completed"}),
    ("archived", {True: "s.archived_at IS NOT NULL", False: "s.archived_at IS NULL"}),
    ("outbox_pending", {True: "s.outbox_pending", False: "NOT s.outbox_pending"}),
)


class _Parameters:
    """The parameters of a statement, each written as the place that holds it."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def text(self, value: str) -> str:
        self.values.append(value)
        return f"${len(self.values)}::text"

    def number(self, value: int) -> str:
        self.values.append(value)
        return f"${len(self.values)}::bigint"

    def moment(self, moment: datetime) -> str:
        return self.text(moment.isoformat()) + "::timestamptz"


def find_statement(table: str, query: SagaQuery) -> Statement:
    """The statement of one page and its parameters.

    Args:
        table: The table's name, quoted.
        query: The page.
    """
    parameters = _Parameters()
    limit = parameters.number(query.limit)
    parts = [_page_part(table, query, where, limit, parameters) for where in _parts(query)]
    if len(parts) == 1:
        return parts[0], parameters.values
    merged = fill(_MERGED, parts="\nUNION ALL\n".join(f"({part})" for part in parts), limit=limit)
    return merged, parameters.values


def count_statement(table: str, where: SagaFilter) -> Statement:
    """The statement that counts and its parameters.

    Args:
        table: The table's name, quoted.
        where: Which sagas.
    """
    parameters = _Parameters()
    conditions = " AND ".join(_conditions(where, parameters)) or "TRUE"
    return fill(_COUNT, table=table, conditions=conditions), parameters.values


def found_rows(records: Sequence[Any]) -> list[FoundRow]:
    """What a statement of ``find_statement`` found.

    Args:
        records: The driver's records.
    """
    return [
        FoundRow(saga_name, saga_id, correlation_id, microseconds(moment), document.encode())
        for saga_name, saga_id, correlation_id, moment, document in records
    ]


def _parts(query: SagaQuery) -> Iterator[SagaFilter]:
    """The filters to walk and merge: running and completed sagas have different indexes for their last update."""
    if query.order == "stalest" and query.where.completed is None:
        fields = {field: getattr(query.where, field) for field in query.where.__struct_fields__}
        for completed in (False, True):
            yield SagaFilter(**{**fields, "completed": completed})
    else:
        yield query.where


def _page_part(table: str, query: SagaQuery, where: SagaFilter, limit: str, parameters: _Parameters) -> str:
    conditions = _conditions(where, parameters)
    moment, direction = _MOMENTS[query.order], "DESC" if query.order == "newest" else "ASC"
    # The day comes first where an index gives the order of the days: then only what is read of a day is sorted.
    by_day = query.order == "stalest" and not where.completed
    if query.order == "stalest" and where.completed:
        moment = "ended_at"
    # Where the name is given it is the same in all rows, and left out so that the index on (name, moment, id) serves.
    key = (moment, "saga_id") if where.saga_name is not None else (moment, "saga_name", "saga_id")
    if query.after is not None:
        last = _EPOCH + timedelta(microseconds=query.after.moment)
        if by_day:
            conditions.append(f"s.updated_day >= {_day(parameters.moment(last))}")
        places = {"saga_name": query.after.saga_name, "saga_id": query.after.saga_id}
        columns = ", ".join(f"s.{column}" for column in key)
        values = ", ".join(
            parameters.moment(last) if column == moment else parameters.text(places[column]) for column in key
        )
        conditions.append(f"({columns}) {'<' if query.order == 'newest' else '>'} ({values})")
    return fill(
        _FIND,
        document=DOCUMENT,
        moment=moment,
        table=table,
        conditions=" AND ".join(conditions) or "TRUE",
        columns=", ".join(f"s.{column} {direction}" for column in (("updated_day",) if by_day else ()) + key),
        limit=limit,
    )


def _conditions(where: SagaFilter, parameters: _Parameters) -> list[str]:
    conditions: list[str] = []
    if where.saga_name is not None:
        conditions.append(f"s.saga_name = {parameters.text(where.saga_name)}")
    for field, texts in _FLAGS:
        value = getattr(where, field)
        if value is not None:
            conditions.append(texts[value])
    updated = "ended_at" if where.completed else "updated_at"
    bounds = (
        ("s.created_at >", where.created_after),
        ("s.created_at <", where.created_before),
        (f"s.{updated} >", where.updated_after),
        (f"s.{updated} <", where.updated_before),
        ("NOT s.is_completed AND s.timeout_expires_at <", where.timeout_due_before),
    )
    conditions += [f"{start} {parameters.moment(moment)}" for start, moment in bounds if moment is not None]
    if where.completed is False:
        # What follows from the bounds already, said of the column that the index has.
        days = (("s.updated_day >=", where.updated_after), ("s.updated_day <=", where.updated_before))
        conditions += [f"{start} {_day(parameters.moment(moment))}" for start, moment in days if moment is not None]
    return conditions


def _day(moment: str) -> str:
    return f"({moment} AT TIME ZONE 'UTC')::date"

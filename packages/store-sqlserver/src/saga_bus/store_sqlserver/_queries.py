"""The statements of ``find`` and ``count``, each with an index that gives its order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from saga_bus.store import CursorPosition, SagaFilter, SagaOrder, SagaQuery
from saga_bus.store_sqlserver._schema import Place
from saga_bus.store_sqlserver._statements import AS_MOMENT, FALSE, TRUE
from saga_bus.store_sqlserver._values import KEY, MOMENT, Statement, moment_text, position_text, stored_key

__all__ = ["count_statement", "find_statement"]

# The moment comes as text, because the drivers differ in what they make of a datetime2. The limit is written out:
# it is a checked number, and with it the server knows how few rows to plan for.
_PAGE = """\
SELECT TOP ({limit}) saga_name, saga_id, correlation_id, CONVERT(NVARCHAR(27), {moment}, 121) AS moment, state{extra}
FROM {table}
WHERE {conditions}
ORDER BY {moment} {direction}, saga_name {direction}, saga_id {direction}"""
_POSITION = ", {moment} AS position_in_order"
_MERGED = """\
SELECT TOP ({limit}) merged.saga_name, merged.saga_id, merged.correlation_id, merged.moment, merged.state
FROM (
SELECT * FROM (
{first}
) AS running_sagas
UNION ALL
SELECT * FROM (
{second}
) AS completed_sagas
) AS merged
ORDER BY merged.position_in_order {direction}, merged.saga_name {direction}, merged.saga_id {direction}"""
_COUNT = "SELECT COUNT_BIG(*) FROM {table} WHERE {conditions}"

_MOMENTS: dict[SagaOrder, str] = {"newest": "created_at", "stalest": "updated_at", "due": "timeout_expires_at"}
_FLAGS = (
    ("completed", {True: f"is_completed = {TRUE}", False: f"is_completed = {FALSE}"}),
    ("archived", {True: "archived_at IS NOT NULL", False: "archived_at IS NULL"}),
    ("outbox_pending", {True: f"outbox_pending = {TRUE}", False: f"outbox_pending = {FALSE}"}),
)
_BOUNDS = (
    ("created_after", f"created_at > {AS_MOMENT}"),
    ("created_before", f"created_at < {AS_MOMENT}"),
    ("updated_after", f"updated_at > {AS_MOMENT}"),
    ("updated_before", f"updated_at < {AS_MOMENT}"),
    ("timeout_due_before", f"is_completed = {FALSE} AND timeout_expires_at < {AS_MOMENT}"),
)


def find_statement(place: Place, query: SagaQuery) -> tuple[Statement, list[Any]]:
    """The statement of one page and its parameters.

    Args:
        place: The table.
        query: The page.
    """
    direction = "DESC" if query.order == "newest" else "ASC"
    parts = list(_parts(query.where, query.order))
    extra = _POSITION if len(parts) > 1 else ""
    pages = [_page(place, query, where, direction, extra) for where in parts]
    bindings = tuple(binding for _, conditions in pages for binding in conditions.bindings)
    values = [value for _, conditions in pages for value in conditions.values]
    if len(pages) == 1:
        return Statement(pages[0][0], bindings), values
    sql = _MERGED.format(limit=query.limit, first=pages[0][0], second=pages[1][0], direction=direction)
    return Statement(sql, bindings), values


def count_statement(place: Place, where: SagaFilter) -> tuple[Statement, list[Any]]:
    """The statement that counts and its parameters.

    Args:
        place: The table.
        where: Which sagas.
    """
    conditions = _conditions(where)
    sql = _COUNT.format(table=place.quoted, conditions=conditions.sql())
    return Statement(sql, tuple(conditions.bindings)), conditions.values


@dataclass
class _Conditions:
    texts: list[str] = field(default_factory=list)
    bindings: list[tuple[int, int, int]] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def add(self, text: str, *bound: tuple[tuple[int, int, int], Any]) -> None:
        self.texts.append(text)
        self.bindings += [binding for binding, _ in bound]
        self.values += [value for _, value in bound]

    def sql(self) -> str:
        return " AND ".join(self.texts) or "1 = 1"


def _parts(where: SagaFilter, order: SagaOrder) -> Iterator[SagaFilter]:
    """The filters whose pages are merged: ix_stalest has an order for running and one for completed sagas."""
    if order == "stalest" and where.completed is None and where.timeout_due_before is None:
        for completed in (False, True):
            fields = {name: getattr(where, name) for name in where.__struct_fields__}
            yield SagaFilter(**{**fields, "completed": completed})
    else:
        yield where


def _page(place: Place, query: SagaQuery, where: SagaFilter, direction: str, extra: str) -> tuple[str, _Conditions]:
    moment = _MOMENTS[query.order]
    conditions = _conditions(where)
    if query.after is not None:
        _add_place(conditions, moment, query.after, "<" if direction == "DESC" else ">")
    sql = _PAGE.format(
        limit=query.limit,
        moment=moment,
        extra=extra.format(moment=moment),
        table=place.quoted,
        conditions=conditions.sql(),
        direction=direction,
    )
    return sql, conditions


def _add_place(conditions: _Conditions, moment: str, after: CursorPosition, beyond: str) -> None:
    # T-SQL has no comparison of rows. The first comparison alone tells the index where to begin.
    at = (MOMENT, position_text(after))
    name, saga_id = (KEY, stored_key(after.saga_name)), (KEY, stored_key(after.saga_id))
    conditions.add(f"{moment} {beyond}= {AS_MOMENT}", at)
    conditions.add(
        f"({moment} {beyond} {AS_MOMENT} OR saga_name {beyond} ? OR (saga_name = ? AND saga_id {beyond} ?))",
        at,
        name,
        name,
        saga_id,
    )


def _conditions(where: SagaFilter) -> _Conditions:
    conditions = _Conditions()
    if where.saga_name is not None:
        conditions.add("saga_name = ?", (KEY, stored_key(where.saga_name)))
    for name, texts in _FLAGS:
        value = getattr(where, name)
        if value is not None:
            conditions.add(texts[value])
    for name, text in _BOUNDS:
        bound = getattr(where, name)
        if bound is not None:
            conditions.add(text, (MOMENT, moment_text(bound)))
    return conditions

"""Plans: which index answers a search, and how much of it has to be read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from saga_bus.store import CursorPosition, SagaFilter, SagaOrder
from saga_bus.store_dynamodb._items import Item, is_alive
from saga_bus.store_dynamodb._keys import edge, moment_text

__all__ = ["ORDER_ATTRIBUTES", "Plan", "Span", "count_plan", "find_plan", "matches", "purge_plan"]

ORDER_ATTRIBUTES: dict[SagaOrder, str] = {"newest": "created", "stalest": "updated", "due": "due"}

_SORTS = {"by_creation": "created", "by_update": "updated", "by_timeout": "due", "by_outbox": "unsent"}
_INDEX_OF = {"newest": "by_creation", "stalest": "by_update", "due": "by_timeout"}
_ALIVE = "(attribute_not_exists(expires) OR expires > :now)"
# Sort keys are "2025-01-01T00:00:00.000000#id", and "#" is followed by "$": so MOMENT comes before all entries of a
# moment and MOMENT + "$" after them.
_BEHIND = "$"
_LOWEST, _HIGHEST = "0", "~"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Span(NamedTuple):
    """A part of an index, from one sort key to another, both included."""

    low: str
    high: str


@dataclass(frozen=True)
class Plan:
    """How to read an index.

    Args:
        index: Its name.
        span: What part of it.
        descending: Whether it is read backwards.
        in_order: Whether that is the order that was asked for.
        decides: Whether the index alone tells what matches.
        conditions: What else an entry must be, on attributes that the index has.
        values: The values in the conditions.
    """

    index: str
    span: Span
    descending: bool
    in_order: bool
    decides: bool
    conditions: tuple[str, ...]
    values: dict[str, Any]

    @property
    def sort(self) -> str:
        """The attribute that the index is sorted by."""
        return _SORTS[self.index]

    def span_after(self, position: CursorPosition, saga_name: str) -> Span:
        """The part of the span that is behind a place in the total order.

        It may begin with that very place, which is then to be left out.

        Args:
            position: The place.
            saga_name: The name of the sagas that are read.
        """
        moment = moment_text(_EPOCH + timedelta(microseconds=position.moment))
        if saga_name == position.saga_name:
            bound = f"{moment}#{position.saga_id}"
        else:  # entries of the same moment are all before or all behind it
            bound = moment + _BEHIND if saga_name < position.saga_name else moment
        low, high = self.span
        return Span(low, min(high, bound)) if self.descending else Span(max(low, bound), high)


def find_plan(where: SagaFilter, order: SagaOrder) -> Plan:
    """How to find sagas; what an index does not decide is looked up in the items, which is done anyway.

    Args:
        where: Which sagas.
        order: In which order.
    """
    index = _sparse_index(where) or _INDEX_OF[order]
    in_order = order == {"by_creation": "newest", "by_timeout": "due"}.get(index, "stalest")
    return _plan(index, where, in_order=in_order, descending=in_order and order == "newest")


def count_plan(where: SagaFilter) -> Plan:
    """How to count sagas.

    Args:
        where: Which sagas.
    """
    index = _sparse_index(where)
    if index is None:
        others = (where.updated_after, where.updated_before, where.outbox_pending)
        index = "by_creation" if all(value is None for value in others) else "by_update"
    return _plan(index, where, alive=index in ("by_creation", "by_update"))


def purge_plan(before: datetime) -> Plan:
    """How to find completed sagas that were last updated before a moment.

    Args:
        before: The moment.
    """
    return _plan("by_update", SagaFilter(completed=True, updated_before=before), alive=True)


def matches(item: Item | None, where: SagaFilter) -> bool:
    """Whether a state item is there and is what a filter selects, its name apart.

    Args:
        item: The item.
        where: The filter.
    """
    if item is None or not is_alive(item):
        return False
    wanted = (
        (where.completed, item["completed"]["BOOL"]),
        (where.archived, item["archived"]["BOOL"]),
        (where.outbox_pending, "unsent" in item),
    )
    if any(asked is not None and asked != actual for asked, actual in wanted):
        return False
    created, updated = item["created"]["S"], item["updated"]["S"]
    if not (_within(created, _span(where, "created")) and _within(updated, _span(where, "updated"))):
        return False
    return where.timeout_due_before is None or ("due" in item and _within(item["due"]["S"], _span(where, "due")))


def _sparse_index(where: SagaFilter) -> str | None:
    if where.timeout_due_before is not None:
        return "by_timeout"
    return "by_outbox" if where.outbox_pending else None


def _plan(
    index: str, where: SagaFilter, *, in_order: bool = True, descending: bool = False, alive: bool = False
) -> Plan:
    conditions: list[str] = []
    values: dict[str, Any] = {}
    if index in ("by_creation", "by_update"):
        for name in ("completed", "archived"):
            if (asked := getattr(where, name)) is not None:
                conditions.append(f"{name} = :{name}")
                values[f":{name}"] = {"BOOL": asked}
    if index == "by_update":
        if where.outbox_pending is False:
            conditions.append("attribute_not_exists(unsent)")
        if where.created_after is not None or where.created_before is not None:
            low, high = _span(where, "created")
            conditions.append("created BETWEEN :created_low AND :created_high")
            values.update({":created_low": {"S": low}, ":created_high": {"S": high}})
    if alive:
        conditions.append(_ALIVE)
        values[":now"] = {"N": str(int(time.time()))}
    return Plan(
        index,
        _span(where, _SORTS[index]),
        descending,
        in_order,
        index in ("by_creation", "by_update") or (index == "by_timeout" and not any(_beyond_timeouts(where))),
        tuple(conditions),
        values,
    )


def _beyond_timeouts(where: SagaFilter) -> Iterator[bool]:
    for name in ("archived", "outbox_pending", "created_after", "created_before", "updated_after", "updated_before"):
        yield getattr(where, name) is not None
    yield where.completed is True


def _span(where: SagaFilter, sort: str) -> Span:
    """All sort keys that lie strictly between the two moments that a filter names for an attribute."""
    after, before = {
        "created": (where.created_after, where.created_before),
        "due": (None, where.timeout_due_before),
    }.get(sort, (where.updated_after, where.updated_before))
    return Span(_LOWEST if after is None else edge(after) + _BEHIND, _HIGHEST if before is None else edge(before))


def _within(sort: str, span: Span) -> bool:
    return span.low <= sort <= span.high

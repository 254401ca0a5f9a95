"""Finding sagas: entries of an index tell which may match, the items themselves tell which do.

An index is eventually consistent, and its entries are small. So a search reads entries in order, a few of each
partition at a time, fetches their items with a consistent read, and keeps those that match now.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

from saga_bus.store import CursorPosition, FoundRow, SagaFilter, SagaQuery
from saga_bus.store_dynamodb._driver import Driver, all_of
from saga_bus.store_dynamodb._items import Item, text
from saga_bus.store_dynamodb._keys import NAMES_SLOT, edge, micros_of, slots_of, split_state_key
from saga_bus.store_dynamodb._plans import (
    ORDER_ATTRIBUTES,
    Plan,
    Span,
    count_plan,
    find_plan,
    matches,
    purge_plan,
)
from saga_bus.store_dynamodb._reads import Reads
from saga_bus.store_dynamodb._writes import Writes

__all__ = ["Queries"]

_SHOWN = "pk, correlation_id, expires, completed, archived, created, updated, due, unsent"
_MOST_ENTRIES = 1000  # that are asked for or kept at once
_MOMENT_CHARS = 26
_IS_STILL_OLD = (
    "correlation_id = :correlation_id AND completed = :completed AND updated < :before "
    "AND (attribute_not_exists(expires) OR expires > :now)"
)


class _Entry(NamedTuple):
    """One entry of an index."""

    sort: str
    saga_name: str
    saga_id: str
    item: Item

    @property
    def key(self) -> str:
        key: str = self.item["pk"]["S"]
        return key

    @property
    def place(self) -> tuple[str, str, str]:
        return self.sort[:_MOMENT_CHARS], self.saga_name, self.saga_id


class _Stream:
    """The entries of one partition of an index, a page at a time."""

    def __init__(self, driver: Driver, request: dict[str, Any], sort: str, first_page: int) -> None:
        self._driver = driver
        self._request = request
        self._sort = sort
        self._size = first_page
        self._ended = False
        self.entries: list[_Entry] = []  # the next one last

    async def fill(self) -> None:
        while not self.entries and not self._ended:
            response = await self._driver.read("query", **self._request, Limit=self._size)
            self.entries = [
                _Entry(item[self._sort]["S"], *split_state_key(item["pk"]["S"]), item)
                for item in reversed(response["Items"])
            ]
            self._size = min(2 * self._size, _MOST_ENTRIES)
            self._ended = "LastEvaluatedKey" not in response
            if not self._ended:
                self._request["ExclusiveStartKey"] = response["LastEvaluatedKey"]


class _Merged:
    """The entries of several partitions in one order."""

    def __init__(self, streams: list[_Stream], plan: Plan, after: CursorPosition | None) -> None:
        self._live = streams
        self._best = max if plan.descending else min
        self._after = after
        self._started = False

    async def take(self, number: int) -> list[_Entry]:
        """The next entries, so many unless these are the last."""
        if not self._started:
            self._started = True
            await all_of(stream.fill() for stream in self._live)
            self._live = [stream for stream in self._live if stream.entries]
        taken: list[_Entry] = []
        while self._live and len(taken) < number:
            stream = self._best(self._live, key=lambda one: one.entries[-1].place)
            entry = stream.entries.pop()
            if not self._is_where_we_were(entry):
                taken.append(entry)
            if not stream.entries:
                await stream.fill()
                if not stream.entries:
                    self._live.remove(stream)
        return taken

    def _is_where_we_were(self, entry: _Entry) -> bool:
        position = self._after
        return (
            position is not None
            and (entry.saga_name, entry.saga_id) == (position.saga_name, position.saga_id)
            and micros_of(entry.sort) == position.moment
        )


class Queries:
    """Searches of one table.

    Args:
        driver: Makes the requests.
        table: The table's name.
        reads: Fetches items.
        writes: Deletes sagas.
    """

    def __init__(self, driver: Driver, table: str, reads: Reads, writes: Writes) -> None:
        self._driver = driver
        self._table = table
        self._reads = reads
        self._writes = writes

    async def find(self, query: SagaQuery) -> list[FoundRow]:
        """Fetch the rows of one page."""
        plan = find_plan(query.where, query.order)
        names = await self._names(query.where)
        sort = ORDER_ATTRIBUTES[query.order]
        if not plan.in_order:
            return await self._find_and_sort(query, plan, names, sort)
        entries = self._merged(plan, names, after=query.after, wanted=query.limit)
        rows: list[FoundRow] = []
        while len(rows) < query.limit:
            taken = await entries.take(min(query.limit - len(rows), _MOST_ENTRIES))
            if not taken:
                break
            items = await self._reads.get_items([entry.key for entry in taken], f"{_SHOWN}, document")
            for entry in taken:
                item = items.get(entry.key)
                # An item that has moved since is met again where it is now, or was met there already.
                if item is not None and matches(item, query.where) and item[plan.sort]["S"] == entry.sort:
                    rows.append(_row(item, sort))
        return rows

    async def _find_and_sort(self, query: SagaQuery, plan: Plan, names: list[str], sort: str) -> list[FoundRow]:
        """For an order that the sparse index of what waits for something does not have; those are few."""
        places = []
        for item in await self._matching(plan, names, query.where):
            saga_name, saga_id = split_state_key(item["pk"]["S"])
            places.append((item[sort]["S"][:_MOMENT_CHARS], saga_name, saga_id, item["pk"]["S"]))
        descending = query.order == "newest"
        places.sort(reverse=descending)
        if query.after is not None:
            position = (query.after.moment, query.after.saga_name, query.after.saga_id)
            behind = [(micros_of(moment), saga_name, saga_id) for moment, saga_name, saga_id, _ in places]
            places = [
                place
                for place, found in zip(places, behind, strict=True)
                if (found < position if descending else found > position)
            ]
        rows: list[FoundRow] = []
        while places and len(rows) < query.limit:
            some = min(query.limit - len(rows), _MOST_ENTRIES)
            keys, places = [place[3] for place in places[:some]], places[some:]
            items = await self._reads.get_items(keys, f"{_SHOWN}, document")
            rows += [_row(items[key], sort) for key in keys if matches(items.get(key), query.where)]
        return rows

    async def count(self, where: SagaFilter) -> int:
        """Count sagas."""
        plan = count_plan(where)
        names = await self._names(where)
        if not plan.decides:
            return len(await self._matching(plan, names, where))
        slots = [slot for name in names for slot in slots_of(name)]
        return sum(await all_of(self._count_slot(plan, slot) for slot in slots))

    async def purge(self, saga_name: str, before: datetime, batch_size: int) -> int:
        """Delete a batch of completed sagas that were last updated before a moment, each if it is so still."""
        plan = purge_plan(before)
        entries = self._merged(plan, [saga_name], wanted=batch_size, shown=", correlation_id")
        values = {name: plan.values[name] for name in (":completed", ":now")}
        values[":before"] = text(edge(before))
        deleted = 0
        # An entry may be of a saga that was deleted or reopened just now; then there may be others behind it.
        while deleted < batch_size and (taken := await entries.take(min(batch_size - deleted, 100))):
            deleted += sum(
                await all_of(
                    self._writes.delete_both(entry.key, entry.item["correlation_id"]["S"], _IS_STILL_OLD, values)
                    for entry in taken
                )
            )
        return deleted

    # -- helpers -------------------------------------------------------------------------------------------

    async def _names(self, where: SagaFilter) -> list[str]:
        if where.saga_name is not None:
            return [where.saga_name]
        names: list[str] = []
        request = self._request("by_creation", NAMES_SLOT)
        request["KeyConditionExpression"] = "slot = :slot"
        while True:
            response = await self._driver.read("query", **request)
            names += [item["created"]["S"] for item in response["Items"]]
            if "LastEvaluatedKey" not in response:
                return names
            request["ExclusiveStartKey"] = response["LastEvaluatedKey"]

    async def _matching(self, plan: Plan, names: list[str], where: SagaFilter) -> list[Item]:
        """All items that match, without their documents."""
        entries = self._merged(plan, names, wanted=_MOST_ENTRIES)
        found: list[Item] = []
        while taken := await entries.take(_MOST_ENTRIES):
            items = await self._reads.get_items([entry.key for entry in taken], _SHOWN)
            found += [item for item in items.values() if matches(item, where)]
        return found

    def _merged(
        self,
        plan: Plan,
        names: Iterable[str],
        *,
        wanted: int,
        after: CursorPosition | None = None,
        shown: str = "",
    ) -> _Merged:
        streams = []
        spans = {name: plan.span if after is None else plan.span_after(after, name) for name in names}
        slots = [(slot, span) for name, span in spans.items() if span.low <= span.high for slot in slots_of(name)]
        # A little more than the fair share of each, and much more where entries are filtered out.
        first_page = min(_MOST_ENTRIES, (wanted // max(1, len(slots)) * 5 // 4 + 8) * (8 if plan.conditions else 1))
        for slot, span in slots:
            request = self._request(plan.index, slot)
            self._narrow(request, plan, span)
            request["ProjectionExpression"] = f"pk, {plan.sort}{shown}"
            request["ScanIndexForward"] = not plan.descending
            streams.append(_Stream(self._driver, request, plan.sort, first_page))
        return _Merged(streams, plan, after)

    async def _count_slot(self, plan: Plan, slot: str) -> int:
        if plan.span.low > plan.span.high:
            return 0
        request = self._request(plan.index, slot)
        self._narrow(request, plan, plan.span)
        request["Select"] = "COUNT"
        number = 0
        while True:
            response = await self._driver.read("query", **request)
            number += int(response["Count"])
            if "LastEvaluatedKey" not in response:
                return number
            request["ExclusiveStartKey"] = response["LastEvaluatedKey"]

    def _request(self, index: str, slot: str) -> dict[str, Any]:
        return {
            "TableName": self._table,
            "IndexName": index,
            "ExpressionAttributeValues": {":slot": text(slot)},
        }

    @staticmethod
    def _narrow(request: dict[str, Any], plan: Plan, span: Span) -> None:
        request["KeyConditionExpression"] = f"slot = :slot AND {plan.sort} BETWEEN :low AND :high"
        request["ExpressionAttributeValues"].update({":low": text(span.low), ":high": text(span.high), **plan.values})
        if plan.conditions:
            request["FilterExpression"] = " AND ".join(plan.conditions)


def _row(item: Item, sort: str) -> FoundRow:
    saga_name, saga_id = split_state_key(item["pk"]["S"])
    correlation_id: str = item["correlation_id"]["S"]
    document: str = item["document"]["S"]
    return FoundRow(saga_name, saga_id, correlation_id, micros_of(item[sort]["S"]), document.encode())

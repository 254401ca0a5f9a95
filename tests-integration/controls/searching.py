"""Stores that find and count wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from controls.registry import fails
from controls.sound import FilteringStore
from saga_bus.store import FoundRow, InvalidSagaError, Page, SagaFilter, SagaQuery, SagaRow
from saga_bus.store.query import CursorPosition, decode_cursor, encode_cursor
from saga_bus.store_inmemory import InMemorySagaStore

MICROSECOND = timedelta(microseconds=1)
changed = msgspec.structs.replace


def moment_of(store: InMemorySagaStore[Any], found: FoundRow, field: str) -> datetime:
    """A timestamp of a found saga."""
    moment: datetime = getattr(store._database.by_id[found.saga_name, found.saga_id].row, field)
    return moment


@fails("query_filters_by_name", says="find, by saga name")
class NameIgnored(FilteringStore):
    """The saga name does not filter."""

    def where(self, where: SagaFilter) -> SagaFilter:
        return changed(where, saga_name=None)


@fails("query_filters_by_archived", says="find, archived ones")
class ArchivedIgnored(FilteringStore):
    """The filter on archived sagas is ignored."""

    def where(self, where: SagaFilter) -> SagaFilter:
        return changed(where, archived=None)


@fails("query_filters_by_creation", says="find, created after")
class CreatedAfterInclusive(FilteringStore):
    """created_after includes the moment itself."""

    def where(self, where: SagaFilter) -> SagaFilter:
        after = where.created_after
        return where if after is None else changed(where, created_after=after - MICROSECOND)


@fails("query_filters_by_creation", says="find, created after, in another time zone")
class TimeZoneDropped(FilteringStore):
    """The time zone of a filter's moment is dropped."""

    def where(self, where: SagaFilter) -> SagaFilter:
        after = where.created_after
        return where if after is None else changed(where, created_after=after.replace(tzinfo=UTC))


@fails("query_filters_by_update", says="find, updated before")
class UpdatedBeforeMilliseconds(FilteringStore):
    """updated_before is rounded up to the millisecond."""

    def where(self, where: SagaFilter) -> SagaFilter:
        before = where.updated_before
        if before is None:
            return where
        return changed(where, updated_before=before + -(before.microsecond % -1000) * MICROSECOND)


@fails("query_filters_by_update", says="find, updated after, after an update")
class UpdateTimeNotIndexed(InMemorySagaStore[Any]):
    """The index of the last update keeps the time of the insert."""

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        stored = self._database.by_id.get((row.saga_name, row.saga_id))
        await super()._update(
            row if stored is None else changed(row, updated_at=stored.row.updated_at), expected_version
        )


@fails("query_filters_by_completed", says="completed ones after the updates")
class CompletionNotIndexed(InMemorySagaStore[Any]):
    """The index of completion is not brought up to date by updates."""

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        stored = self._database.by_id.get((row.saga_name, row.saga_id))
        await super()._update(
            row if stored is None else changed(row, is_completed=stored.row.is_completed), expected_version
        )


@fails("query_filters_by_outbox", says="with a pending outbox after the updates")
class OutboxStaysPending(InMemorySagaStore[Any]):
    """An outbox that was emptied is still found as pending."""

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        stored = self._database.by_id.get((row.saga_name, row.saga_id))
        pending = stored is not None and stored.row.outbox_pending
        await super()._update(changed(row, outbox_pending=row.outbox_pending or pending), expected_version)


@fails("query_filters_together", says="together: found ConformanceSaga 'id-002' at version 0, which does not match")
class FirstFilterOnly(FilteringStore):
    """Beside a saga name no other filter on flags counts."""

    def where(self, where: SagaFilter) -> SagaFilter:
        return where if where.saga_name is None else changed(where, completed=None)


@fails("query_due_timeouts_in_order", says="find, timeouts due: found ConformanceSaga 'id-006' at version 0")
class CompletedTimeoutsDue(InMemorySagaStore[Any]):
    """The timeouts of completed sagas are listed as due."""

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        before = query.where.timeout_due_before
        if before is None:
            return await super()._find(query)
        rows = self._database.page(changed(query, where=changed(query.where, timeout_due_before=None)))
        return [row for row in rows if moment_of(self, row, "timeout_expires_at") < before]


@fails("query_due_timeouts_in_order", says="find, timeouts due: found ConformanceSaga 'id-004' at version 0")
class DueMomentInclusive(FilteringStore):
    """A timeout that is due at the very moment is listed as due before it."""

    def where(self, where: SagaFilter) -> SagaFilter:
        before = where.timeout_due_before
        return where if before is None else changed(where, timeout_due_before=before + MICROSECOND)


@fails("query_newest_first", says="find, newest first")
class OrderedByUpdate(InMemorySagaStore[Any]):
    """The order "newest" is by the last update."""

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        rows = await super()._find(query)
        if query.order != "newest":
            return rows
        return sorted(rows, key=lambda row: moment_of(self, row, "updated_at"), reverse=True)


@fails("query_stalest_first", says="find, stalest first: ConformanceSaga 'id-")
class OrderedByCreation(InMemorySagaStore[Any]):
    """The order "stalest" is by creation."""

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        rows = await super()._find(query)
        if query.order != "stalest":
            return rows
        return sorted(rows, key=lambda row: moment_of(self, row, "created_at"))


@fails("query_order_is_total", says="an empty page after 1 records, though the page before promised more")
class CursorWithoutTieBreak(InMemorySagaStore[Any]):
    """A cursor knows the timestamp alone, so that the rest of one timestamp's sagas is skipped."""

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        if query.after is None:
            return await super()._find(query)
        rows = self._database.page(changed(query, limit=10_000))
        return [row for row in rows if row.moment != query.after.moment][: query.limit]


@fails("query_order_is_total", says="the ids in pages of 1: expected")
class UnstableOrder(InMemorySagaStore[Any]):
    """Sagas of one timestamp come in another order at every second search."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._searches = 0

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        self._searches += query.after is None
        if self._searches % 2:
            return await super()._find(query)
        rows = self._database.page(changed(query, after=None, limit=10_000))
        rows.reverse()
        rows.sort(key=lambda row: row.moment, reverse=query.order == "newest")
        places = [(row.saga_name, row.saga_id) for row in rows]
        start = 0 if query.after is None else 1 + places.index((query.after.saga_name, query.after.saga_id))
        return rows[start : start + query.limit]


@fails("query_limits", says="the records of a page with limit=0: expected 0, got 5")
class LimitZeroIsAll(InMemorySagaStore[Any]):
    """A limit of 0 returns everything."""

    async def find(self, saga_filter: SagaFilter, *, limit: int = 100, cursor: str | None = None) -> Page[Any]:
        return await super().find(saga_filter, limit=1000 if limit == 0 else limit, cursor=cursor)


@fails("query_pages_cover_all_exactly_once", says="the ids in pages of 1")
class PageSkips(InMemorySagaStore[Any]):
    """Every page after the first skips a saga."""

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        rows = await super()._find(changed(query, limit=query.limit + 1))
        return rows[: query.limit] if query.after is None or len(rows) == 1 else rows[1:]


@fails("query_pages_cover_all_exactly_once", says="came to no end")
class PageRepeats(InMemorySagaStore[Any]):
    """A page begins with the last saga of the one before."""

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        if query.after is None:
            return await super()._find(query)
        rows = self._database.page(changed(query, after=None, limit=10_000))
        places = [(row.moment, row.saga_name, row.saga_id) for row in rows]
        place = (query.after.moment, query.after.saga_name, query.after.saga_id)
        start = places.index(place) if place in places else 0
        return rows[start : start + query.limit]


@fails("query_selective_filters_give_full_pages", says="the records of the first page with limit=1: expected 1, got 0")
class FilterAfterLimit(InMemorySagaStore[Any]):
    """The filter is applied to the page, after the limit."""

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        rows = self._database.page(changed(query, where=SagaFilter()))
        kept = {id(stored) for stored in self._database.matching(query.where)}
        return [row for row in rows if id(self._database.by_id[row.saga_name, row.saga_id]) in kept]


@fails("query_pages_while_sagas_come_and_go", says="how often a walk (newest) met sagas that stayed")
class OffsetPaging(InMemorySagaStore[Any]):
    """The cursor is an offset."""

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        offset = 0 if query.after is None else query.after.moment
        rows = self._database.page(changed(query, after=None, limit=offset + query.limit))[offset:]
        return [changed(row, moment=offset + index) for index, row in enumerate(rows, start=1)]


@fails("query_refuses_changed_cursors", says="expected InvalidSagaError, but nothing was raised")
class ChangedCursorAccepted(InMemorySagaStore[Any]):
    """With a cursor that was changed the search starts over."""

    async def find(self, saga_filter: SagaFilter, *, limit: int = 100, cursor: str | None = None) -> Page[Any]:
        try:
            return await super().find(saga_filter, limit=limit, cursor=cursor)
        except InvalidSagaError:
            if cursor is None:
                raise
            return await super().find(saga_filter, limit=limit)


@fails("query_refuses_changed_cursors", says="a cursor of another filter")
class CursorOfAnyFilter(InMemorySagaStore[Any]):
    """A cursor is accepted for another filter than its own."""

    async def find(self, saga_filter: SagaFilter, *, limit: int = 100, cursor: str | None = None) -> Page[Any]:
        if cursor is not None:
            cursor = encode_cursor(saga_filter, decode_cursor(SagaFilter(), cursor))
        page = await super().find(saga_filter, limit=limit, cursor=cursor)
        if page.cursor is None:
            return page
        return Page(page.items, encode_cursor(SagaFilter(), decode_cursor(saga_filter, page.cursor)))


@fails("query_refuses_bad_filters", says="find with {'created_after': datetime")
class NaiveFiltersAccepted(InMemorySagaStore[Any]):
    """A naive datetime in a filter is taken for UTC."""

    async def find(self, saga_filter: SagaFilter, *, limit: int = 100, cursor: str | None = None) -> Page[Any]:
        after = saga_filter.created_after
        if isinstance(after, datetime) and after.tzinfo is None:
            saga_filter = changed(saga_filter, created_after=after.replace(tzinfo=UTC))
        return await super().find(saga_filter, limit=limit, cursor=cursor)


@fails("query_counts_what_pages_hold", says="count with")
class CountIgnoresTimes(InMemorySagaStore[Any]):
    """Count takes no notice of the filters on timestamps."""

    async def _count(self, where: SagaFilter) -> int:
        return await super()._count(SagaFilter(saga_name=where.saga_name, completed=where.completed))


@fails("query_deleted_sagas_are_not_found", says="count, after the deletes: expected 2, got 4")
class CountKeepsDeleted(InMemorySagaStore[Any]):
    """The number of sagas is not lowered by deletes."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._deleted = 0

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        await super()._delete(saga_name, saga_id, expected_version)
        self._deleted += 1

    async def _count(self, where: SagaFilter) -> int:
        return await super()._count(where) + (self._deleted if where == SagaFilter() else 0)


@fails("query_nothing_in_an_empty_store", says="the cursor of the only page: expected None")
class CursorAlways(InMemorySagaStore[Any]):
    """An empty page still has a cursor."""

    async def find(self, saga_filter: SagaFilter, *, limit: int = 100, cursor: str | None = None) -> Page[Any]:
        page = await super().find(saga_filter, limit=limit, cursor=cursor)
        return page if page.items else Page((), encode_cursor(saga_filter, CursorPosition(0, "", "")))


@fails("query_records_are_whole", says="the record's correlation id: expected 'order-1', got")
class CorrelationIdMissing(InMemorySagaStore[Any]):
    """A record has the saga's id for its correlation id."""

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        return [changed(row, correlation_id=row.saga_id) for row in await super()._find(query)]

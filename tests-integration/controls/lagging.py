"""Stores with an index that lags behind: longer than they declare, or with faults that no lag excuses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import msgspec

from controls.registry import fails
from controls.sound import Key, LaggingStore
from saga_bus.store import FoundRow, SagaFilter, SagaQuery, StoreCapabilities
from saga_bus.store_inmemory import InMemorySagaStore
from saga_bus.store_inmemory._database import StoredRow

FOR_EVER = 1e9  # seconds


class _Late(LaggingStore):
    """Lags so long that what a case does next comes before the index has caught up, whatever else this machine does."""

    capabilities = replace(LaggingStore.capabilities, index_lag=timedelta(seconds=20))
    lag = 0.6


@fails("query_filters_by_name", says="find, by saga name: expected ['id-002', 'id-001'], got []")
class LagsLonger(LaggingStore):
    """The index lags longer than the store declares."""

    lag = 60.0


@fails(
    "query_filters_by_name",
    "retention_only_completed_and_strictly_older",
    "stateful_behaves_like_the_model",
    says="find, by saga name: expected ['id-002', 'id-001'], got []",
)
class LagsUndeclared(LagsLonger):
    """The index lags, and the store declares no lag."""

    capabilities = InMemorySagaStore.capabilities


@fails(
    "query_filters_by_name",
    "stateful_behaves_like_the_model",
    says="find, by saga name: expected ['id-002', 'id-001'], got ['id-001']",
)
class NeverIndexed(LaggingStore):
    """The index lags, and of one saga it never learns."""

    def lag_of(self, saga_id: str) -> float:
        return FOR_EVER if saga_id in ("id-002", "k2") else super().lag_of(saga_id)


@fails(
    "query_deleted_sagas_are_not_found",
    says="find, after the deletes: expected ['id-003', 'id-000'], got ['id-003', 'id-002', 'id-000']",
)
class NeverForgotten(LaggingStore):
    """The index lags, and of one delete it never learns."""

    def changed(self, key: Key) -> None:
        if key[1] != "id-002" or key in self._database.by_id:
            super().changed(key)


@fails("query_counts_what_pages_hold", says="count with")
class CountNeverCatchesUp(LaggingStore):
    """The index lags, and the count is one short for ever."""

    async def _count(self, where: SagaFilter) -> int:
        return max(0, await super()._count(where) - 1)


@fails(
    "query_filters_by_completed",
    says="completed ones after the updates: found ConformanceSaga 'id-002' at version 1, which does not match",
)
class ShowsWhatNoLongerMatches(_Late):
    """The index lags; the sagas that it names are read as they are now and not compared with the filter again."""

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        rows = await super()._find(query)
        now = [(row, self._database.by_id.get((row.saga_name, row.saga_id))) for row in rows]
        return [msgspec.structs.replace(row, document=stored.row.document) for row, stored in now if stored is not None]


@fails("query_stalest_first", says="find, stalest first after an update: one page has ConformanceSaga 'id-000'")
class ShowsOldAndNew(_Late):
    """The index lags, and a saga that was updated just now is found as it was and as it is."""

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        rows = list(await super()._find(query))
        now = {(row.saga_name, row.saga_id): row for row in self._database.page(query)}
        for row in tuple(rows):
            latest = now.get((row.saga_name, row.saga_id))
            if latest is not None and latest.document != row.document:
                rows.append(latest)
        return rows[: query.limit]


@fails("query_filters_by_name", says="find, by saga name: found OtherConformanceSaga 'id-001'")
class ShowsAnotherName(_Late):
    """The index lags, and sagas that it does not know yet are found under any name."""

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        rows = list(await super()._find(query))
        known = {(row.saga_name, row.saga_id) for row in rows}
        others = self._database.page(msgspec.structs.replace(query, where=SagaFilter()))
        return [*rows, *(row for row in others if not rows and (row.saga_name, row.saga_id) not in known)]


@fails(
    "retention_never_what_was_reopened_or_updated",
    says="with a reopened and a touched saga: expected 0, got 2",
)
class PurgesWhatTheIndexSays(_Late):
    """The index lags, and a purge believes what it says of a saga."""

    def doomed(self, old: SagaFilter) -> Iterator[StoredRow]:
        entries = [(entry.row.saga_name, entry.row.saga_id) for entry in self.index.matching(old)]
        return (self._database.by_id[key] for key in entries if key in self._database.by_id)


@fails("retention_in_batches", says="in batches of 1: expected 7, got ")
class PurgesOneBatch(LaggingStore):
    """The index lags, and a purge ends after its first batch."""

    async def delete_completed_before(
        self, saga_name: str, before: datetime, *, batch_size: int = 1000, dry_run: bool = False
    ) -> int:
        if dry_run:
            return await super().delete_completed_before(saga_name, before, batch_size=batch_size, dry_run=True)
        return await self._purge(saga_name, before, batch_size)


@fails("lifecycle_declared_abilities_are_there", says="declares an index_lag of datetime.timedelta(days=-1)")
class NegativeLag(InMemorySagaStore[Any]):
    """The declared lag is negative."""

    capabilities: StoreCapabilities = replace(InMemorySagaStore.capabilities, index_lag=timedelta(days=-1))

"""Stores that purge or expire the wrong sagas."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import msgspec

from controls.registry import fails
from controls.sound import ExpiringStore
from saga_bus.store import SagaFilter, SagaRow
from saga_bus.store_inmemory import InMemorySagaStore


class _Purging(InMemorySagaStore[Any]):
    """Purges what another filter lets through."""

    def doomed(self, where: SagaFilter) -> SagaFilter:
        raise NotImplementedError

    async def _purge(self, saga_name: str, before: datetime, batch_size: int) -> int:
        where = self.doomed(SagaFilter(saga_name=saga_name, completed=True, updated_before=before))
        batch = list(islice(self._database.matching(where), batch_size))
        for stored in batch:
            self._database.remove(stored)
        return len(batch)


@fails("retention_only_completed_and_strictly_older", says="with three old completed sagas: expected 3, got 4")
class PurgesRunning(_Purging):
    """A purge deletes old running sagas too."""

    def doomed(self, where: SagaFilter) -> SagaFilter:
        return msgspec.structs.replace(where, completed=None)


@fails("retention_only_completed_and_strictly_older", says="with three old completed sagas: expected 3, got 4")
class PurgesOnTime(_Purging):
    """A purge deletes what was last updated at the very moment."""

    def doomed(self, where: SagaFilter) -> SagaFilter:
        before = where.updated_before
        assert before is not None
        return msgspec.structs.replace(where, updated_before=before + timedelta(microseconds=1))


@fails("retention_only_its_own_name", says="with an old saga of each of two names: expected 1, got 2")
class PurgesAllNames(_Purging):
    """A purge ignores the saga name."""

    def doomed(self, where: SagaFilter) -> SagaFilter:
        return msgspec.structs.replace(where, saga_name=None)


@fails("retention_never_what_was_reopened_or_updated", says="with a reopened and a touched saga: expected 0, got 1")
class PurgesByCreation(_Purging):
    """A purge goes by the creation time, not by the last update."""

    def doomed(self, where: SagaFilter) -> SagaFilter:
        return msgspec.structs.replace(where, created_before=where.updated_before, updated_before=None)


@fails("retention_never_what_was_reopened_or_updated", says="with a reopened and a touched saga: expected 0, got 1")
class PurgesReopened(InMemorySagaStore[Any]):
    """A saga that was completed once counts as completed for ever."""

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        stored = self._database.by_id.get((row.saga_name, row.saga_id))
        ended = stored is not None and stored.row.is_completed
        await super()._update(msgspec.structs.replace(row, is_completed=row.is_completed or ended), expected_version)


@fails(
    "retention_never_what_is_reopened_meanwhile",
    says="a saga that was reopened while a purge ran, by id: the saga is not there",
)
class PurgeSelectsFirst(InMemorySagaStore[Any]):
    """A purge selects first and deletes later, whatever was reopened in between."""

    async def _purge(self, saga_name: str, before: datetime, batch_size: int) -> int:
        old = SagaFilter(saga_name=saga_name, completed=True, updated_before=before)
        batch = list(islice(self._database.matching(old), batch_size))
        await asyncio.sleep(0)
        for stored in batch:
            self._database.remove(stored)
        return len(batch)


@fails("retention_in_batches", says="in batches of 1: expected 7, got 1")
class OneBatchOnly(InMemorySagaStore[Any]):
    """A purge ends after its first batch."""

    async def delete_completed_before(
        self, saga_name: str, before: datetime, *, batch_size: int = 1000, dry_run: bool = False
    ) -> int:
        if dry_run:
            return await super().delete_completed_before(saga_name, before, batch_size=batch_size, dry_run=True)
        return await self._purge(saga_name, before, batch_size)


@fails("retention_in_batches", says="in batches of 3: expected 7, got 3")
class CountsBatches(InMemorySagaStore[Any]):
    """A purge returns the number of its batches."""

    async def delete_completed_before(
        self, saga_name: str, before: datetime, *, batch_size: int = 1000, dry_run: bool = False
    ) -> int:
        if dry_run:
            return await super().delete_completed_before(saga_name, before, batch_size=batch_size, dry_run=True)
        batches = 0
        while await self._purge(saga_name, before, batch_size):
            batches += 1
        return batches


@fails("retention_only_completed_and_strictly_older", says="whose id came back under another one: expected None")
class PurgeLeavesIndex(InMemorySagaStore[Any]):
    """A purge leaves correlation index entries, which lead to a later saga of the same id."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._ids: dict[tuple[str, str], str] = {}

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        await super()._insert(row, correlation_id)
        self._ids[row.saga_name, correlation_id] = row.saga_id

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        await super()._delete(saga_name, saga_id, expected_version)
        for key in [key for key, known in self._ids.items() if (key[0], known) == (saga_name, saga_id)]:
            del self._ids[key]

    async def _get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        saga_id = self._ids.get((saga_name, correlation_id))
        return None if saga_id is None else await super()._get_by_id(saga_name, saga_id)


@fails("retention_dry_run_only_counts", says="after a dry run, by id: the saga is not there")
class DryRunDeletes(InMemorySagaStore[Any]):
    """A dry run deletes."""

    async def delete_completed_before(
        self, saga_name: str, before: datetime, *, batch_size: int = 1000, dry_run: bool = False
    ) -> int:
        del dry_run
        return await super().delete_completed_before(saga_name, before, batch_size=batch_size)


@fails("retention_dry_run_only_counts", says="as a dry run with four old completed sagas: expected 4, got 2")
class DryRunCountsOneBatch(InMemorySagaStore[Any]):
    """A dry run counts no further than one batch."""

    async def delete_completed_before(
        self, saga_name: str, before: datetime, *, batch_size: int = 1000, dry_run: bool = False
    ) -> int:
        number = await super().delete_completed_before(saga_name, before, batch_size=batch_size, dry_run=dry_run)
        return min(number, batch_size) if dry_run else number


@fails("retention_only_completed_and_strictly_older", says="before a moment in another time zone: expected 3, got 5")
class TimeZoneDropped(InMemorySagaStore[Any]):
    """The time zone of a purge's moment is dropped."""

    async def delete_completed_before(
        self, saga_name: str, before: datetime, *, batch_size: int = 1000, dry_run: bool = False
    ) -> int:
        if isinstance(before, datetime) and before.tzinfo is not None:
            before = before.replace(tzinfo=UTC)
        return await super().delete_completed_before(saga_name, before, batch_size=batch_size, dry_run=dry_run)


@fails("retention_refuses_bad_arguments", says="expected InvalidSagaError, but nothing was raised (answer 1)")
class NaiveMomentAccepted(InMemorySagaStore[Any]):
    """A naive moment is taken for UTC."""

    async def delete_completed_before(
        self, saga_name: str, before: datetime, *, batch_size: int = 1000, dry_run: bool = False
    ) -> int:
        if isinstance(before, datetime) and before.tzinfo is None:
            before = before.replace(tzinfo=UTC)
        return await super().delete_completed_before(saga_name, before, batch_size=batch_size, dry_run=dry_run)


@fails("completed_ttl_never_a_running_saga", says="a running saga after the time to live, by id: the saga is not there")
class RunningExpires(ExpiringStore):
    """Every saga expires, also a running one."""

    def watch(self, row: SagaRow) -> None:
        super().watch(msgspec.structs.replace(row, is_completed=True))


@fails(
    "completed_ttl_never_a_running_saga", says="a reopened saga after the time to live, by id: the saga is not there"
)
class ReopenedExpires(ExpiringStore):
    """A saga that was reopened keeps its time to live."""

    def watch(self, row: SagaRow) -> None:
        if row.is_completed:
            super().watch(row)


@fails("completed_ttl_completed_sagas_expire_whole", says="the correlation id of an expired saga: expected None")
class IndexOutlivesState(ExpiringStore):
    """The state expires, its correlation index entry does not."""

    def expire(self, key: tuple[str, str]) -> None:
        self._database.by_id.pop(key, None)


@fails("completed_ttl_completed_sagas_expire_whole", says="a completed saga before its time: the saga is not there")
class ExpiresAtOnce(ExpiringStore):
    """A completed saga expires at once, as if its time to live were milliseconds."""

    def watch(self, row: SagaRow) -> None:
        super().watch(row)
        if row.is_completed:
            self.deadlines[row.saga_name, row.saga_id] = time.monotonic()

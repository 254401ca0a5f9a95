"""Stores that are right as long as nobody else does anything at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from controls.registry import fails
from controls.sound import put
from saga_bus.store import Coalescer, ConcurrencyError, SagaRow, SagaStoreError, version_conflict
from saga_bus.store_inmemory import InMemorySagaStore
from saga_bus.store_inmemory._database import StoredRow


@fails(
    "concurrency_one_winner_per_version",
    "concurrency_retried_increments_add_up",
    "linearizable_histories_have_an_order",
    says="the number of updates of version 0 that succeeded: expected 1, got 20",
)
class CheckThenWrite(InMemorySagaStore[Any]):
    """An update reads the version, and writes later (WATCH on a shared connection)."""

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        stored = self._database.by_id.get((row.saga_name, row.saga_id))
        if stored is not None and stored.row.version == expected_version:
            await asyncio.sleep(0)
            self._database.replace(stored, row)
        else:
            await super()._update(row, expected_version)


@fails(
    "concurrency_one_winner_among_inserts_of_one_id",
    "linearizable_histories_have_an_order",
    says="the number of inserts of one id that succeeded: expected 1, got 20",
)
class GetThenSet(InMemorySagaStore[Any]):
    """An insert looks whether the id is taken, and writes later."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        taken = (row.saga_name, row.saga_id) in self._database.by_id
        await asyncio.sleep(0)
        stored = self._database.by_id.get((row.saga_name, row.saga_id))
        if stored is not None and not taken:
            self._database.remove(stored)
        await super()._insert(row, correlation_id)


@fails(
    "concurrency_one_winner_among_inserts_of_one_correlation_id",
    says="the number of inserts of one correlation id that succeeded: expected 1, got 20",
)
class IndexThenSet(InMemorySagaStore[Any]):
    """An insert looks whether the correlation id is taken, and writes later."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        taken = (row.saga_name, correlation_id) in self._database.by_correlation
        await asyncio.sleep(0)
        if taken or (row.saga_name, row.saga_id) in self._database.by_id:
            await super()._insert(row, correlation_id)
        else:
            put(self._database, row, correlation_id)


@fails("concurrency_update_against_delete", says="after an update and a delete at once, by id: expected None")
class UpdateRevives(InMemorySagaStore[Any]):
    """An update reads the saga, and writes it back later, whether it was deleted or not."""

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        stored = self._database.by_id.get((row.saga_name, row.saga_id))
        await asyncio.sleep(0)
        if stored is not None and (row.saga_name, row.saga_id) not in self._database.by_id:
            put(self._database, stored.row, stored.correlation_id)
        await super()._update(row, expected_version)


@fails(
    "concurrency_one_winner_among_update_and_delete",
    says="the number of winners among an update and a delete of one version: expected 1, got 2",
)
class CheckThenDelete(InMemorySagaStore[Any]):
    """A conditional delete reads the version, and deletes later."""

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        stored = self._database.by_id.get((saga_name, saga_id))
        if expected_version is not None and stored is not None and stored.row.version == expected_version:
            await asyncio.sleep(0)
            expected_version = None
        await super()._delete(saga_name, saga_id, expected_version)


@fails("concurrency_insert_against_delete", says="what is found by id, against what is found by correlation id")
class DeleteInTwoSteps(InMemorySagaStore[Any]):
    """A delete removes the state first and the correlation index entry later, whosever it is by then."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        if (row.saga_name, row.saga_id) not in self._database.by_id:
            self._database.by_correlation.pop((row.saga_name, correlation_id), None)
        await super()._insert(row, correlation_id)

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        stored = self._database.by_id.get((saga_name, saga_id))
        await super()._delete(saga_name, saga_id, expected_version)
        if stored is not None:
            await asyncio.sleep(0)
            self._database.by_correlation.pop((saga_name, stored.correlation_id), None)


@fails("concurrency_different_sagas_do_not_conflict", says="ConcurrencyError")
class WholeTableCompared(InMemorySagaStore[Any]):
    """An update meets a conflict when any other saga was written meanwhile."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._writes = 0

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        seen = self._writes
        await asyncio.sleep(0)
        if self._writes != seen:
            raise version_conflict(
                row.saga_name, row.saga_id, expected_version=expected_version, actual_version=expected_version + 1
            )
        await super()._update(row, expected_version)
        self._writes += 1


@fails("concurrency_conflicts_fail_no_neighbour", says="(good): expected True, got False")
class GroupFailsAsOne(InMemorySagaStore[Any]):
    """Writes are sent in groups, and a bad one fails those behind it in its group."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._group: Coalescer[tuple[SagaRow, int], None] = Coalescer(self._run)

    async def _run(self, items: Sequence[tuple[SagaRow, int]]) -> Sequence[BaseException | None]:
        await asyncio.sleep(0)
        outcomes: list[BaseException | None] = []
        for row, expected_version in items:
            try:
                await super()._update(row, expected_version)
            except ConcurrencyError as error:
                return [*outcomes, *[error] * (len(items) - len(outcomes))]
            outcomes.append(None)
        return outcomes

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        await self._group.call((row, expected_version))


@fails("concurrency_survives_cancelled_callers", says="insert, cancelled after 1 steps: ")
class HalfAfterCancel(InMemorySagaStore[Any]):
    """A cancelled insert leaves its state without its correlation index entry."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        await super()._insert(row, correlation_id)
        stored = self._database.by_correlation.pop((row.saga_name, correlation_id))
        await asyncio.sleep(0)
        self._database.by_correlation[row.saga_name, correlation_id] = stored


@fails("concurrency_survives_cancelled_callers", says="SagaStoreError: the lock was not to be had")
class LockKeptAfterCancel(InMemorySagaStore[Any]):
    """A cancelled caller leaves the store's lock held."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._lock = asyncio.Lock()

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        await self._locked(lambda: self._replace(row, expected_version))

    def _replace(self, row: SagaRow, expected_version: int) -> None:
        stored: StoredRow | None = self._database.by_id.get((row.saga_name, row.saga_id))
        if stored is None or stored.row.version != expected_version:
            raise version_conflict(
                row.saga_name,
                row.saga_id,
                expected_version=expected_version,
                actual_version=None if stored is None else stored.row.version,
            )
        self._database.replace(stored, row)

    async def _locked(self, write: Callable[[], None]) -> None:
        try:
            async with asyncio.timeout(0.2):
                await self._lock.acquire()
        except TimeoutError as error:
            raise SagaStoreError("the lock was not to be had") from error
        await asyncio.sleep(0)
        try:
            write()
        finally:
            self._lock.release()

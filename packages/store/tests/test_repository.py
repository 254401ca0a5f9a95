"""The typed view and its load-change-save cycle."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel, ConfigDict, Field

from saga_bus.store import (
    ConcurrencyError,
    InvalidSagaError,
    SagaMetadata,
    SagaNotFoundError,
    SagaRepository,
    SagaRow,
    SagaState,
    StoreUnavailableError,
)
from saga_bus.store_inmemory import InMemorySagaStore


class Counter(SagaState, kw_only=True):
    count: int = 0


class FrozenCounter(SagaState, kw_only=True, frozen=True):
    count: int = 0


@dataclass
class DataCounter:
    count: int = 0
    metadata: SagaMetadata = field(default_factory=SagaMetadata.fresh)


@dataclass(frozen=True, slots=True)
class FrozenDataCounter:
    count: int = 0
    metadata: SagaMetadata = field(default_factory=SagaMetadata.fresh)


class ModelCounter(BaseModel):
    count: int = 0
    metadata: SagaMetadata = Field(default_factory=SagaMetadata.fresh)


class FrozenModelCounter(ModelCounter):
    model_config = ConfigDict(frozen=True)


class Contended(InMemorySagaStore[Any]):
    """A store where somebody else is faster at the first updates."""

    rivals = 0
    updates = 0
    unavailable = False

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        self.updates += 1
        if self.unavailable:
            raise StoreUnavailableError("down")
        if self.rivals:
            self.rivals -= 1
            other = await self._get_by_id(row.saga_name, row.saga_id)
            state = self._codec.decode(row.saga_name, other or b"")
            rival = msgspec.structs.replace(state, metadata=state.metadata.next(trace_state="rival"))
            await super()._update(self._row(row.saga_name, rival), expected_version)
        await super()._update(row, expected_version)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr("saga_bus.store.repository.random.uniform", lambda low, high: pauses.append(high) or 0)
    return pauses


async def one_counter(store: InMemorySagaStore[Any], kind: type = Counter) -> SagaRepository[Any]:
    counters = store.repository("Counter", kind)
    await counters.insert("c", kind())
    return counters


def raised(state: Any) -> None:
    state.count += 1


async def raised_later(state: Any) -> None:
    await asyncio.sleep(0)
    state.count += 1


def anew(state: Any) -> Any:
    if isinstance(state, msgspec.Struct):
        return msgspec.structs.replace(state, count=state.count + 1)
    return type(state)(count=state.count + 1, metadata=state.metadata)


async def anew_later(state: Any) -> Any:
    await asyncio.sleep(0)
    return anew(state)


def with_own_metadata(state: Any) -> Any:
    return type(state)(count=state.count + 1, metadata=state.metadata.next(is_completed=True))


MUTABLE = [Counter, DataCounter, ModelCounter]
FROZEN = [FrozenCounter, FrozenDataCounter, FrozenModelCounter]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *((kind, change) for kind in MUTABLE for change in (raised, raised_later)),
        *((kind, change) for kind in (*MUTABLE, *FROZEN) for change in (anew, anew_later, with_own_metadata)),
    ],
)
def test_mutate_saves_what_was_changed_or_returned_with_the_next_version(kind: type, change: Any) -> None:
    async def scenario() -> None:
        store = InMemorySagaStore[Any]()
        counters = await one_counter(store, kind)
        first = await counters.get_by_correlation_id("c")
        assert first is not None
        saved = await counters.mutate("c", change)
        stored = await counters.get_by_correlation_id("c")
        assert type(saved) is kind
        assert saved == stored
        assert (stored.count, stored.metadata.version, stored.metadata.saga_id) == (1, 1, first.metadata.saga_id)
        assert stored.metadata.created_at == first.metadata.created_at
        assert stored.metadata.updated_at >= first.metadata.updated_at
        assert stored.metadata.is_completed == (change is with_own_metadata)

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", FROZEN)
def test_mutate_renews_a_frozen_state_that_the_change_left_as_it_was(kind: type) -> None:
    async def scenario() -> None:
        counters = await one_counter(InMemorySagaStore[Any](), kind)
        saved = await counters.mutate("c", lambda state: None)
        assert (saved.count, saved.metadata.version) == (0, 1)
        assert await counters.get_by_correlation_id("c") == saved

    asyncio.run(scenario())


def test_a_conflict_is_retried_from_the_load_with_growing_pauses(no_pauses: list[float]) -> None:
    async def scenario() -> None:
        store = Contended()
        counters = await one_counter(store)
        store.rivals, seen = 3, []

        def change(state: Counter) -> None:
            seen.append(state.metadata.version)
            state.count += 1

        saved = await counters.mutate("c", change)
        assert seen == [0, 1, 2, 3]
        assert (saved.count, saved.metadata.version, saved.metadata.trace_state) == (1, 4, "rival")
        assert no_pauses == [0.005, 0.01, 0.02]

    asyncio.run(scenario())


@pytest.mark.parametrize("attempts", [1, 3])
def test_retries_end_with_the_conflict_after_the_last_attempt(attempts: int, no_pauses: list[float]) -> None:
    async def scenario() -> None:
        store = Contended()
        counters = await one_counter(store)
        store.rivals = 100
        with pytest.raises(ConcurrencyError) as caught:
            await counters.mutate("c", raised, attempts=attempts)
        assert type(caught.value) is ConcurrencyError
        assert (caught.value.expected_version, caught.value.actual_version) == (attempts - 1, attempts)
        assert (store.updates, len(no_pauses)) == (attempts, attempts - 1)

    asyncio.run(scenario())


def test_many_tasks_lose_no_increment() -> None:
    async def scenario() -> None:
        counters = await one_counter(InMemorySagaStore[Any]())
        await asyncio.gather(*(counters.mutate("c", raised_later, attempts=1000) for _ in range(30)))
        stored = await counters.get_by_correlation_id("c")
        assert (stored.count, stored.metadata.version) == (30, 30)

    asyncio.run(scenario())


def test_only_conflicts_are_retried() -> None:
    async def scenario() -> None:
        store = Contended()
        counters = await one_counter(store)
        store.unavailable = True
        with pytest.raises(StoreUnavailableError):
            await counters.mutate("c", raised)
        assert store.updates == 1

        def fails(state: Counter) -> None:
            raise ConcurrencyError(saga_name="Other", saga_id="9")

        with pytest.raises(ConcurrencyError, match="Other"):
            await counters.mutate("c", fails)
        assert store.updates == 1

    asyncio.run(scenario())


def test_a_saga_that_is_not_there_or_vanishes_is_not_found() -> None:
    async def scenario() -> None:
        counters = await one_counter(InMemorySagaStore[Any]())
        with pytest.raises(SagaNotFoundError, match="'nobody'"):
            await counters.mutate("nobody", raised)

        async def delete_meanwhile(state: Counter) -> None:
            await counters.delete(state.metadata.saga_id)

        with pytest.raises(SagaNotFoundError, match="not found"):
            await counters.mutate("c", delete_meanwhile)

    asyncio.run(scenario())


@pytest.mark.parametrize("attempts", [0, -1, True, None])
def test_a_bad_number_of_attempts_is_refused(attempts: Any) -> None:
    async def scenario() -> None:
        counters = await one_counter(InMemorySagaStore[Any]())
        with pytest.raises(InvalidSagaError, match="attempts"):
            await counters.mutate("c", raised, attempts=attempts)

    asyncio.run(scenario())


def test_a_version_raised_by_more_than_one_is_refused_not_retried() -> None:
    async def scenario() -> None:
        store = Contended()
        counters = await one_counter(store)
        with pytest.raises(InvalidSagaError, match="must carry version 1, not 2"):
            await counters.mutate("c", lambda state: Counter(metadata=state.metadata.next().next()))
        assert store.updates == 0

    asyncio.run(scenario())


def test_the_other_operations_are_the_stores_own_without_the_name() -> None:
    async def scenario() -> None:
        store = InMemorySagaStore[Any]()
        counters = await one_counter(store)
        assert counters.saga_name == "Counter"
        state = await counters.get_by_correlation_id("c")
        saga_id = state.metadata.saga_id
        assert await counters.get_by_id(saga_id) == state == await store.get_by_id("Counter", saga_id)
        await counters.update(Counter(metadata=state.metadata.next(), count=5), 0)
        with pytest.raises(ConcurrencyError):
            await counters.delete(saga_id, 0)
        await counters.delete(saga_id, 1)
        assert await counters.get_by_id(saga_id) is None

    asyncio.run(scenario())


def test_a_repository_registers_its_type_and_another_type_is_refused() -> None:
    store = InMemorySagaStore[Any]()
    store.repository("Counter", Counter)
    store.repository("Counter", Counter)
    with pytest.raises(InvalidSagaError, match="has the state type Counter already"):
        store.repository("Counter", FrozenCounter)

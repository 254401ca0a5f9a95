"""Looking into an index: how often, until when, and what is refused at once."""

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from saga_bus.store import Page, SagaFilter, SagaMetadata, SagaRecord, SagaState
from saga_bus.store.conformance.differential import run_differential
from saga_bus.store.conformance.lag import InexcusableError, find_page, purged, settled
from saga_bus.store.conformance.machine import run_machine
from saga_bus.store_inmemory import InMemorySagaStore

NO_LAG, LAG = timedelta(0), timedelta(seconds=0.1)
START = datetime(2026, 1, 1, tzinfo=UTC)


class Look:
    """Fails so many times, then finds."""

    def __init__(self, fails, error=AssertionError):
        self.left = fails
        self.error = error
        self.times = []

    async def __call__(self):
        self.times.append(time.monotonic())
        if self.left:
            self.left -= 1
            raise self.error(f"look {len(self.times)}")
        return "found"


def test_without_a_lag_there_is_one_look():
    look = Look(1)
    with pytest.raises(AssertionError, match="look 1"):
        asyncio.run(settled(look, NO_LAG))
    assert len(look.times) == 1
    assert asyncio.run(settled(Look(0), NO_LAG)) == "found"


def test_with_a_lag_it_looks_until_it_finds():
    look = Look(2)
    assert asyncio.run(settled(look, timedelta(seconds=60))) == "found"
    assert len(look.times) == 3


def test_the_last_look_begins_when_the_lag_has_passed_and_its_failure_is_the_one_that_is_raised():
    look = Look(1_000_000)
    started = time.monotonic()
    with pytest.raises(AssertionError) as caught:
        asyncio.run(settled(look, LAG))
    assert str(caught.value) == f"look {len(look.times)}"
    assert look.times[-1] >= started + LAG.total_seconds()


@pytest.mark.parametrize("error", [InexcusableError, ValueError])
def test_what_no_lag_explains_is_raised_at_once(error):
    look = Look(1, error)
    with pytest.raises(error, match="look 1"):
        asyncio.run(settled(look, timedelta(seconds=60)))
    assert len(look.times) == 1


def record(saga_id, *, saga_name="OrderSaga", version=0, **fields):
    fields = {"created_at": START, "updated_at": START, **fields}
    return SagaRecord(saga_name, "c", SagaState(metadata=SagaMetadata(saga_id=saga_id, version=version, **fields)))


class Answers:
    def __init__(self, *records):
        self.page = Page(records)

    async def find(self, saga_filter, *, limit, cursor):
        return self.page


@pytest.mark.parametrize(
    ("records", "where", "fault"),
    [
        ([record("2"), record("1"), record("2")], {}, "one page has OrderSaga '2' at version 0 a second time"),
        ([record("1"), record("1", version=1)], {}, "one page has OrderSaga '1' at version 1 a second time"),
        ([record("1")], {"saga_name": "Other"}, r"found OrderSaga '1' .* does not match SagaFilter\(saga_name='Other'"),
        ([record("1")], {"completed": True}, r"found OrderSaga '1' .* does not match SagaFilter\(completed=True"),
        ([record("1")], {"updated_before": START}, "found OrderSaga '1' .* does not match"),
        ([record("1"), record("2")], {}, "OrderSaga '2' at version 0 comes too late in the order"),
        ([record("2"), record("1")], {"order": "stalest"}, "OrderSaga '1' at version 0 comes too late in the order"),
    ],
)
def test_a_page_that_no_lag_explains_is_refused(records, where, fault):
    with pytest.raises(InexcusableError, match=f"^a search: {fault}"):
        asyncio.run(find_page(Answers(*records), SagaFilter(**where), "a search"))


def test_a_page_that_is_right_by_itself_comes_back():
    records = record("1", saga_name="B"), record("1", saga_name="A")
    assert asyncio.run(find_page(Answers(*records), SagaFilter(), "a search")).items == records


class Purge:
    """Deletes so many at each call."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)
        self.dry_runs = 0

    async def __call__(self, *, dry_run=False):
        if dry_run:
            self.dry_runs += 1
            return sum(self.numbers)
        return self.numbers.pop(0)


@pytest.mark.parametrize(
    ("numbers", "lag", "deleted", "calls"),
    [
        ((1, 2), NO_LAG, 1, 1),
        ((3, 0), LAG, 3, 1),
        ((4, 0), LAG, 4, 1),  # one too many is known at once
        ((1, 2, 0), LAG, 3, 2),
        ((0, 1, 2, 0), LAG, 3, 3),
        ((0, 1, 1, 1, 0), LAG, 2, 3),  # it never deletes what is left at once
    ],
)
def test_a_purge_is_repeated_twice_at_the_most(numbers, lag, deleted, calls):
    purge = Purge(*numbers)
    assert asyncio.run(purged(purge, 3, lag)) == deleted
    assert len(purge.numbers) == len(numbers) - calls
    assert purge.dry_runs == (calls > 1)


class OneLookBehind(InMemorySagaStore):
    """The first search after a write, and the first purge, find nothing yet."""

    capabilities = replace(InMemorySagaStore.capabilities, index_lag=timedelta(seconds=5))
    knows = True

    async def _insert(self, row, correlation_id):
        await super()._insert(row, correlation_id)
        self.knows = False

    async def _update(self, row, expected_version):
        await super()._update(row, expected_version)
        self.knows = False

    async def _find(self, query):
        known, self.knows = self.knows, True
        return await super()._find(query) if known else []

    async def _count(self, where):
        known, self.knows = self.knows, True
        return await super()._count(where) if known else 0

    async def _purge(self, saga_name, before, batch_size):
        known, self.knows = self.knows, True
        return await super()._purge(saga_name, before, batch_size) if known else 0


class Undeclared(OneLookBehind):
    capabilities = InMemorySagaStore.capabilities


class LosesTheNewest(OneLookBehind):
    capabilities = replace(InMemorySagaStore.capabilities, index_lag=LAG)

    async def _count(self, where):
        return max(0, await super()._count(where) - 1)


async def close(store):
    await store.close()


def opener(kind):
    async def open_store():
        return kind()

    return open_store


def test_the_machine_waits_for_a_declared_lag_alone():
    run_machine(opener(OneLookBehind), close, examples=10, steps=15)
    with pytest.raises(AssertionError, match=r"^(find: found|count: 0, not|purge: 0 sagas, not)"):
        run_machine(opener(Undeclared), close, examples=100, steps=15)
    with pytest.raises(AssertionError, match=r"^count: 0, not 1") as caught:
        run_machine(opener(LosesTheNewest), close, examples=100, steps=15)
    assert "state = StoreMachine()" in "\n".join(caught.value.__notes__)


def test_the_differential_machine_waits_for_a_declared_lag_alone():
    run_differential(opener(InMemorySagaStore), opener(OneLookBehind), close, examples=20, steps=30)
    run_differential(opener(OneLookBehind), opener(InMemorySagaStore), close, examples=20, steps=30)
    for kind in (Undeclared, LosesTheNewest):
        with pytest.raises(AssertionError, match=r"^the stores differ in: (find|count|delete_completed_before)\("):
            run_differential(opener(InMemorySagaStore), opener(kind), close, examples=300, steps=60)

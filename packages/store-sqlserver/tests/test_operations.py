"""What each operation makes of the server's counts and answers."""

import asyncio
from datetime import UTC, datetime

import msgspec
import pytest

from saga_bus.store import (
    ConcurrencyError,
    SagaMetadata,
    SagaNotFoundError,
    SagaState,
    SagaStoreError,
    StoreUnavailableError,
)
from saga_bus.store_sqlserver import SqlServerSagaStore


class Script:
    """Answers each kind of statement with the next of its results; the last one stays."""

    def __init__(self, **results):
        self.results = {word.replace("_", " "): list(given) for word, given in results.items()}
        self.seen = []

    def __call__(self, sql):
        for word, results in self.results.items():
            if word in sql:
                self.seen.append(word)
                return results.pop(0) if len(results) > 1 else results[0]
        raise AssertionError(sql)


@pytest.fixture
def run(endpoint, url_of):
    def run_act(script, act):
        async def use():
            async with SqlServerSagaStore(url_of(endpoint(script).port)) as store:
                await act(store)

        asyncio.run(use())

    return run_act


def update(store):
    fresh = SagaMetadata.fresh("1")
    return store.update("OrderSaga", SagaState(metadata=msgspec.structs.replace(fresh, version=6)), 5)


def delete(store):
    return store.delete("OrderSaga", "1", 5)


@pytest.mark.parametrize(("act", "word"), [(update, "UPDATE"), (delete, "DELETE")])
def test_a_conflict_names_the_version_that_is_there(run, endpoint, act, word):
    script = Script(**{word: [endpoint.counted(0)], "SELECT_version": [endpoint.numbers("version", 9)]})
    with pytest.raises(ConcurrencyError) as raised:
        run(script, act)
    assert (raised.value.expected_version, raised.value.actual_version) == (5, 9)


@pytest.mark.parametrize(("act", "word"), [(update, "UPDATE"), (delete, "DELETE")])
def test_an_absent_saga_is_not_found(run, endpoint, act, word):
    script = Script(**{word: [endpoint.counted(0)], "SELECT_version": [endpoint.numbers("version")]})
    with pytest.raises(SagaNotFoundError):
        run(script, act)


@pytest.mark.parametrize(("act", "word"), [(update, "UPDATE"), (delete, "DELETE")])
def test_a_version_is_refused_only_when_it_was_another(run, endpoint, act, word):
    counts = [endpoint.counted(0), endpoint.counted(0), endpoint.counted(1)]
    script = Script(**{word: counts, "SELECT_version": [endpoint.numbers("version", 5)]})
    run(script, act)
    assert script.seen == [word, "SELECT version"] * 2 + [word]


@pytest.mark.parametrize(("act", "word"), [(update, "UPDATE"), (delete, "DELETE")])
def test_what_a_trigger_wrote_does_not_count(run, endpoint, act, word):
    """Its counts come first."""
    script = Script(**{word: [endpoint.counted(0) + endpoint.counted(1)]})
    run(script, act)
    assert script.seen == [word]
    found = [endpoint.numbers("version", 9)]
    script = Script(**{word: [endpoint.counted(1) + endpoint.counted(0)], "SELECT_version": found})
    with pytest.raises(ConcurrencyError):
        run(script, act)


@pytest.mark.parametrize(("act", "word"), [(update, "UPDATE"), (delete, "DELETE")])
def test_the_victim_of_a_deadlock_is_done_again(run, endpoint, act, word):
    deadlock = endpoint.error(1205, "Transaction was deadlocked.", severity=13)
    script = Script(**{word: [deadlock, deadlock, endpoint.counted(1)]})
    run(script, act)
    assert script.seen == [word] * 3


def test_a_deadlock_that_goes_on_is_told(run, endpoint):
    script = Script(UPDATE=[endpoint.error(1205, "Transaction was deadlocked.", severity=13)])
    with pytest.raises(StoreUnavailableError, match="deadlock"):
        run(script, update)
    assert len(script.seen) == 3


def test_a_purge_passes_over_locked_rows_where_it_can(run, endpoint):
    """At the isolation levels at which the server does not let it, it waits for them."""
    counts = [endpoint.counted(2), endpoint.counted(0)]
    before = datetime(2031, 1, 1, tzinfo=UTC)

    async def purge(store):
        assert await store.delete_completed_before("OrderSaga", before) == 2

    script = Script(READPAST=list(counts), DELETE=[endpoint.counted(9)])
    run(script, purge)
    assert script.seen == ["READPAST", "READPAST"]

    script = Script(READPAST=[endpoint.error(650, "Not at SNAPSHOT.", severity=16)], DELETE=list(counts))
    run(script, purge)
    assert script.seen == ["READPAST", "DELETE"] * 2


def test_a_purge_that_fails_for_another_reason_says_so(run, endpoint):
    script = Script(READPAST=[endpoint.error(229, "DELETE was denied.")], DELETE=[endpoint.counted(9)])
    with pytest.raises(SagaStoreError, match="permission"):
        run(script, lambda store: store.delete_completed_before("OrderSaga", datetime(2031, 1, 1, tzinfo=UTC)))
    assert script.seen == ["READPAST"]

"""What other buses get wrong; each of these must not come back."""

import asyncio
from datetime import timedelta

import pytest

from bus_helpers import NEVER, QUICK, CountingStore, Start, State, Step, Told, run, running
from saga_bus.core import InMemoryTransport, Intervals, RetryPolicy, SagaDefinition, create_bus
from saga_bus.store import ConcurrencyError, SagaFilter, StoreUnavailableError
from saga_bus.store_inmemory import InMemorySagaStore


def counting(name="Saga", *, retry=QUICK, **options):
    saga = SagaDefinition(name, State, correlate="key", retry=retry, **options)

    @saga.starts(Start)
    async def start(message, state, ctx):
        state.values.append(message.value)
        ctx.publish(Told(f"start {message.value}"))

    @saga.continues(Step)
    async def step(message, state, ctx):
        await asyncio.sleep(0)  # others get a turn
        state.values.append(message.value)
        ctx.publish(Told(f"step {message.value}"))

    return saga


def test_nothing_leaves_before_the_state_is_saved():
    seen = []

    class Store(CountingStore):
        async def insert(self, *arguments):
            seen.append(("insert begins", len(transport.sent)))
            await asyncio.sleep(0.01)
            await super().insert(*arguments)
            seen.append(("insert ends", len(transport.sent)))

    transport = InMemoryTransport()

    async def work(place):
        await place.publish(Start("a", 1))
        assert seen == [("insert begins", 1), ("insert ends", 1)]  # the one is the start itself
        assert place.texts == ["start 1"]

    run(work, counting(), store=Store(), transport=transport)


def test_a_handler_whose_state_is_never_saved_sends_nothing():
    async def work(place):
        place.store.raises["insert"] = [ValueError("no")] * 9
        await place.publish(Start("a", 1))
        assert place.texts == []
        assert len(place.transport.dead_letters) == 1

    run(work, counting())


def test_a_new_saga_is_one_write_and_a_continued_one_a_read_and_a_write():
    async def work(place):
        await place.publish(Start("a", 1))
        assert place.store.done == {"get_by_correlation_id": 1, "insert": 1}
        await place.publish(Step("a", 2))
        await place.publish(Step("a", 3))
        assert place.store.done == {"get_by_correlation_id": 3, "insert": 1, "update": 2}
        state = await place.state("Saga", "a")
        assert (state.values, state.metadata.version) == ([1, 2, 3], 2)

    run(work, counting())


@pytest.mark.parametrize("workers", [1, 4])
def test_many_messages_that_start_one_saga_at_once_all_count(workers):
    # The original sends the loser of a duplicate start to the dead letters.
    async def main():
        store, transport = InMemorySagaStore(), InMemoryTransport()
        saga = counting(remember=100)
        async with running(saga, store=store, transport=transport) as place:
            others = [create_bus(transport=transport.peer(), store=store, sagas=[saga]) for _ in range(workers - 1)]
            for other in others:
                await other.start()
            await asyncio.gather(*(place.bus.publish(Start("a", number)) for number in range(40)))
            await transport.drain()
            state = await place.state("Saga", "a")
            assert sorted(state.values) == list(range(40))
            assert transport.dead_letters == []
            assert sorted(place.texts) == sorted(f"start {number}" for number in range(40))
            for other in others:
                await other.stop()

    asyncio.run(main())


def test_parallel_messages_of_one_saga_lose_no_update():
    async def work(place):
        await place.publish(Start("a", 0))
        await asyncio.gather(*(place.bus.publish(Step("a", number)) for number in range(1, 41)))
        await place.transport.drain()
        assert sorted((await place.state("Saga", "a")).values) == list(range(41))
        assert place.transport.dead_letters == []
        assert place.bus.counts["retried"] > 0

    run(work, counting(remember=100))


def test_a_store_that_is_away_for_a_moment_sends_nothing_to_the_dead_letters():
    async def work(place):
        place.store.raises["get_by_correlation_id"] = [StoreUnavailableError("deadlock")] * 8
        place.store.raises["insert"] = [StoreUnavailableError("throttled"), None]
        await place.publish(Start("a", 1))
        assert (await place.state("Saga", "a")).values == [1]
        assert place.transport.dead_letters == []

    run(work, counting())


def test_a_completed_saga_does_not_block_its_correlation_id_for_ever():
    ended = []

    def saga(name, **options):
        made = SagaDefinition(name, State, correlate="key", retry=QUICK, **options)

        @made.starts(Start)
        async def start(message, state, ctx):
            ended.append((name, ctx.is_new, list(state.values)))
            state.values.append(message.value)
            ctx.complete()

        return made

    async def work(place):
        await place.publish(Start("a", 1), Start("a", 2))
        assert [ended.count((name, True, [])) for name in ("Deleting", "Restarting", "Refusing")] == [2, 2, 1]
        assert len(ended) == 5
        (letter,) = place.transport.dead_letters  # never dropped silently
        assert (letter.endpoint, letter.reason) == ("Refusing", "its saga has ended")
        assert (await place.state("Restarting", "a")).values == [2]

    run(work, saga("Deleting", completed="delete"), saga("Restarting", on_completed="restart"), saga("Refusing"))


def test_a_timeout_needs_no_correlation_is_listed_and_survives_the_process():
    saga = SagaDefinition("Saga", State, correlate="key", retry=QUICK)

    @saga.starts(Start)
    async def start(message, state, ctx):
        ctx.set_timeout(timedelta(hours=1))

    @saga.on_timeout
    async def late(state, ctx):
        state.note = f"timed out {ctx.correlation_id}"

    async def main():
        store = InMemorySagaStore()
        async with running(saga, store=store) as place:
            await place.publish(Start("a"))
            in_time = (await place.state("Saga", "a")).metadata.timeout_expires_at
            listed = await store.find(SagaFilter(saga_name="Saga", timeout_due_before=in_time + timedelta(seconds=1)))
            assert [record.correlation_id for record in listed.items] == ["a"]
        async with running(saga, store=store) as place:  # another process
            await place.after(timedelta(minutes=59))
            assert (await place.state("Saga", "a")).note == ""
            await place.after(timedelta(minutes=61))
            assert (await place.state("Saga", "a")).note == "timed out a"

    asyncio.run(main())


def test_a_retry_of_one_saga_runs_no_other_saga_again():
    runs = {"Good": 0, "Bad": 0}

    def saga(name, *, fails):
        made = SagaDefinition(name, State, correlate="key", retry=QUICK)

        @made.starts(Start)
        async def start(message, state, ctx):
            runs[name] += 1
            if runs[name] <= fails:
                raise ValueError("not yet")

        return made

    async def work(place):
        await place.publish(Start("a"))
        assert runs == {"Good": 1, "Bad": 4}
        assert place.transport.dead_letters == []

    run(work, saga("Good", fails=0), saga("Bad", fails=3))


def test_a_conflict_is_reloaded_and_the_handler_sees_what_the_other_wrote():
    seen = []
    saga = SagaDefinition("Saga", State, correlate="key", retry=QUICK)

    @saga.starts(Start)
    async def start(message, state, ctx):
        state.values = [message.value]

    @saga.continues(Step)
    async def step(message, state, ctx):
        seen.append((list(state.values), ctx.attempt))
        if len(seen) == 1:
            other = await store.get_by_correlation_id("Saga", "a")
            other.values.append(99)
            other.metadata = other.metadata.next()
            await store.update("Saga", other, 0)
        state.values.append(message.value)

    store = CountingStore()

    async def work(place):
        await place.publish(Start("a", 1), Step("a", 2))
        assert seen == [([1], 1), ([1, 99], 2)]
        assert (await place.state("Saga", "a")).values == [1, 99, 2]

    run(work, saga, store=store)


def test_what_a_bounded_number_of_conflicts_did_not_solve_is_put_aside_with_everything_known():
    async def work(place):
        await place.publish(Start("a", 1))
        place.store.raises["update"] = [
            ConcurrencyError(saga_name="Saga", saga_id="x", expected_version=0, actual_version=7) for _ in range(99)
        ]
        await place.publish(Step("a", 2))
        (letter,) = place.transport.dead_letters
        assert letter.details["error"] == "saga_bus.store.errors.ConcurrencyError"
        assert letter.details["conflicts"] == "4"
        assert "found version 7" in letter.details["message"]
        assert "Traceback" in letter.details["traceback"]
        assert (letter.details["saga-name"], letter.details["correlation-id"]) == ("Saga", "a")
        assert letter.envelope.body == b'{"key":"a","value":2}'

    run(work, counting(retry=RetryPolicy(conflicts=3)))


def test_the_clock_of_a_bus_does_all_this_by_itself():
    quick = Intervals(timers=timedelta(milliseconds=10), confirm=timedelta(milliseconds=10), recover=NEVER, grace=NEVER)
    saga = SagaDefinition("Saga", State, correlate="key")
    done = asyncio.Event()

    @saga.starts(Start)
    async def start(message, state, ctx):
        ctx.schedule(Step("a", 1), timedelta(milliseconds=5))

    @saga.continues(Step)
    async def step(message, state, ctx):
        ctx.set_timeout(timedelta(milliseconds=5))
        ctx.publish(Told("stepped"))

    @saga.on_timeout
    async def late(state, ctx):
        done.set()

    async def work(place):
        await place.publish(Start("a"))
        await asyncio.wait_for(done.wait(), 30)
        async with asyncio.timeout(30):
            while await place.pending("Saga"):  # noqa: ASYNC110 - a store tells nobody
                await asyncio.sleep(0.01)
        assert place.texts == ["stepped"]

    run(work, saga, intervals=quick)

"""Timeouts and scheduled messages: once, durable, and not when they were taken back."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from bus_helpers import BY_HAND, QUICK, CountingStore, Start, State, Step, Told, run, running
from saga_bus.core import ConfigurationError, InMemoryTransport, RetryPolicy, SagaDefinition, create_bus
from saga_bus.store import SagaFilter, StoreCapabilities
from saga_bus.store_inmemory import InMemorySagaStore

HOUR = timedelta(hours=1)
SOON = timedelta(minutes=1)
LATER = timedelta(hours=2)


def timed(on_step=None, *, on_timeout=None, **options):
    saga = SagaDefinition("Saga", State, correlate="key", **{"retry": QUICK, **options})

    @saga.starts(Start)
    async def start(message, state, ctx):
        ctx.set_timeout(HOUR)

    @saga.continues(Step)
    async def step(message, state, ctx):
        if on_step is not None:
            on_step(ctx)

    @saga.on_timeout
    async def late(state, ctx):
        if on_timeout is not None:
            on_timeout(state, ctx)
        state.values.append(1)
        ctx.publish(Told(f"late {len(state.values)}"))

    return saga


def test_a_timeout_is_delivered_when_it_is_due_and_once():
    async def work(place):
        await place.publish(Start("a"))
        await place.after(SOON)
        assert place.texts == []
        for _ in range(3):
            await place.after(LATER)
        state = await place.state("Saga", "a")
        assert (place.texts, state.values) == (["late 1"], [1])
        assert (state.metadata.timeout, state.metadata.timeout_expires_at) == (None, None)
        assert place.bus.counts["timeouts"] == 1

    run(work, timed())


@pytest.mark.parametrize("how", ["cleared", "completed"])
def test_a_timeout_that_was_taken_back_is_not_delivered(how):
    async def work(place):
        await place.publish(Start("a"), Step("a"))
        await place.after(LATER)
        assert (place.texts, (await place.state("Saga", "a")).metadata.timeout) == ([], None)

    run(work, timed(lambda ctx: ctx.clear_timeout() if how == "cleared" else ctx.complete()))


def test_a_timeout_that_was_set_anew_is_delivered_at_the_new_time():
    async def work(place):
        await place.publish(Start("a"), Step("a"))
        await place.after(LATER)
        assert place.texts == []
        await place.after(timedelta(hours=6))
        assert place.texts == ["late 1"]

    run(work, timed(lambda ctx: ctx.set_timeout(timedelta(hours=5))))


def test_a_message_that_does_not_touch_the_timeout_keeps_it():
    async def work(place):
        await place.publish(Start("a"))
        before = (await place.state("Saga", "a")).metadata
        await place.publish(Step("a"))
        after = (await place.state("Saga", "a")).metadata
        assert (before.timeout, before.timeout_expires_at) == (after.timeout, after.timeout_expires_at)

    run(work, timed())


def test_a_timeout_may_set_the_next_one():
    def again(state, ctx):
        if len(state.values) < 2:
            ctx.set_timeout(HOUR)

    async def work(place):
        await place.publish(Start("a"))
        for _ in range(5):
            await place.after(LATER)
        assert place.texts == ["late 1", "late 2", "late 3"]

    run(work, timed(on_timeout=again))


def test_many_timeouts_are_delivered_once_by_several_workers():
    async def main():
        store, transport = InMemorySagaStore(), InMemoryTransport()
        async with running(timed(), store=store, transport=transport) as place:
            others = [
                create_bus(transport=transport.peer(), store=store, sagas=[timed()], intervals=BY_HAND)
                for _ in range(3)
            ]
            for other in others:
                await other.start()
            await place.publish(*(Start(f"s{number}") for number in range(250)))
            moment = datetime.now(UTC) + LATER
            await asyncio.gather(*(bus.deliver_due(moment) for bus in (place.bus, *others)))
            await transport.drain()
            assert place.texts == ["late 1"] * 250
            for number in range(250):
                assert (await place.state("Saga", f"s{number}")).values == [1]
            assert sum(bus.counts["timeouts"] for bus in (place.bus, *others)) == 250
            for other in others:
                await other.stop()

    asyncio.run(main())


def test_a_timeout_that_lost_against_a_message_is_not_delivered():
    # The timeout is due and in hand when the message that clears it is saved.
    class Store(CountingStore):
        racing = True

        async def update(self, saga_name, state, version):
            if self.racing:
                self.racing = False
                other = await InMemorySagaStore.get_by_id(self, saga_name, state.metadata.saga_id)
                other.metadata = other.metadata.next(timeout=None)
                await InMemorySagaStore.update(self, saga_name, other, version)
            await super().update(saga_name, state, version)

    async def work(place):
        await place.publish(Start("a"))
        await place.after(LATER)
        assert (place.texts, (await place.state("Saga", "a")).values) == ([], [])
        assert place.bus.counts["timeouts"] == 0

    run(work, timed(), store=Store())


def test_a_timeout_whose_handler_fails_stays_and_is_tried_again_later(caplog):
    failing = [True]

    def fail(state, ctx):
        if failing[0]:
            raise ValueError("broken")

    async def work(place):
        await place.publish(Start("a"), Start("b"))
        await place.after(LATER)
        assert place.bus.counts["failed"] == 2
        listed = SagaFilter(saga_name="Saga", timeout_due_before=datetime.now(UTC) + LATER)
        assert await place.store.count(listed) == 2  # never lost
        assert place.transport.dead_letters == []
        failing[0] = False
        await asyncio.sleep(0.01)  # longer than the longest pause
        await place.after(LATER)
        assert place.texts == ["late 1", "late 1"]
        assert await place.store.count(listed) == 0

    patience = RetryPolicy(attempts=2, first_pause=timedelta(milliseconds=1), longest_pause=timedelta(milliseconds=2))
    run(work, timed(on_timeout=fail, retry=patience))
    assert "is tried again later" in caplog.text


def test_a_timeout_completes_and_deletes():
    async def work(place):
        await place.publish(Start("a"))
        await place.after(LATER)
        assert (place.texts, place.store.size) == (["late 1"], 0)

    run(work, timed(on_timeout=lambda state, ctx: ctx.complete(), completed="delete"))


# -- scheduled messages ----------------------------------------------------------------------------------


def scheduling():
    saga = SagaDefinition("Saga", State, correlate="key", retry=QUICK)

    @saga.starts(Start)
    async def start(message, state, ctx):
        ctx.schedule(Step(message.key, 1), HOUR, headers={"own": "1"})
        ctx.schedule(Told("to one"), HOUR, endpoint="ear")
        ctx.publish(Told("at once"))

    @saga.continues(Step)
    async def step(message, state, ctx):
        state.values.append(message.value)
        state.note = ctx.headers["own"]

    return saga


def test_a_scheduled_message_waits_in_the_store_and_keeps_its_id():
    async def main():
        store, transport = InMemorySagaStore(), InMemoryTransport()
        async with running(scheduling(), store=store, transport=transport) as place:
            await place.publish(Start("a"))
            await place.after(SOON)
            assert place.texts == ["at once"]
            waiting = await store.find(SagaFilter(saga_name="saga-bus.scheduled"))
            ids = {record.state.message.id for record in waiting.items}
            assert len(ids) == 2
        other_transport = InMemoryTransport()
        async with running(scheduling(), store=store, transport=other_transport) as place:  # another process, later
            await place.after(LATER)
            await place.after(LATER)
            assert place.texts == ["to one"]
            state = await place.state("Saga", "a")
            assert (state.values, state.note) == ([1], "1")
            assert {envelope.id for envelope in other_transport.sent} == ids
            assert await store.count(SagaFilter(saga_name="saga-bus.scheduled")) == 0

    asyncio.run(main())


def test_the_bus_publishes_and_sends_later_too():
    async def work(place):
        one = await place.bus.publish(Told("later"), delay=HOUR)
        two = await place.bus.send("ear", Told("later, to one"), delay=timedelta(hours=3))
        await place.transport.drain()
        assert place.texts == []
        await place.after(LATER)
        assert ([envelope.id for envelope in place.heard], place.texts) == ([one], ["later"])
        await place.after(timedelta(hours=4))
        assert [envelope.id for envelope in place.heard] == [one, two]

    run(work)


def test_several_workers_send_what_is_due_once():
    async def main():
        store, transport = InMemorySagaStore(), InMemoryTransport()
        async with running(store=store, transport=transport) as place:
            others = [create_bus(transport=transport.peer(), store=store, intervals=BY_HAND) for _ in range(3)]
            for other in others:
                await other.start()
            for number in range(450):
                await place.bus.publish(Told(str(number)), delay=HOUR)
            moment = datetime.now(UTC) + LATER
            sent = await asyncio.gather(*(bus.deliver_due(moment) for bus in (place.bus, *others)))
            await transport.drain()
            assert sum(sent) == 450
            assert sorted(place.texts, key=int) == [str(number) for number in range(450)]
            for other in others:
                await other.stop()

    asyncio.run(main())


def test_buses_of_two_names_do_not_send_each_others_messages():
    async def main():
        store = InMemorySagaStore()
        async with running(store=store, name="ours") as ours, running(store=store, name="theirs") as theirs:
            await ours.bus.publish(Told("ours"), delay=HOUR)
            await theirs.after(LATER)
            assert theirs.texts == []
            await ours.after(LATER)
            assert ours.texts == ["ours"]

    asyncio.run(main())


def test_a_delay_needs_a_store_that_can_find_what_is_due():
    class NoQuery(CountingStore):
        capabilities = StoreCapabilities()

    async def main():
        async with running(store=NoQuery()) as place:
            with pytest.raises(ConfigurationError, match="declares no query"):
                await place.bus.publish(Told("x"), delay=HOUR)
        bus = create_bus(transport=InMemoryTransport())
        async with bus:
            with pytest.raises(ConfigurationError, match="needs a store"):
                await bus.publish(Told("x"), delay=HOUR)
            with pytest.raises(ConfigurationError, match="at least zero"):
                await bus.publish(Told("x"), delay=-HOUR)

    asyncio.run(main())

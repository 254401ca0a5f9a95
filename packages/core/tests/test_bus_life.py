"""Starting, stopping, whose stores are whose, and what is in hand when a bus stops."""

import asyncio
import logging
from datetime import timedelta

import pytest

from bus_helpers import BY_HAND, QUICK, CountingStore, Start, State, Step, Told, run, running
from saga_bus.core import (
    BusStoppedError,
    InMemoryTransport,
    Owned,
    SagaDefinition,
    SagaRegistration,
    TransportClosedError,
    TransportUnavailableError,
    create_bus,
    log_messages,
)
from saga_bus.store import SchemaError, StoreClosedError, StoreUnavailableError, UntypedSagaState
from saga_bus.store_inmemory import InMemorySagaStore
from saga_bus.store_sqlite import SqliteSagaStore


def waiting(gate, *, name="Saga", begun=None):
    saga = SagaDefinition(name, State, correlate="key", retry=QUICK)

    @saga.starts(Start)
    async def start(message, state, ctx):
        state.values.append(message.value)
        ctx.publish(Told(f"{name} {message.key}"))
        if begun is not None:
            begun.set()
        if gate is not None:
            await gate.wait()

    @saga.continues(Step)
    async def step(message, state, ctx):
        state.values.append(message.value)

    return saga


async def closed(store):
    try:
        await store.get_by_id("Saga", "x")
    except StoreClosedError:
        return True
    return False


# -- whose is what ---------------------------------------------------------------------------------------


def test_a_store_that_is_given_stays_open_and_one_that_is_owned_is_closed():
    async def main():
        given, owned, own_of_saga = InMemorySagaStore(), InMemorySagaStore(), InMemorySagaStore()
        transport = InMemoryTransport()
        bus = create_bus(
            transport=transport,
            store=Owned(owned),
            sagas=[
                SagaRegistration(waiting(None, name="A")),
                SagaRegistration(waiting(None, name="B"), store=given),
                SagaRegistration(waiting(None, name="C"), store=Owned(own_of_saga)),
                SagaRegistration(waiting(None, name="D"), store=Owned(owned)),
            ],
        )
        async with bus:
            await bus.publish(Start("a", 1))
            await transport.drain()
            for store, name in ((owned, "A"), (given, "B"), (own_of_saga, "C"), (owned, "D")):
                assert (await store.get_by_correlation_id(name, "a")).values == [1]
                assert store.size == (2 if store is owned else 1)
        assert [await closed(store) for store in (given, owned, own_of_saga)] == [False, True, True]

    asyncio.run(main())


def test_a_store_from_a_url_is_the_buses_own(tmp_path):
    async def main():
        url = f"sqlite:///{tmp_path / 'sagas.db'}"
        async with SqliteSagaStore(tmp_path / "sagas.db") as store:
            await store.create_schema()
        transport = InMemoryTransport()
        async with create_bus(transport=transport, store=url, sagas=[waiting(None)]) as bus:
            await bus.publish(Start("a", 1))
            await transport.drain()
        async with SqliteSagaStore(tmp_path / "sagas.db", state_types={"Saga": State}) as store:
            assert (await store.get_by_correlation_id("Saga", "a")).values == [1]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["sagas.db"]  # closed: no WAL is left

    asyncio.run(main())


def test_the_bus_tells_the_stores_its_state_types():
    async def main():
        store = InMemorySagaStore("memory://typed")
        await store.insert("Saga", "a", UntypedSagaState(data={"values": [1], "note": "x"}))
        create_bus(transport=InMemoryTransport(), store=store, sagas=[waiting(None)])
        assert isinstance(await store.get_by_correlation_id("Saga", "a"), State)

    asyncio.run(main())


def test_the_transport_is_started_and_closed():
    async def main():
        transport = InMemoryTransport()
        async with create_bus(transport=transport):
            pass
        with pytest.raises(TransportClosedError):
            await transport.start()

    asyncio.run(main())


# -- starting --------------------------------------------------------------------------------------------


def test_a_missing_schema_is_said_at_the_start_and_everything_is_closed_again(tmp_path):
    async def main():
        store = SqliteSagaStore(tmp_path / "sagas.db")
        transport = InMemoryTransport()
        bus = create_bus(transport=transport, store=Owned(store), sagas=[waiting(None)])
        with pytest.raises(SchemaError, match="create_schema"):
            await bus.start()
        assert await closed(store)
        with pytest.raises(TransportClosedError):
            await transport.start()
        with pytest.raises(BusStoppedError):
            await bus.publish(Start("a"))

    asyncio.run(main())


def test_a_transport_that_cannot_connect_is_the_error_that_is_raised():
    class Away(InMemoryTransport):
        async def start(self):
            raise TransportUnavailableError("no broker")

        async def stop_receiving(self):
            raise TransportClosedError("it never was open")

    async def main():
        store = InMemorySagaStore()
        bus = create_bus(transport=Away(), store=Owned(store), sagas=[waiting(None)])
        with pytest.raises(TransportUnavailableError, match="no broker") as caught:
            await bus.start()
        assert "it never was open" in caught.value.__notes__[0]
        assert await closed(store)

    asyncio.run(main())


def test_a_store_that_is_away_at_the_start_may_come_later(caplog):
    class Away(CountingStore):
        capabilities = type(CountingStore.capabilities)(conditional_delete=True, query=True, schema=True)

        async def check_schema(self):
            raise StoreUnavailableError("not yet")

    async def work(place):
        await place.publish(Start("a", 1))
        assert (await place.state("Saga", "a")).values == [1]

    run(work, waiting(None), store=Away())
    assert "cannot be reached yet" in caplog.text


def test_a_bus_is_started_once_and_used_while_it_runs():
    async def main():
        bus = create_bus(transport=InMemoryTransport(), store=InMemorySagaStore(), sagas=[waiting(None)])
        with pytest.raises(BusStoppedError):
            await bus.publish(Start("a"))
        await bus.start()
        with pytest.raises(BusStoppedError):
            await bus.start()
        await bus.stop()
        await bus.stop()
        for use in (bus.publish(Start("a")), bus.send("Saga", Start("a")), bus.start()):
            with pytest.raises(BusStoppedError):
                await use

    asyncio.run(main())


def test_a_bus_that_was_never_started_can_be_stopped():
    asyncio.run(create_bus(transport=InMemoryTransport()).stop())


# -- stopping --------------------------------------------------------------------------------------------


def test_stopping_finishes_what_is_in_hand():
    async def main():
        gate, begun = asyncio.Event(), asyncio.Event()
        store, transport = InMemorySagaStore(), InMemoryTransport()
        async with running(waiting(gate, begun=begun), store=store, transport=transport) as place:
            await place.bus.publish(Start("a", 1))
            await begun.wait()
            stopping = asyncio.create_task(place.bus.stop())
            await asyncio.sleep(0.02)
            assert not stopping.done()
            gate.set()
            await stopping
            assert (await store.get_by_correlation_id("Saga", "a")).metadata.outbox == ()
            assert [b"Saga a" in envelope.body for envelope in transport.sent] == [False, True]

    asyncio.run(main())


def test_what_does_not_finish_in_time_is_given_back_and_handled_by_another():
    async def main():
        begun = asyncio.Event()
        store, transport = InMemorySagaStore(), InMemoryTransport()
        async with running(waiting(asyncio.Event(), begun=begun), store=store, transport=transport) as place:
            await place.bus.publish(Start("a", 1))
            await begun.wait()
            await place.bus.stop(within=timedelta(milliseconds=20))
            assert await place.state("Saga", "a") is None
        async with running(waiting(None), store=store, transport=transport.peer()) as place:
            await place.transport.drain()
            assert (await place.state("Saga", "a")).values == [1]
            assert b"Saga a" in transport.sent[-1].body

    asyncio.run(main())


def test_a_message_that_waits_for_its_retry_is_given_back_too():
    async def main():
        saga = SagaDefinition("Saga", State, correlate="key")  # pauses of the usual length
        failed = asyncio.Event()

        @saga.starts(Start)
        async def start(message, state, ctx):
            failed.set()
            raise ValueError("broken")

        transport = InMemoryTransport()
        async with running(saga, transport=transport) as place:
            await place.bus.publish(Start("a"))
            await failed.wait()
            await place.bus.stop(within=timedelta(0))
        await asyncio.sleep(0.01)
        assert transport.waiting("Saga") == 1
        assert transport.dead_letters == []

    asyncio.run(main())


def test_nothing_new_is_begun_while_the_bus_stops():
    async def main():
        gate, begun = asyncio.Event(), asyncio.Event()
        transport = InMemoryTransport()
        async with running(waiting(gate, begun=begun), transport=transport, concurrency=1) as place:
            await place.bus.publish(Start("a", 1))
            await begun.wait()
            await place.bus.publish(Start("b", 2))
            stopping = asyncio.create_task(place.bus.stop())
            await asyncio.sleep(0.02)
            gate.set()
            await stopping
            assert await place.state("Saga", "b") is None
        assert transport.waiting("Saga") == 1

    asyncio.run(main())


def test_no_task_is_left_behind():
    async def main():
        async with running(waiting(None)) as place:
            await place.publish(Start("a"))
            await place.transport.close()
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert {task.get_coro().__qualname__ for task in left} <= {"InMemoryTransport._consume"}  # the ear's

    asyncio.run(main())


def test_concurrency_is_a_bound():
    now, most = 0, 0
    saga = SagaDefinition("Saga", State, correlate="key")

    @saga.starts(Start)
    async def start(message, state, ctx):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1

    async def work(place):
        await place.publish(*(Start(str(number)) for number in range(30)))
        assert most == 3

    run(work, SagaRegistration(saga, concurrency=3), concurrency=9)


# -- publishing ------------------------------------------------------------------------------------------


def test_what_the_bus_publishes():
    async def work(place):
        one = await place.bus.publish(Told("1"))
        two = await place.bus.send("ear", Told("2"), headers={"own": "1"}, message_id="mine")
        await place.transport.drain()
        assert ([envelope.id for envelope in place.heard], two) == ([one, "mine"], "mine")
        assert [envelope.headers for envelope in place.heard] == [
            {"traceparent": "t"},
            {"traceparent": "t", "own": "1"},
        ]
        assert all(envelope.sent_at.tzinfo is not None for envelope in place.heard)

    run(work, outgoing_headers=lambda: {"traceparent": "t"})


def test_the_counts_are_a_copy():
    async def work(place):
        place.bus.counts["handled"] = 99
        assert place.bus.counts["handled"] == 0

    run(work, waiting(None))


# -- middleware ------------------------------------------------------------------------------------------


def test_middleware_is_around_everything_in_the_order_given():
    steps = []

    def watch(name):
        async def middleware(handling, call_next):
            steps.append((name, "before", handling.outcome, handling.message))
            handling.outgoing_headers["by"] = handling.outgoing_headers.get("by", "") + name
            await call_next()
            steps.append((name, "after", handling.outcome, handling.correlation_id))

        return middleware

    async def work(place):
        await place.publish(Start("a"))
        assert steps == [
            ("1", "before", None, None),
            ("2", "before", None, None),
            ("2", "after", "handled", "a"),
            ("1", "after", "handled", "a"),
        ]
        assert place.heard[0].headers["by"] == "12"

    run(work, waiting(None), middleware=[watch("1"), watch("2")])


@pytest.mark.parametrize(
    ("message", "outcome", "retries"),
    [(Start("a", 1), "handled", 0), (Step("b"), "dead-lettered", 0), (Start("c", 2), "dead-lettered", 4)],
)
def test_middleware_sees_how_it_ended(message, outcome, retries):
    seen = []
    saga = SagaDefinition("Saga", State, correlate="key", retry=QUICK)

    @saga.starts(Start)
    async def start(message, state, ctx):
        if message.value == 2:
            raise ValueError("broken")

    @saga.continues(Step)
    async def step(message, state, ctx): ...

    async def watch(handling, call_next):
        await call_next()
        seen.append((handling.kind, handling.outcome, handling.retries, handling.error is None, handling.message))
        assert handling.seconds > 0

    async def work(place):
        await place.publish(message)
        assert seen == [("message", outcome, retries, outcome == "handled", message)]

    run(work, saga, middleware=[watch])


def test_middleware_sees_timeouts_and_what_cannot_be_decoded():
    seen = []

    async def watch(handling, call_next):
        await call_next()
        seen.append((handling.kind, handling.outcome, handling.envelope.name))

    saga = SagaDefinition("Saga", State, correlate="key")

    @saga.starts(Start)
    async def start(message, state, ctx):
        ctx.set_timeout(timedelta(hours=1))

    @saga.on_timeout
    async def late(state, ctx): ...

    async def work(place):
        await place.publish(Start("a"))
        await place.bus.send("Saga", Told("x"))
        await place.transport.drain()
        await place.after(timedelta(hours=2))
        assert seen == [
            ("message", "handled", "Start"),
            ("message", "dead-lettered", "Told"),
            ("timeout", "handled", "saga-bus.timeout"),
        ]

    run(work, saga, middleware=[watch])


def test_a_middleware_that_raises_before_is_retried_and_then_put_aside():
    calls = []

    async def broken(handling, call_next):
        calls.append(handling.envelope.id)
        raise RuntimeError("broken")

    async def work(place):
        await place.publish(Start("a"))
        assert len(calls) == 5
        assert place.transport.dead_letters[0].reason == "a middleware raised"

    run(work, waiting(None), middleware=[broken])


def test_a_middleware_that_raises_after_changes_nothing(caplog):
    async def broken(handling, call_next):
        await call_next()
        raise RuntimeError("broken")

    async def work(place):
        await place.publish(Start("a", 1))
        assert (await place.state("Saga", "a")).values == [1]
        assert place.bus.counts == {"handled": 1}
        assert place.transport.dead_letters == []

    run(work, waiting(None), middleware=[broken])
    assert "a middleware raised after the end" in caplog.text


def test_a_middleware_that_leaves_a_message_out_acknowledges_it(caplog):
    async def skip(handling, call_next): ...

    async def work(place):
        await place.publish(Start("a"))
        assert (place.store.done, place.bus.counts["ignored"]) == ({}, 1)
        assert place.transport.waiting("Saga") == 0

    run(work, waiting(None), middleware=[skip])
    assert "a middleware left out a Start" in caplog.text


def test_the_logging_middleware_names_what_happened_and_shows_no_field(caplog):
    caplog.set_level(logging.DEBUG, logger="saga_bus.core.messages")

    async def work(place):
        await place.publish(Start("a", 424242), message_id="m-1")
        await place.publish(Step("b", 424242))

    run(work, waiting(None), middleware=[log_messages()])
    first, second = [record for record in caplog.records if record.name == "saga_bus.core.messages"]
    assert (first.levelname, first.outcome, first.correlation_id, first.message_id) == ("INFO", "handled", "a", "m-1")
    assert first.getMessage().startswith("Saga a: Start m-1, handled after 1 attempts, ")
    assert (second.levelname, second.outcome) == ("ERROR", "dead-lettered")
    assert "424242" not in caplog.text


def test_the_logging_middleware_takes_a_logger_and_a_level(caplog):
    caplog.set_level(logging.DEBUG)

    async def work(place):
        await place.publish(Start("a"))

    run(work, waiting(None), middleware=[log_messages(logging.getLogger("mine"), level=logging.DEBUG)])
    assert [record.levelname for record in caplog.records if record.name == "mine"] == ["DEBUG"]


def test_two_buses_on_one_store_and_transport_share_the_work():
    async def main():
        store, transport = InMemorySagaStore(), InMemoryTransport()
        async with (
            running(waiting(None), store=store, transport=transport) as one,
            running(waiting(None), store=store, transport=transport.peer(), intervals=BY_HAND) as two,
        ):
            for number in range(400):
                await one.bus.publish(Start(f"s{number}", 1))
            await transport.drain()
            handled = [place.bus.counts["handled"] for place in (one, two)]
            assert sum(handled) == 400
            assert store.size == 400

    asyncio.run(main())

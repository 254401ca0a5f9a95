"""What is saved to be sent: sent in order, confirmed lazily, recovered by others, and never lost."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from bus_helpers import QUICK, CountingStore, Start, State, Step, Told, run, running
from saga_bus.core import Envelope, InMemoryTransport, SagaDefinition, TransportError, TransportUnavailableError
from saga_bus.core.outgoing import Outgoing
from saga_bus.store import SagaFilter, SagaMetadata, StoreCapabilities
from saga_bus.store_inmemory import InMemorySagaStore

NOW = timedelta(0)


def telling(**options):
    saga = SagaDefinition("Saga", State, correlate="key", **{"retry": QUICK, **options})

    @saga.starts(Start)
    async def start(message, state, ctx):
        ctx.publish(Told(f"{message.key} 1"))
        ctx.publish(Told(f"{message.key} 2"))

    @saga.continues(Step)
    async def step(message, state, ctx):
        state.values.append(message.value)
        ctx.publish(Told(f"{message.key} {message.value}"))
        if message.value == 9:
            ctx.complete()

    return saga


def left_behind(key, *texts, by="another", at=None, **changes):
    """The state of a saga whose worker died after it had saved messages and before it sent them."""
    entries = tuple(
        Outgoing.of(Told(text), id=f"id of {text}", headers={}, by=by).entry() | ({"at": at.isoformat()} if at else {})
        for text in texts
    )
    metadata = SagaMetadata.fresh()
    changed = {name: getattr(metadata, name) for name in metadata.__struct_fields__}
    return State(metadata=SagaMetadata(**{**changed, "outbox": entries, **changes}))


def test_the_next_write_confirms_and_costs_nothing():
    async def work(place):
        await place.publish(Start("a"))
        assert (
            len(
                (await place.store.get_by_id("Saga", (await place.state("Saga", "a")).metadata.saga_id)).metadata.outbox
            )
            == 2
        )
        await place.publish(Step("a", 3))
        assert [entry["body"] for entry in (await place.state("Saga", "a")).metadata.outbox] == ['{"text":"a 3"}']
        assert place.texts == ["a 1", "a 2", "a 3"]
        assert place.store.done["update"] == 1

    run(work, telling())


def test_what_no_later_write_took_along_is_confirmed_when_the_saga_is_quiet():
    async def work(place):
        await place.publish(*(Start(f"s{number}") for number in range(150)))
        assert await place.pending("Saga") == 150
        outbox = place.bus._workers[0][0].outbox
        assert await outbox.confirm(3600) == 0  # none was quiet for so long
        assert await place.bus.confirm() == 150
        assert (await place.pending("Saga"), len(outbox)) == (0, 0)
        assert await place.bus.confirm() == 0
        assert len(place.texts) == 300

    run(work, telling())


def test_stopping_confirms_what_was_sent():
    async def main():
        store = InMemorySagaStore()
        async with running(telling(), store=store) as place:
            await place.publish(Start("a"))
            assert await place.pending("Saga") == 1
        assert await store.count(SagaFilter(saga_name="Saga", outbox_pending=True)) == 0

    asyncio.run(main())


def test_the_memory_of_what_was_sent_is_bounded(monkeypatch):
    monkeypatch.setattr("saga_bus.core.outbox._MOST_UNCONFIRMED", 10)

    async def work(place):
        await place.publish(*(Start(f"s{number}") for number in range(100)))
        assert len(place.bus._workers[0][0].outbox) <= 10
        assert await place.pending("Saga") <= 10

    run(work, telling())


def test_messages_of_one_saga_keep_their_order_when_the_first_is_slow():
    class Slow(InMemoryTransport):
        async def publish(self, envelope):
            if b"a 1" in envelope.body:
                await asyncio.sleep(0.05)
            await super().publish(envelope)

    async def work(place):
        await place.bus.publish(Start("a"))
        async with asyncio.timeout(30):
            while await place.state("Saga", "a") is None:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await place.publish(Step("a", 3), Step("a", 4))
        assert place.texts == ["a 1", "a 2", "a 3", "a 4"]

    run(work, telling(), transport=Slow())


def test_a_transport_that_is_away_for_a_moment_gets_every_message_once():
    class Away(InMemoryTransport):
        left = 3

        async def publish(self, envelope):
            if b"text" in envelope.body and self.left:
                self.left -= 1
                raise TransportUnavailableError("away")
            await super().publish(envelope)

    async def work(place):
        await place.publish(Start("a"))
        assert place.texts == ["a 1", "a 2"]
        assert place.store.done["insert"] == 1
        assert place.bus.counts["handled"] == 1

    run(work, telling(), transport=Away())


def test_a_worker_takes_over_what_another_one_left():
    async def work(place):
        await place.store.insert("Saga", "a", left_behind("a", "x", "y"))
        await place.store.insert("Saga", "b", left_behind("b", "z"))
        assert await place.bus.recover() == 0  # within the grace it is the other worker's
        assert await place.bus.recover(NOW) == 3
        await place.transport.drain()
        assert sorted(place.texts) == ["x", "y", "z"]
        assert sorted(envelope.id for envelope in place.heard) == ["id of x", "id of y", "id of z"]
        assert await place.pending("Saga") == 0
        assert await place.bus.recover(NOW) == 0
        assert place.bus.counts["recovered"] == 3

    run(work, telling())


def test_recovery_goes_through_all_pages():
    async def work(place):
        for number in range(250):
            await place.store.insert("Saga", f"s{number}", left_behind("s", f"text {number}"))
        assert await place.bus.recover(NOW) == 250
        assert await place.pending("Saga") == 0

    run(work, telling())


def test_young_entries_of_another_worker_are_left_to_it_and_stay():
    async def work(place):
        await place.store.insert("Saga", "a", left_behind("a", "theirs"))
        await place.publish(Step("a", 3))
        assert place.texts == ["a 3"]
        outbox = (await place.state("Saga", "a")).metadata.outbox
        assert [entry["body"] for entry in outbox] == ['{"text":"theirs"}', '{"text":"a 3"}']
        await place.bus.confirm()
        assert [entry["id"] for entry in (await place.state("Saga", "a")).metadata.outbox] == ["id of theirs"]

    run(work, telling())


def test_old_entries_of_another_worker_go_first():
    async def work(place):
        old = datetime.now(UTC) - timedelta(hours=1)
        await place.store.insert("Saga", "a", left_behind("a", "theirs", at=old))
        await place.publish(Step("a", 3))
        assert place.texts == ["theirs", "a 3"]

    run(work, telling())


@pytest.mark.parametrize("redelivered", [True, False])
def test_a_message_that_comes_again_sends_what_its_first_worker_did_not(redelivered):
    # One that was not delivered before is a copy: the worker with the other copy is at work just now.
    async def work(place):
        await place.store.insert("Saga", "a", left_behind("a", "theirs", handled=("one",)))
        envelope = Envelope(id="one", name="Step", body=b'{"key":"a","value":3}', sent_at=datetime.now(UTC))
        place.transport._broker.put("Saga", envelope, 2 if redelivered else 1)
        await place.transport.drain()
        assert place.texts == (["theirs"] if redelivered else [])
        assert (await place.state("Saga", "a")).values == []
        await place.bus.recover(NOW)
        await place.transport.drain()
        assert place.texts == ["theirs"]

    run(work, telling())


def test_on_a_store_without_a_search_a_message_that_comes_again_always_sends_what_is_left():
    class NoQuery(CountingStore):
        capabilities = StoreCapabilities(conditional_delete=True)

    async def work(place):
        await place.store.insert("Saga", "a", left_behind("a", "theirs", handled=("one",)))
        await place.publish(Step("a", 3), message_id="one")
        assert place.texts == ["theirs"]
        assert await place.bus.recover(NOW) == 0

    run(work, telling(), store=NoQuery())


def test_a_completed_saga_with_messages_of_another_worker_is_not_deleted_before_they_are_sent():
    async def work(place):
        await place.store.insert("Saga", "a", left_behind("a", "theirs"))
        await place.publish(Step("a", 9))
        state = await place.state("Saga", "a")
        assert state.metadata.is_completed
        assert place.texts == ["a 9"]
        assert await place.bus.recover(NOW) == 1
        await place.transport.drain()
        assert place.texts == ["a 9", "theirs"]
        assert await place.state("Saga", "a") is None

    run(work, telling(completed="delete"))


def test_a_saga_that_ended_and_whose_worker_died_before_the_delete_is_deleted():
    async def work(place):
        for number in range(120):
            await place.store.insert("Saga", f"s{number}", left_behind("s", is_completed=True))
        await place.store.insert("Saga", "running", left_behind("s"))
        assert await place.bus.recover() == 0
        assert place.store.size == 121
        await place.bus.recover(NOW)
        assert place.store.size == 1

    run(work, telling(completed="delete"))


def test_an_entry_that_cannot_be_read_stays_and_holds_up_no_other(caplog):
    async def work(place):
        state = left_behind("a", "readable")
        broken = SagaMetadata(
            **{
                **{name: getattr(state.metadata, name) for name in state.metadata.__struct_fields__},
                "outbox": ({"id": "odd", "of": "another version"}, *state.metadata.outbox),
            }
        )
        await place.store.insert("Saga", "a", State(metadata=broken))
        assert await place.bus.recover(NOW) == 1
        assert [entry["id"] for entry in (await place.state("Saga", "a")).metadata.outbox] == ["odd"]

    run(work, telling())
    assert "an entry of the outbox cannot be read" in caplog.text


@pytest.mark.parametrize("error", [TransportError("too large"), TransportUnavailableError("away")])
def test_one_message_that_cannot_be_sent_does_not_stop_the_recovery_of_others(error):
    class Picky(InMemoryTransport):
        async def publish(self, envelope):
            if b"bad" in envelope.body:
                raise error
            await super().publish(envelope)

    async def work(place):
        await place.store.insert("Saga", "a", left_behind("a", "bad"))
        await place.store.insert("Saga", "b", left_behind("b", "good"))
        if error.retryable:
            with pytest.raises(TransportUnavailableError):
                await place.bus.recover(NOW)
        else:
            assert await place.bus.recover(NOW) == 1
        await place.transport.drain()
        assert (place.texts, await place.pending("Saga")) == (["good"], 1)

    run(work, telling(), transport=Picky())


def test_recovery_runs_by_itself_at_the_start():
    async def main():
        store = CountingStore()
        long_ago = datetime.now(UTC) - timedelta(hours=1)
        await store.insert("Saga", "a", left_behind("a", "theirs", updated_at=long_ago))
        async with running(telling(), store=store) as place:
            async with asyncio.timeout(30):
                while not place.texts:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            assert place.texts == ["theirs"]

    asyncio.run(main())

"""The bus drives states of every kind that the stores take, and says what cannot be."""

import asyncio
import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import attrs
import pydantic
import pytest

from bus_helpers import QUICK, CountingStore, Start, State, Step, Told, run, running
from saga_bus.core import (
    ConfigurationError,
    InMemoryTransport,
    SagaDefinition,
    SagaRegistration,
    TransportError,
    create_bus,
)
from saga_bus.store import JsonStateCodec, SagaMetadata, SagaState, StoreUnavailableError
from saga_bus.store_inmemory import InMemorySagaStore


class Frozen(SagaState, kw_only=True, frozen=True):
    values: tuple[int, ...] = ()


@dataclass
class Data:
    metadata: SagaMetadata = field(default_factory=SagaMetadata.fresh)
    values: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FrozenData:
    metadata: SagaMetadata = field(default_factory=SagaMetadata.fresh)
    values: tuple[int, ...] = ()


@attrs.define
class Attrs:
    metadata: SagaMetadata = attrs.field(factory=SagaMetadata.fresh)
    values: tuple[int, ...] = ()


class Model(pydantic.BaseModel):
    metadata: SagaMetadata = pydantic.Field(default_factory=SagaMetadata.fresh)
    values: tuple[int, ...] = ()


def changed(state, values):
    if isinstance(state, Frozen):
        return Frozen(metadata=state.metadata, values=values)
    if isinstance(state, FrozenData):
        return dataclasses.replace(state, values=values)
    state.values = values
    return None


@pytest.mark.parametrize("kind", [Frozen, Data, FrozenData, Attrs, Model])
def test_states_of_every_kind(kind):
    saga = SagaDefinition("Saga", kind, correlate="key")

    @saga.starts(Start)
    async def start(message, state, ctx):
        ctx.publish(Told("started"))
        ctx.set_timeout(timedelta(hours=1))
        return changed(state, (message.value,))

    @saga.continues(Step)
    async def step(message, state, ctx):
        return changed(state, (*state.values, message.value))

    @saga.on_timeout
    async def late(state, ctx):
        ctx.complete()

    async def work(place):
        await place.publish(Start("a", 1), Step("a", 2))
        await place.bus.confirm()
        await place.after(timedelta(hours=2))
        state = await place.state("Saga", "a")
        assert (type(state), state.values, state.metadata.is_completed) == (kind, (1, 2), True)
        assert len(state.metadata.handled) == 3
        assert place.transport.dead_letters == []

    run(work, saga)


class OwnCodec:
    """Knows its types by itself and takes none."""

    def __init__(self):
        self._codec = JsonStateCodec({"Saga": State})

    def encode(self, state):
        return self._codec.encode(state)

    def decode(self, saga_name, document):
        return self._codec.decode(saga_name, document)


def starting(name="Saga"):
    saga = SagaDefinition(name, State, correlate="key", retry=QUICK)

    @saga.starts(Start)
    async def start(message, state, ctx):
        state.values.append(message.value)

    return saga


def test_a_codec_that_knows_its_types_by_itself():
    async def work(place):
        await place.publish(Start("a", 1))
        assert (await place.state("Saga", "a")).values == [1]
        with pytest.raises(ConfigurationError, match="takes no state types"):
            await place.bus.publish(Told("x"), delay=timedelta(hours=1))

    run(work, starting(), store=CountingStore(codec=OwnCodec()))


def test_a_store_that_has_another_type_for_the_saga_is_refused():
    store = InMemorySagaStore(state_types={"Saga": Frozen})
    with pytest.raises(ConfigurationError, match="has the state type Frozen already"):
        create_bus(transport=InMemoryTransport(), store=store, sagas=[starting()])


def test_a_context_that_is_used_too_late_says_so():
    kept = []
    saga = SagaDefinition("Saga", State, correlate="key")

    @saga.starts(Start)
    async def start(message, state, ctx):
        ctx.publish(Told("in time"))
        kept.append(ctx)

    async def work(place):
        await place.publish(Start("a"))
        (ctx,) = kept
        for use in (lambda: ctx.publish(Told("late")), ctx.complete, ctx.clear_timeout):
            with pytest.raises(Exception, match="after its handler had returned"):
                use()
        assert place.texts == ["in time"]

    run(work, saga)


def test_a_store_that_is_away_holds_up_the_timers_of_no_other_store():
    timed = SagaDefinition("Timed", State, correlate="key")
    fired = []

    @timed.starts(Start)
    async def start(message, state, ctx):
        ctx.set_timeout(timedelta(hours=1))

    @timed.on_timeout
    async def late(state, ctx):
        fired.append(ctx.correlation_id)

    class Away(CountingStore):
        async def find(self, *arguments, **options):
            raise StoreUnavailableError("away")

    async def main():
        good = CountingStore()
        async with running(SagaRegistration(starting(), store=Away()), timed, store=good) as place:
            await place.publish(Start("a"))
            moment = datetime.now(UTC) + timedelta(hours=2)
            with pytest.raises(StoreUnavailableError):
                await place.bus.deliver_due(moment)
            assert fired == ["a"]
            with pytest.raises(StoreUnavailableError):
                await place.bus.recover(timedelta(0))

    asyncio.run(main())


def test_a_scheduled_message_that_cannot_be_sent_holds_up_no_other_one():
    class Picky(InMemoryTransport):
        async def publish(self, envelope):
            if b"bad" in envelope.body:
                raise TransportError("too large")
            await super().publish(envelope)

    async def work(place):
        for text in ("bad", "good"):
            await place.bus.publish(Told(text), delay=timedelta(hours=1))
        await place.after(timedelta(hours=2))
        assert place.texts == ["good"]
        assert place.store.size == 1  # it stays, to be looked at

    run(work, transport=Picky())

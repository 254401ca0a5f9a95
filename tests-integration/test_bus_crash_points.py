"""A bus dies, or one of its steps fails, at every step between the first message and the last; nothing is lost.

The work of two sagas is driven once without a fault, and its steps towards the store and the transport are counted:
reads, inserts, updates, deletes, searches, publishing, sending, acknowledging. Then it is driven once for each step
with the process dead before it, dead after it, and with an error as its answer, before and after it was done. A second
bus takes over what a dead one left. The end must be the same every time.
"""

import asyncio
import random
import uuid
from collections import Counter, defaultdict
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import ClassVar

import msgspec
import pytest

from faults.power import Power, PowerCutError, PoweredStore, PoweredTransport
from saga_bus.core import (
    InMemoryTransport,
    Intervals,
    RetryPolicy,
    SagaContext,
    SagaDefinition,
    TransportError,
    create_bus,
)
from saga_bus.core.cycle import SagaCycle
from saga_bus.core.outbox import Outbox
from saga_bus.core.outgoing import Outgoing
from saga_bus.core.schedules import Schedules
from saga_bus.core.worker import SagaWorker
from saga_bus.store import SagaFilter, SagaState, SagaStoreError, with_metadata
from saga_bus.store_inmemory import InMemorySagaStore
from saga_bus.store_postgres import PostgresSagaStore
from saga_bus.store_sqlite import SqliteSagaStore

ORDER = "order-1"
FAR = timedelta(days=1)
NEVER = timedelta(days=30)
# Nothing happens by the clock: the scenario says when due things are delivered and what was sent is confirmed.
BY_HAND = Intervals(timers=NEVER, confirm=NEVER, recover=NEVER, grace=timedelta(seconds=30))
QUICK = RetryPolicy(first_pause=timedelta(milliseconds=1), longest_pause=timedelta(milliseconds=2))


class Placed(msgspec.Struct):
    order_id: str


class RequestPayment(msgspec.Struct):
    order_id: str


class Paid(msgspec.Struct):
    order_id: str


class Reminder(msgspec.Struct):
    order_id: str


class Event(msgspec.Struct):
    """What the outside hears; each text is one logical message."""

    message_name: ClassVar[str] = "Event"
    text: str


class OrderState(SagaState, kw_only=True):
    placed: int = 0
    paid: int = 0
    reminded: int = 0
    timed_out: int = 0


class PaymentState(SagaState, kw_only=True):
    asked: int = 0


orders = SagaDefinition("OrderSaga", OrderState, correlate="order_id", retry=QUICK)
payments = SagaDefinition("PaymentSaga", PaymentState, correlate="order_id", retry=QUICK, completed="delete")


@orders.starts(Placed)
async def place(message: Placed, state: OrderState, ctx: SagaContext) -> None:
    state.placed += 1
    ctx.publish(Event("placed, first"))
    ctx.send("PaymentSaga", RequestPayment(message.order_id))
    ctx.publish(Event("placed, last"))
    ctx.schedule(Reminder(message.order_id), timedelta(hours=1))


@payments.starts(RequestPayment)
async def ask(message: RequestPayment, state: PaymentState, ctx: SagaContext) -> None:
    state.asked += 1
    ctx.publish(Paid(message.order_id))
    ctx.complete()


@orders.continues(Paid)
async def pay(message: Paid, state: OrderState, ctx: SagaContext) -> None:
    state.paid += 1
    ctx.publish(Event(f"paid {state.paid}"))


@orders.continues(Reminder)
async def remind(message: Reminder, state: OrderState, ctx: SagaContext) -> None:
    state.reminded += 1
    ctx.publish(Event(f"reminded {state.reminded}"))
    ctx.set_timeout(timedelta(hours=2))


@orders.on_timeout
async def time_out(state: OrderState, ctx: SagaContext) -> None:
    state.timed_out += 1
    ctx.publish(Event(f"timed out {state.timed_out}"))
    ctx.complete()


STEPS = {"insert", "update", "delete", "publish", "send", "ack", "find", "get_by_correlation_id", "get_by_id"}
READS = {"find", "get_by_correlation_id", "get_by_id"}
EVENTS = ["placed, first", "placed, last", "paid 1", "reminded 1", "timed out 1"]


class Outside:
    """Somebody who listens to the events, on a client of their own that never dies."""

    def __init__(self):
        self.transport = InMemoryTransport()
        self.ids = defaultdict(Counter)
        self.order = []

    async def __call__(self, delivery):
        text = msgspec.json.decode(delivery.envelope.body, type=Event).text
        self.ids[text][delivery.envelope.id] += 1
        self.order.append(text)
        await delivery.ack()

    async def listen(self):
        await self.transport.listen("outside", ["Event"], self, concurrency=1)


async def again(call):
    """What the bus's own clock does after an error of a store or a transport: the same, later."""
    try:
        return await call()
    except (SagaStoreError, TransportError):
        return await call()


async def work(bus, transport, recover):
    """One life: everything that is to be done is done, in the order in which a clock would bring it."""
    async with bus:
        for _ in range(3):
            if recover:
                await again(lambda: bus.recover(grace=timedelta(0)))
            await transport.drain()
            await bus.confirm()
            await again(lambda: bus.deliver_due(datetime.now(UTC) + FAR))
            await transport.drain()
            await bus.confirm()


async def live(store, outside, power, *, recover=False):
    """Run a bus until its work is done or its power goes off; then it is dead, and its broker notices."""
    client = outside.transport.peer()
    bus = create_bus(
        transport=PoweredTransport(client, power),
        store=PoweredStore(store, power),
        sagas=[orders, payments],
        intervals=BY_HAND,
        concurrency=2,
    )
    working = asyncio.create_task(work(bus, outside.transport, recover))
    off = asyncio.create_task(power.off.wait())
    await asyncio.wait([working, off], return_when=asyncio.FIRST_COMPLETED)
    off.cancel()
    died = power.off.is_set()
    if died:
        for task in [working, *bus._tasks, *(task for one in bus._timeouts for task in one._firing.values())]:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()
        await client.close()
    else:
        await working
    return died


async def check(store, outside, where):
    state = await store.get_by_correlation_id("OrderSaga", ORDER)
    counted = (state.placed, state.paid, state.reminded, state.timed_out)
    assert counted == (1, 1, 1, 1), f"{where}: applied {counted} times"
    assert state.metadata.is_completed, where
    assert await store.get_by_correlation_id("PaymentSaga", ORDER) is None, f"{where}: a completed saga stayed"
    for saga_name in ("OrderSaga", "PaymentSaga"):
        assert await store.count(SagaFilter(saga_name=saga_name, outbox_pending=True)) == 0, f"{where}: unconfirmed"
    assert await store.count(SagaFilter(saga_name="saga-bus.scheduled")) == 0, f"{where}: still scheduled"
    assert outside.transport.dead_letters == [], where
    assert sorted(outside.ids) == sorted(EVENTS), where
    twice = {text: dict(ids) for text, ids in outside.ids.items() if len(ids) != 1}
    assert not twice, f"{where}: one logical message has several ids: {twice}"
    first_heard = list(dict.fromkeys(outside.order))
    assert first_heard.index("placed, first") < first_heard.index("placed, last"), f"{where}: {first_heard}"


async def forget(store):
    for saga_name in ("OrderSaga", "PaymentSaga", "saga-bus.scheduled"):
        for record in (await store.find(SagaFilter(saga_name=saga_name))).items:
            await store.delete(saga_name, record.state.metadata.saga_id)


async def drive(store, *powers):
    """The whole scenario: each of the powers is one life, and one without faults follows; the start comes twice."""
    await forget(store)
    outside = Outside()
    await outside.listen()
    publisher = create_bus(transport=outside.transport.peer(), sagas=[])
    await publisher.start()
    endpoints = InMemoryTransport.peer(outside.transport)  # the queues are there before the first message
    await endpoints.listen("OrderSaga", ["Placed", "Paid", "Reminder"], None, concurrency=1)
    await endpoints.listen("PaymentSaga", ["RequestPayment"], None, concurrency=1)
    await endpoints.close()
    for _ in range(2):
        await publisher.publish(Placed(ORDER), message_id="the-start")
    deaths = 0
    for power in powers:
        deaths += await live(store, outside, power, recover=deaths > 0)
        if not deaths:
            break
    await live(store, outside, Power(), recover=True)
    where = "; ".join(f"{power.fault} {power.when} {power.at}" for power in powers)
    await check(store, outside, where)
    await publisher.stop()
    await outside.transport.close()
    return deaths


@asynccontextmanager
async def on_memory(tmp_path, databases):
    yield InMemorySagaStore()


@asynccontextmanager
async def on_sqlite(tmp_path, databases):
    async with SqliteSagaStore(tmp_path / "sagas.db", durability="normal") as store:
        await store.create_schema()
        yield store


@asynccontextmanager
async def on_postgres(tmp_path, databases):
    async with PostgresSagaStore(databases.url("postgres"), table=f"t_{uuid.uuid4().hex[:12]}") as store:
        await store.create_schema()
        yield store
        await store.drop_schema()


STORES = {"inmemory": on_memory, "sqlite": on_sqlite, "postgres": on_postgres}
every_store = pytest.mark.parametrize("store_on", STORES.values(), ids=STORES)


@every_store
@pytest.mark.parametrize("fault", ["cut", "error"])
def test_every_step_may_be_the_last(store_on, fault, tmp_path, databases, capsys):
    async def main():
        async with store_on(tmp_path, databases) as store:
            whole = Power()
            await drive(store, whole)
            failed = Counter()
            deaths = 0
            for step in whole.steps:
                number, found = 0, True
                while found:  # tasks race, so the runs are not all of one length
                    found = False
                    # Dead after a read is dead before what follows.
                    for when in ("before",) if step in READS else ("before", "after"):
                        power = Power((step, number), when, fault)
                        deaths += await drive(store, power)
                        failed[f"{when} {step}"] += power.failed
                        found |= power.failed
                    number += 1
            return whole.steps, failed, deaths

    steps, failed, deaths = asyncio.run(main())
    with capsys.disabled():
        print(f"\n{steps.total()} steps, {failed.total()} faults, {deaths} deaths: {dict(sorted(failed.items()))}")
    assert set(steps) == STEPS
    assert all(failed[f"before {step}"] for step in STEPS)
    assert all(failed[f"after {step}"] for step in STEPS - READS)
    assert failed.total() > steps.total()
    assert bool(deaths) == (fault == "cut")


def test_dying_twice_loses_nothing_either():
    async def main():
        store, choose = InMemorySagaStore(), random.Random(1)
        for _ in range(150):
            powers = [
                Power((choose.choice(sorted(STEPS)), choose.randrange(4)), choose.choice(["before", "after"]))
                for _ in range(2)
            ]
            await drive(store, *powers)

    asyncio.run(main())


def test_the_switch_really_cuts():
    async def main():
        store = InMemorySagaStore()
        power = Power(("insert", 1), "after")
        powered = PoweredStore(store, power)
        await powered.insert("OrderSaga", "a", OrderState())
        with pytest.raises(PowerCutError):
            await powered.insert("OrderSaga", "b", OrderState())
        with pytest.raises(PowerCutError):
            await powered.insert("OrderSaga", "c", OrderState())
        assert await store.count(SagaFilter(saga_name="OrderSaga")) == 2

    asyncio.run(main())


# -- the test itself is tested: each of these breaks one promise, and must be found out ------------------


def forgets_the_handled(monkeypatch):
    changes = SagaCycle._changes
    monkeypatch.setattr(SagaCycle, "_changes", lambda *given: {**changes(*given), "handled": ()})


def saves_no_outbox(monkeypatch):
    changes = SagaCycle._changes
    monkeypatch.setattr(SagaCycle, "_changes", lambda *given: {**changes(*given), "outbox": ()})


def acknowledges_first(monkeypatch):
    handle = SagaWorker._handle

    async def early(self, handling, ending):
        await ending._ends.ack()
        ending._ends = SimpleNamespace(ack=nothing, dead_letter=nothing)
        await handle(self, handling, ending)

    async def nothing(*given): ...

    monkeypatch.setattr(SagaWorker, "_handle", early)


def never_recovers(monkeypatch):
    async def recover(self, grace):
        return 0

    monkeypatch.setattr(Outbox, "recover", recover)


def makes_new_ids_for_a_resend(monkeypatch):
    read = Outgoing.read.__func__
    monkeypatch.setattr(
        Outgoing, "read", classmethod(lambda cls, entry: msgspec.structs.replace(read(cls, entry), id=uuid.uuid4().hex))
    )


def deletes_what_is_scheduled_before_it_is_sent(monkeypatch):
    async def early(self, send, state):
        await self._store.delete(self._saga_name, state.metadata.saga_id)
        await send(state.message)
        return 1

    monkeypatch.setattr(Schedules, "_send", early)


def clears_a_timeout_before_it_is_handled(monkeypatch):
    time_out = SagaCycle.time_out

    async def early(self, handling, loaded):
        state = loaded[0] if loaded else await self._store.get_by_id("OrderSaga", handling.saga_id)
        due = state.metadata.timeout_expires_at
        if due is not None:
            cleared = state.metadata.next(timeout=None)
            await self._store.update("OrderSaga", with_metadata(state, cleared), cleared.version - 1)
            state.metadata = msgspec.structs.replace(cleared, timeout_expires_at=due)
        loaded[:] = [state]
        return await time_out(self, handling, loaded)

    monkeypatch.setattr(SagaCycle, "time_out", early)


@pytest.mark.parametrize(
    "broken",
    [
        forgets_the_handled,
        saves_no_outbox,
        acknowledges_first,
        never_recovers,
        makes_new_ids_for_a_resend,
        deletes_what_is_scheduled_before_it_is_sent,
        clears_a_timeout_before_it_is_handled,
    ],
)
def test_a_broken_bus_is_found_out(broken, monkeypatch):
    async def main():
        store = InMemorySagaStore()
        for step in sorted(STEPS):
            for number in range(6):
                for when in ("before", "after"):
                    await asyncio.wait_for(drive(store, Power((step, number), when)), 10)

    broken(monkeypatch)
    with pytest.raises((AssertionError, AttributeError, TimeoutError)):
        asyncio.run(main())

"""What the tests of the bus share: messages, a state, a store that counts, and a bus that does nothing by the clock."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from saga_bus.core import Bus, Delivery, Envelope, InMemoryTransport, Intervals, RetryPolicy, create_bus
from saga_bus.store import SagaFilter, SagaState
from saga_bus.store_inmemory import InMemorySagaStore

NEVER = timedelta(days=30)
BY_HAND = Intervals(timers=NEVER, confirm=NEVER, recover=NEVER, grace=timedelta(seconds=30))
QUICK = RetryPolicy(first_pause=timedelta(milliseconds=1), longest_pause=timedelta(milliseconds=2))


class Start(msgspec.Struct):
    key: str
    value: int = 0


class Step(msgspec.Struct):
    key: str
    value: int = 0


class Told(msgspec.Struct):
    """What the outside hears."""

    text: str


class State(SagaState, kw_only=True):
    values: list[int] = msgspec.field(default_factory=list)
    note: str = ""


class CountingStore(InMemorySagaStore[Any]):
    """Counts the operations that reach it; ``raises["update"] = [error, None, ...]`` fails the next ones."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.done: Counter[str] = Counter()
        self.raises: dict[str, list[Exception | None]] = {}

    def _note(self, name: str) -> None:
        self.done[name] += 1
        waiting = self.raises.get(name)
        error = waiting.pop(0) if waiting else None
        if error is not None:
            raise error

    async def get_by_correlation_id(self, *arguments: Any) -> Any:
        self._note("get_by_correlation_id")
        return await super().get_by_correlation_id(*arguments)

    async def get_by_id(self, *arguments: Any) -> Any:
        self._note("get_by_id")
        return await super().get_by_id(*arguments)

    async def insert(self, *arguments: Any) -> None:
        self._note("insert")
        await super().insert(*arguments)

    async def update(self, *arguments: Any) -> None:
        self._note("update")
        await super().update(*arguments)

    async def delete(self, *arguments: Any) -> None:
        self._note("delete")
        await super().delete(*arguments)


class Place:
    """A running bus, its parts, and somebody outside who listens to `Told`."""

    def __init__(self, bus: Bus, store: Any, transport: InMemoryTransport) -> None:
        self.bus = bus
        self.store = store
        self.transport = transport
        self.heard: list[Envelope] = []

    async def hear(self, delivery: Delivery) -> None:
        self.heard.append(delivery.envelope)
        await delivery.ack()

    @property
    def texts(self) -> list[str]:
        return [msgspec.json.decode(envelope.body, type=Told).text for envelope in self.heard]

    async def state(self, saga_name: str, key: str) -> Any:
        return await self.store.get_by_correlation_id(saga_name, key)

    async def publish(self, *messages: Any, **options: Any) -> None:
        for message in messages:
            await self.bus.publish(message, **options)
        await self.transport.drain()

    async def after(self, delay: timedelta) -> None:
        """Deliver what is due so much later."""
        await self.bus.deliver_due(datetime.now(UTC) + delay)
        await self.transport.drain()

    async def pending(self, saga_name: str) -> int:
        return int(await self.store.count(SagaFilter(saga_name=saga_name, outbox_pending=True)))


@asynccontextmanager
async def running(*sagas: Any, store: Any = None, transport: Any = None, **options: Any) -> AsyncIterator[Place]:
    store = CountingStore() if store is None else store
    transport = InMemoryTransport() if transport is None else transport
    bus = create_bus(transport=transport, store=store, sagas=sagas, **{"intervals": BY_HAND, **options})
    place = Place(bus, store, transport)
    await transport.peer().listen("ear", ["Told"], place.hear, concurrency=1)
    async with bus:
        yield place


def run(work: Callable[[Place], Awaitable[Any]], *sagas: Any, **options: Any) -> Any:
    """Run ``work`` on a bus of the sagas."""

    async def main() -> Any:
        async with running(*sagas, **options) as place:
            return await work(place)

    return asyncio.run(main())

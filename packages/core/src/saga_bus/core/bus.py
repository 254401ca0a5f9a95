"""The bus: sagas, their stores and a transport, put together and driven."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, Self

from saga_bus.core.configuration import (
    Intervals,
    Owned,
    SagaRegistration,
    StoreLike,
    check_registrations,
    register_type,
)
from saga_bus.core.definition import SagaDefinition
from saga_bus.core.errors import BusStoppedError, ConfigurationError
from saga_bus.core.groups import for_each
from saga_bus.core.handling import Middleware
from saga_bus.core.outbox import Outbox
from saga_bus.core.outgoing import Outgoing, check_delay, check_endpoint, check_headers
from saga_bus.core.schedules import Schedules
from saga_bus.core.timeouts import Timeouts
from saga_bus.core.transport import Transport
from saga_bus.core.worker import SagaWorker
from saga_bus.store import (
    SagaStore,
    StoreUnavailableError,
    capabilities_of,
    new_saga_id,
    open_store,
)

__all__ = ["Bus", "create_bus"]

_LOGGER = logging.getLogger("saga_bus.core")
_AFTER_GIVING_BACK = 5.0  # seconds that handlers get to end once they are cancelled


def create_bus(
    *,
    transport: Transport,
    sagas: Sequence[SagaDefinition[Any] | SagaRegistration] = (),
    store: StoreLike | None = None,
    messages: Collection[type] = (),
    middleware: Sequence[Middleware] = (),
    concurrency: int = 64,
    intervals: Intervals | None = None,
    outgoing_headers: Callable[[], Mapping[str, str]] | None = None,
    name: str = "saga-bus",
) -> Bus:
    """Make a bus; like every constructor it does no I/O.

    A store that is given as an object stays the caller's: the bus never closes it. ``Owned(store)`` and a URL, which
    goes to `open_store`, tell the bus to open and close it. The transport is the bus's: it is started and closed.

    Args:
        transport: What carries the messages.
        sagas: The sagas that this process works on; none for a process that only publishes.
        store: The store of every saga that has none of its own, and of messages that are published with a delay.
        messages: Types of messages that some saga here must handle.
        middleware: What is around each handling, the first outermost.
        concurrency: The most messages of one saga in hand at once.
        intervals: When the bus does what nobody asks it for.
        outgoing_headers: Called for each ``publish`` and ``send`` of the bus itself: headers to add, such as the
            current trace context.
        name: Buses of one name share scheduled messages where they share a store; two applications that share a
            store and no broker need two names.

    Raises:
        ConfigurationError: It cannot work: a saga without a store, two sagas of one name or one endpoint, two message
            types of one name, a type in ``messages`` that no saga handles, a definition that is not whole, or a store
            that lacks what a saga needs.
    """
    return Bus(
        transport=transport,
        sagas=sagas,
        store=store,
        messages=messages,
        middleware=middleware,
        concurrency=concurrency,
        intervals=Intervals() if intervals is None else intervals,
        outgoing_headers=outgoing_headers,
        name=name,
    )


class Bus:
    """Sagas at work; made by `create_bus`, used with ``async with`` or ``start()`` and ``stop()``."""

    def __init__(
        self,
        *,
        transport: Transport,
        sagas: Sequence[SagaDefinition[Any] | SagaRegistration],
        store: StoreLike | None,
        messages: Collection[type],
        middleware: Sequence[Middleware],
        concurrency: int,
        intervals: Intervals,
        outgoing_headers: Callable[[], Mapping[str, str]] | None,
        name: str,
    ) -> None:
        if not isinstance(transport, Transport):
            raise ConfigurationError(f"a transport has the methods of saga_bus.core.Transport; {transport!r} has not")
        self._transport = transport
        self._intervals = intervals
        self._outgoing_headers = outgoing_headers
        self._name = name
        self._sender = new_saga_id()[-12:]
        self._counts: Counter[str] = Counter()
        self._owned: list[Any] = []
        self._schedules: dict[int, Schedules] = {}
        self._stores: list[Any] = []
        self._workers: list[tuple[SagaWorker, int]] = []
        self._timeouts: list[Timeouts] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._state = "new"
        self._stopping = asyncio.Lock()
        registrations = [saga if isinstance(saga, SagaRegistration) else SagaRegistration(saga) for saga in sagas]
        check_registrations(registrations, messages)
        shared = None if store is None else self._take(store)
        for registration in registrations:
            self._add(registration, shared, middleware, concurrency)
        self._default_store = shared if shared is not None else next(iter(self._stores), None)

    # -- making ------------------------------------------------------------------------------------------

    def _take(self, store: StoreLike) -> Any:
        if isinstance(store, str):
            opened: Any = open_store(store)
            self._owned.append(opened)
        elif isinstance(store, Owned):
            opened = store.store
            if all(opened is not other for other in self._owned):
                self._owned.append(opened)
        else:
            opened = store
        if not isinstance(opened, SagaStore):
            raise ConfigurationError(f"a store has the five operations of SagaStore; {opened!r} has not")
        if id(opened) not in self._schedules:
            self._stores.append(opened)
            self._schedules[id(opened)] = Schedules(opened, f"{self._name}.scheduled", self._intervals.grace)
        return opened

    def _add(
        self, registration: SagaRegistration, shared: Any, middleware: Sequence[Middleware], concurrency: int
    ) -> None:
        definition = registration.definition
        store = shared if registration.store is None else self._take(registration.store)
        if store is None:
            raise ConfigurationError(f"saga {definition.name!r} has no store: give the bus or its registration one")
        can = capabilities_of(store)
        if definition.timeout_handler is not None and not can.query:
            raise ConfigurationError(
                f"saga {definition.name!r} has timeouts, and {type(store).__qualname__} declares no query to find them"
            )
        if definition.completed == "delete" and not can.conditional_delete:
            raise ConfigurationError(
                f"saga {definition.name!r} is deleted when it has ended, and {type(store).__qualname__} declares no "
                "conditional_delete"
            )
        register_type(store, definition.name, definition.state_type)
        if not can.query:
            _LOGGER.warning(
                "saga %s: %s declares no query, so what a dead worker left in an outbox is sent only when the broker "
                "delivers its message again",
                definition.name,
                type(store).__qualname__,
            )
        schedules = self._schedules[id(store)]
        outbox = Outbox(
            saga_name=definition.name,
            store=store,
            send=lambda outgoing: self._send(outgoing, schedules),
            sender=self._sender,
            grace=self._intervals.grace,
            delete_completed=definition.completed == "delete",
        )
        worker = SagaWorker(
            definition=definition,
            store=store,
            outbox=outbox,
            middleware=middleware,
            sender=self._sender,
            counts=self._counts,
        )
        at_once = concurrency if registration.concurrency is None else registration.concurrency
        if type(at_once) is not int or at_once < 1:
            raise ConfigurationError(f"concurrency must be an int of at least 1, not {at_once!r}")
        self._workers.append((worker, at_once))
        if definition.timeout_handler is not None:
            self._timeouts.append(Timeouts(definition, store, worker))

    # -- life --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Open what is owned, connect, and begin to receive.

        Raises:
            SchemaError: A store has no schema, or an old one; the message says what to run.
            TransportError: The transport cannot connect.
            BusStoppedError: It was started before.
        """
        if self._state != "new":
            raise BusStoppedError("a bus is started once; make another one")
        self._state = "running"
        try:
            for store in self._owned:
                if hasattr(store, "__aenter__"):
                    await store.__aenter__()
            for store in self._stores:
                await _check_schema(store)
            await self._transport.start()
            for worker, concurrency in self._workers:
                await self._transport.listen(
                    worker.endpoint, worker.message_names, worker.receive, concurrency=concurrency
                )
        except BaseException as error:
            try:
                await self.stop(timedelta(0))
            except Exception as second:  # noqa: BLE001 - the first error is the one to raise
                error.add_note(f"and stopping failed: {type(second).__name__}: {second}")
            raise
        every = self._intervals
        for function, interval in (
            (self._recover_quietly, every.recover),
            (self._deliver_due_quietly, every.timers),
            (self._confirm_quietly, every.confirm),
        ):
            self._tasks.append(asyncio.create_task(_repeat(function, interval.total_seconds())))

    async def stop(self, within: timedelta = timedelta(seconds=30)) -> None:
        """Finish what is in hand, confirm what was sent, and close what is owned; stopping twice is no error.

        Args:
            within: How long what is in hand may take; what takes longer is given back to the transport.
        """
        async with self._stopping:
            if self._state == "stopped":
                return
            self._state = "stopping"
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            try:
                await self._transport.stop_receiving()
                await self._finish(within)
            finally:
                self._state = "stopped"
                await self._close()

    async def _finish(self, within: timedelta) -> None:
        at_work: list[SagaWorker | Timeouts] = [*(worker for worker, _ in self._workers), *self._timeouts]
        for seconds in (within.total_seconds(), _AFTER_GIVING_BACK):
            try:
                async with asyncio.timeout(seconds):
                    await asyncio.gather(*(one.settle() for one in at_work))
                    break
            except TimeoutError:
                for one in at_work:
                    one.give_back()
        for worker, _ in self._workers:
            await worker.outbox.confirm(0)

    async def _close(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for store in self._owned:
                if hasattr(store, "close"):
                    stack.push_async_callback(store.close)
            stack.push_async_callback(self._transport.close)

    # -- sending -----------------------------------------------------------------------------------------

    async def publish(
        self,
        message: Any,
        *,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
        message_id: str | None = None,
    ) -> str:
        """Give a copy to every saga and service that listens to the message's type.

        Args:
            message: An object of a message type.
            delay: How long it waits, durably, in the bus's store.
            headers: Headers of your own.
            message_id: Its id; a message that is published again under the same id is handled once.

        Returns:
            The message's id.

        Raises:
            MessageEncodeError: It cannot be encoded.
            TransportError: The broker did not take it, or may not have.
            BusStoppedError: The bus is not running.
        """
        return await self._send_own(message, None, delay, headers, message_id)

    async def send(
        self,
        endpoint: str,
        message: Any,
        *,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
        message_id: str | None = None,
    ) -> str:
        """Give a message to one endpoint.

        Args:
            endpoint: Its name; a saga's is the saga's name.
            message: An object of a message type.
            delay: How long it waits, durably, in the bus's store.
            headers: Headers of your own.
            message_id: Its id; a message that is sent again under the same id is handled once.

        Returns:
            The message's id.

        Raises:
            MessageEncodeError: It cannot be encoded.
            TransportError: The broker did not take it, or may not have.
            BusStoppedError: The bus is not running.
        """
        return await self._send_own(message, check_endpoint(endpoint), delay, headers, message_id)

    async def _send_own(
        self,
        message: Any,
        endpoint: str | None,
        delay: timedelta | None,
        headers: Mapping[str, str] | None,
        message_id: str | None,
    ) -> str:
        if self._state != "running":
            raise BusStoppedError("the bus is not running: start it first")
        own = dict(self._outgoing_headers()) if self._outgoing_headers is not None else {}
        own.update(headers or {})
        check_headers(own)
        if delay is not None:
            check_delay(delay)
            if self._default_store is None:
                raise ConfigurationError("a message with a delay needs a store to wait in: give the bus one")
        outgoing = Outgoing.of(
            message, id=new_saga_id() if message_id is None else message_id, headers=own, to=endpoint, delay=delay
        )
        await self._send(outgoing, self._schedules[id(self._default_store)] if delay is not None else None)
        return outgoing.id

    async def _send(self, outgoing: Outgoing, schedules: Schedules | None) -> None:
        if outgoing.due is not None and schedules is not None:
            await schedules.put(outgoing)
        elif outgoing.to is None:
            await self._transport.publish(outgoing.envelope())
        else:
            await self._transport.send(outgoing.to, outgoing.envelope())

    # -- what nobody asks for ----------------------------------------------------------------------------

    @property
    def counts(self) -> Mapping[str, int]:
        """How often each thing happened in this process since the bus was made.

        "handled", "duplicate", "ignored", "dead-lettered", "retried" (conflicts and every other new attempt),
        "timeouts" (delivered), "failed" (timeouts that are tried again later) and "recovered" (messages that a worker
        saved and did not send).
        """
        return Counter(self._counts)

    async def recover(self, grace: timedelta | None = None) -> int:
        """Send what workers that died saved and did not send; run at start and at an interval too.

        Args:
            grace: Sagas that were written within this time are left to their workers; the interval's when left out.

        Returns:
            How many messages were sent.

        Raises:
            SagaStoreError: A store failed.
            TransportError: The transport failed.
        """
        chosen = self._intervals.grace if grace is None else grace
        sent = await for_each([worker.outbox for worker, _ in self._workers], lambda outbox: outbox.recover(chosen))
        if sent:
            self._counts["recovered"] += sent
        return sent

    async def deliver_due(self, due_before: datetime | None = None) -> int:
        """Deliver the timeouts and the scheduled messages that are due; run at an interval too.

        Args:
            due_before: Those before this moment (aware); now when left out. A later one lets tests not wait.

        Returns:
            How many timeouts were handled and messages sent.

        Raises:
            SagaStoreError: A store failed.
            TransportError: The transport failed.
        """
        try:
            return await self._begin_due(datetime.now(UTC) if due_before is None else due_before)
        finally:
            await asyncio.gather(*(timeouts.settle() for timeouts in self._timeouts))

    async def _begin_due(self, moment: datetime) -> int:
        sources = [
            *(partial(schedules.send_due, self._send_due, moment) for schedules in self._schedules.values()),
            *(partial(timeouts.fire_due, moment) for timeouts in self._timeouts),
        ]
        return await for_each(sources, lambda source: source(), at_once=len(sources) or 1)

    async def confirm(self) -> int:
        """Clear from the stores what was sent and is not cleared yet; run at an interval too.

        Returns:
            How many sagas were written.
        """
        return await for_each([worker.outbox for worker, _ in self._workers], lambda outbox: outbox.confirm(0))

    async def _send_due(self, outgoing: Outgoing) -> None:
        await self._send(outgoing, None)

    async def _recover_quietly(self) -> None:
        sent = await self.recover()
        if sent:
            _LOGGER.warning("%d messages were sent that a worker had saved and not sent", sent)

    async def _deliver_due_quietly(self) -> None:
        await self._begin_due(datetime.now(UTC))  # one slow handler holds up no other timer

    async def _confirm_quietly(self) -> None:
        for worker, _ in self._workers:
            await worker.outbox.confirm(self._intervals.confirm.total_seconds())


async def _repeat(function: Callable[[], Awaitable[None]], seconds: float) -> None:
    while True:
        try:
            await function()
        except Exception as error:  # noqa: BLE001 - a store or a broker that is away comes back
            _LOGGER.warning("the bus could not do what it does every %g s: %r", seconds, error)
        await asyncio.sleep(seconds * random.uniform(0.8, 1.2))  # noqa: S311 - workers started together drift apart


async def _check_schema(store: Any) -> None:
    if not capabilities_of(store).schema:
        return
    try:
        await store.check_schema()
    except StoreUnavailableError as error:  # it may be there when the first message comes
        _LOGGER.warning("%s cannot be reached yet: %s", type(store).__qualname__, error)

"""Stores and transports that fail at a chosen step: the process dies there, or only the step's answer is an error.

Every step of a bus towards a store or a transport is counted. At the chosen one, before it is done or after, the
power goes off: that step and all later ones raise `PowerCutError`, which nothing in the bus catches, as nothing is
caught in a process that is killed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import timedelta
from typing import Any, Literal

from saga_bus.core import Delivery, Receiver, Transport, TransportUnavailableError
from saga_bus.store import OutcomeUnknownError, StoreUnavailableError

__all__ = ["Power", "PowerCutError", "PoweredStore", "PoweredTransport"]

Fault = Literal["cut", "error"]
When = Literal["before", "after"]


class PowerCutError(BaseException):
    """The process is dead from here on."""


class Power:
    """Counts steps, and fails one of them.

    Args:
        at: The step to fail: its name, and which of that name, counted from 0; None for none.
        when: Before the step is done, or after.
        fault: The process dies, or the step alone fails.
    """

    def __init__(self, at: tuple[str, int] | None = None, when: When = "before", fault: Fault = "cut") -> None:
        self.at = at
        self.when = when
        self.fault = fault
        self.steps: Counter[str] = Counter()
        self.failed = False
        self.off = asyncio.Event()

    async def step(self, name: str, call: Callable[[], Awaitable[Any]], error: Exception) -> Any:
        if self.off.is_set():
            raise PowerCutError
        chosen = self.at == (name, self.steps[name])
        self.steps[name] += 1
        if chosen and self.when == "before":
            self._fail(error)
        answer = await call()
        if self.off.is_set():  # it went off while the answer was on its way
            raise PowerCutError
        if chosen and self.when == "after":
            self._fail(error)
        return answer

    def _fail(self, error: Exception) -> None:
        self.failed = True
        if self.fault == "error":
            raise error
        self.off.set()
        raise PowerCutError


class PoweredStore:
    """A store behind a power switch.

    Args:
        store: The store.
        power: The switch.
    """

    def __init__(self, store: Any, power: Power) -> None:
        self._store = store
        self._power = power
        self.capabilities = store.capabilities

    def register(self, saga_name: str, state_type: type) -> None:
        self._store.register(saga_name, state_type)

    async def get_by_id(self, *arguments: Any) -> Any:
        return await self._read("get_by_id", *arguments)

    async def get_by_correlation_id(self, *arguments: Any) -> Any:
        return await self._read("get_by_correlation_id", *arguments)

    async def find(self, *arguments: Any, **options: Any) -> Any:
        return await self._read("find", *arguments, **options)

    async def check_schema(self) -> None:
        await self._store.check_schema()

    async def insert(self, *arguments: Any) -> None:
        await self._write("insert", *arguments)

    async def update(self, *arguments: Any) -> None:
        await self._write("update", *arguments)

    async def delete(self, *arguments: Any) -> None:
        await self._write("delete", *arguments)

    async def _read(self, name: str, *arguments: Any, **options: Any) -> Any:
        error = StoreUnavailableError("the store is gone for a moment")
        return await self._power.step(name, lambda: getattr(self._store, name)(*arguments, **options), error)

    async def _write(self, name: str, *arguments: Any) -> None:
        error = OutcomeUnknownError("the connection broke after the write was sent")
        await self._power.step(name, lambda: getattr(self._store, name)(*arguments), error)


class _PoweredDelivery:
    def __init__(self, delivery: Delivery, power: Power) -> None:
        self._delivery = delivery
        self._power = power
        self.envelope = delivery.envelope
        self.attempt = delivery.attempt

    async def ack(self) -> None:
        await self._power.step("ack", self._delivery.ack, _away())

    async def retry(self, delay: timedelta) -> None:
        await self._power.step("retry", lambda: self._delivery.retry(delay), _away())

    async def dead_letter(self, reason: str, details: Mapping[str, str]) -> None:
        await self._power.step("dead_letter", lambda: self._delivery.dead_letter(reason, details), _away())


class PoweredTransport:
    """A transport behind a power switch.

    Args:
        transport: The transport.
        power: The switch.
    """

    def __init__(self, transport: Transport, power: Power) -> None:
        self._transport = transport
        self._power = power

    async def start(self) -> None:
        await self._transport.start()

    async def publish(self, envelope: Any) -> None:
        await self._power.step("publish", lambda: self._transport.publish(envelope), _away())

    async def send(self, endpoint: str, envelope: Any) -> None:
        await self._power.step("send", lambda: self._transport.send(endpoint, envelope), _away())

    async def listen(self, endpoint: str, names: Collection[str], receive: Receiver, *, concurrency: int) -> None:
        async def powered(delivery: Delivery) -> None:
            if self._power.off.is_set():
                raise PowerCutError
            await receive(_PoweredDelivery(delivery, self._power))

        await self._transport.listen(endpoint, names, powered, concurrency=concurrency)

    async def stop_receiving(self) -> None:
        await self._transport.stop_receiving()

    async def close(self) -> None:
        await self._transport.close()


def _away() -> TransportUnavailableError:
    return TransportUnavailableError("the broker is gone for a moment")

"""What a case runs on: clients of one fresh place, names that nothing else uses, and listeners that write down."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from saga_bus.core.envelope import Envelope
from saga_bus.core.transport import Delivery, Transport

__all__ = ["QUIET", "Kit", "Listener", "PutAside", "UnprovenError", "must", "same", "until"]

PATIENCE = 30.0  # seconds for what must happen
QUIET = 0.3  # seconds for what must not happen


class UnprovenError(Exception):
    """The author gave no hook that a case needs."""


@dataclass(frozen=True)
class PutAside:
    """A message among the dead letters, as the author's ``dead_letters`` hook reads it back.

    Args:
        body: Its bytes.
        reason: The reason that stands with it.
        headers: The headers of its envelope.
    """

    body: bytes
    reason: str
    headers: dict[str, str]


@dataclass
class Listener:
    """Receives, and does what a case tells it with each delivery; without more, acknowledges it.

    Args:
        act: What is done with a delivery instead.
    """

    act: Callable[[Delivery], Awaitable[None]] | None = None
    received: list[Envelope] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    now: int = 0
    most: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, delivery: Delivery) -> None:
        """Write a delivery down, and do with it what the case says."""
        self.received.append(delivery.envelope)
        self.attempts.append(delivery.attempt)
        self.now += 1
        self.most = max(self.most, self.now)
        self._changed.set()
        try:
            if self.act is None:
                await delivery.ack()
            else:
                await self.act(delivery)
        finally:
            self.now -= 1

    @property
    def ids(self) -> list[str]:
        """The ids of what was received, in that order."""
        return [envelope.id for envelope in self.received]

    async def has(self, number: int) -> None:
        """Wait until so many deliveries came.

        Args:
            number: How many.
        """
        await until(lambda: len(self.received) >= number, f"{number} deliveries, not {len(self.received)}")


def must(condition: bool, what: str) -> None:  # noqa: FBT001 - reads as a sentence
    """Fail unless something holds.

    Args:
        condition: Whether it does.
        what: What must hold.

    Raises:
        AssertionError: It does not.
    """
    if not condition:
        raise AssertionError(f"this must hold: {what}")


def same(found: object, expected: object) -> None:
    """Fail unless two things are equal.

    Args:
        found: What is there.
        expected: What must be there.

    Raises:
        AssertionError: They differ.
    """
    if found != expected:
        raise AssertionError(f"expected {expected!r}, found {found!r}")


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition.

    Args:
        condition: The condition.
        what: What it is, for the error message.

    Raises:
        AssertionError: It does not come.
    """
    try:
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110 - transports tell nobody; a case waits for what it sees
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"within {PATIENCE:g} s there must be {what}") from None


class Kit:
    """The clients and names of one run of one case.

    Args:
        open_transport: The author's hook.
        dead_letters: The author's hook, if there is one.
        put_garbage: The author's hook, if there is one.
    """

    def __init__(
        self,
        open_transport: Callable[[str], Any],
        dead_letters: Callable[[str, str], Any] | None,
        put_garbage: Callable[[str, str, bytes], Any] | None,
    ) -> None:
        self.namespace = f"kit_{uuid.uuid4().hex[:12]}"
        self._open = open_transport
        self._dead_letters = dead_letters
        self._put_garbage = put_garbage
        self._clients: list[Transport] = []
        self._numbers = 0

    def name(self, what: str) -> str:
        """A name of an endpoint or of a message that nothing else uses.

        Args:
            what: What it is called.
        """
        self._numbers += 1
        return f"{self.namespace}.{what}.{self._numbers}"

    def envelope(self, name: str, *, body: bytes = b"{}", headers: dict[str, str] | None = None) -> Envelope:
        """A new message.

        Args:
            name: The name of its type.
            body: Its bytes.
            headers: Its headers.
        """
        return Envelope(
            id=uuid.uuid4().hex, name=name, body=body, sent_at=datetime.now(UTC), headers=dict(headers or {})
        )

    async def bare(self) -> Transport:
        """Another client of the place, not started."""
        client = self._open(self.namespace)
        if inspect.isawaitable(client):
            client = await client
        self._clients.append(client)
        return client  # type: ignore[no-any-return]

    async def client(self) -> Transport:
        """Another client of the place, started."""
        client = await self.bare()
        await client.start()
        return client

    async def put_aside(self, endpoint: str, number: int) -> Sequence[PutAside]:
        """Wait for dead letters of an endpoint.

        Args:
            endpoint: Its name.
            number: How many there must be.

        Raises:
            UnprovenError: There is no hook to read them.
        """
        if self._dead_letters is None:
            raise UnprovenError("dead_letters")
        found: Sequence[PutAside] = ()
        try:
            async with asyncio.timeout(PATIENCE):
                while len(found) < number:
                    found = await _awaited(self._dead_letters(self.namespace, endpoint))
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{endpoint} must have {number} dead letters, not {len(found)}") from None
        return found

    async def put_garbage(self, endpoint: str, body: bytes) -> None:
        """Put something on the wire that is no envelope.

        Args:
            endpoint: Where to.
            body: Its bytes.

        Raises:
            UnprovenError: There is no hook to do so.
        """
        if self._put_garbage is None:
            raise UnprovenError("put_garbage")
        await _awaited(self._put_garbage(self.namespace, endpoint, body))

    async def close(self) -> None:
        """Close every client."""
        for client in self._clients:
            await client.close()


async def _awaited(answer: Any) -> Any:
    return await answer if inspect.isawaitable(answer) else answer

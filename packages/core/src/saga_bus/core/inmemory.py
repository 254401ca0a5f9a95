"""A transport inside one process, made for tests: it can wait until all is quiet, and shows its dead letters."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from saga_bus.core.envelope import Envelope
from saga_bus.core.errors import TransportClosedError
from saga_bus.core.transport import Receiver

__all__ = ["DeadLetter", "InMemoryTransport"]

_LOGGER = logging.getLogger("saga_bus.core")
_REMEMBERED = 1000
_PAUSE_AFTER_ERROR = 0.05  # seconds, times the attempt


@dataclass(frozen=True)
class DeadLetter:
    """A message that was put aside.

    Args:
        endpoint: The endpoint that could not handle it.
        envelope: The message, with its bytes and headers.
        reason: One short sentence.
        details: What is known of the failure, by name.
    """

    endpoint: str
    envelope: Envelope
    reason: str
    details: Mapping[str, str]


@dataclass
class _Queue:
    waiting: deque[tuple[Envelope, int]] = field(default_factory=deque)
    takers: deque[asyncio.Future[None]] = field(default_factory=deque)
    listeners: int = 0

    def put(self, envelope: Envelope, attempt: int) -> None:
        self.waiting.append((envelope, attempt))
        self.wake()

    def wake(self) -> None:
        while self.takers and self.waiting:
            taker = self.takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return


class _Broker:
    """What the transports of one place share: the queues, and who listens to which names."""

    def __init__(self, duplicates: float, latency: float, seed: int | None) -> None:
        self.duplicates = duplicates
        self.latency = latency
        self.random = random.Random(seed)  # noqa: S311 - faults for tests, repeatable on purpose
        self.queues: dict[str, _Queue] = {}
        self.endpoints: dict[str, dict[str, None]] = {}
        self.dead_letters: list[DeadLetter] = []
        self.sent: deque[Envelope] = deque(maxlen=_REMEMBERED)
        self.in_hand = 0
        self.delayed = 0
        self.quiet = asyncio.Event()
        self.quiet.set()

    def queue(self, endpoint: str) -> _Queue:
        if endpoint not in self.queues:
            self.queues[endpoint] = _Queue()
        return self.queues[endpoint]

    def accept(self, endpoint: str, envelope: Envelope) -> None:
        copies = 2 if self.duplicates and self.random.random() < self.duplicates else 1
        for _ in range(copies):
            if self.latency:
                self.put_later(endpoint, envelope, 1, self.random.uniform(0, self.latency))
            else:
                self.put(endpoint, envelope, 1)

    def put(self, endpoint: str, envelope: Envelope, attempt: int) -> None:
        self.quiet.clear()
        self.queue(endpoint).put(envelope, attempt)

    def put_later(self, endpoint: str, envelope: Envelope, attempt: int, seconds: float) -> None:
        self.delayed += 1
        self.quiet.clear()
        asyncio.get_running_loop().call_later(seconds, self._put_delayed, endpoint, envelope, attempt)

    def _put_delayed(self, endpoint: str, envelope: Envelope, attempt: int) -> None:
        self.delayed -= 1
        self.put(endpoint, envelope, attempt)
        self.check_quiet()

    def check_quiet(self) -> None:
        if self.in_hand == 0 and self.delayed == 0 and not any(q.waiting and q.listeners for q in self.queues.values()):
            self.quiet.set()


class _Delivery:
    """One message in hand."""

    __slots__ = ("_broker", "_endpoint", "attempt", "ended", "envelope")

    def __init__(self, broker: _Broker, endpoint: str, envelope: Envelope, attempt: int) -> None:
        self._broker = broker
        self._endpoint = endpoint
        self.envelope = envelope
        self.attempt = attempt
        self.ended = False

    def _end(self) -> None:
        if self.ended:
            raise RuntimeError(f"the delivery of {self.envelope.id} was ended before: it can be only once")
        self.ended = True

    async def ack(self) -> None:
        self._end()

    async def retry(self, delay: timedelta) -> None:
        self._end()
        self._broker.put_later(self._endpoint, self.envelope, self.attempt + 1, delay.total_seconds())

    async def dead_letter(self, reason: str, details: Mapping[str, str]) -> None:
        self._end()
        self._broker.dead_letters.append(DeadLetter(self._endpoint, self.envelope, reason, dict(details)))


class InMemoryTransport:
    """A transport inside one process and one event loop, for tests and for programs of one process.

    Args:
        duplicates: The share of messages that are delivered twice, from 0 to 1.
        latency: The longest time that a message is on its way; each takes a random part of it, so that messages
            overtake each other.
        seed: Makes the faults repeatable.
    """

    def __init__(self, *, duplicates: float = 0.0, latency: timedelta = timedelta(0), seed: int | None = None) -> None:
        self._broker = _Broker(duplicates, latency.total_seconds(), seed)
        self._consumers: set[asyncio.Task[None]] = set()
        self._receiving = True
        self._is_closed = False

    def peer(self) -> InMemoryTransport:
        """Another client of the same queues, as another process would be: for a second bus in a test."""
        other = InMemoryTransport()
        other._broker = self._broker
        return other

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """The messages that were put aside, oldest first; yours to clear."""
        return self._broker.dead_letters

    @property
    def sent(self) -> list[Envelope]:
        """The last 1,000 messages that were published or sent, oldest first."""
        return list(self._broker.sent)

    def waiting(self, endpoint: str) -> int:
        """How many messages wait at an endpoint.

        Args:
            endpoint: Its name.
        """
        return len(self._broker.queue(endpoint).waiting)

    async def drain(self) -> None:
        """Wait until every message that somebody listens for is handled, those that come of others too."""
        await self._broker.quiet.wait()

    async def start(self) -> None:
        """Do nothing: there is nobody to connect to."""
        self._refuse_closed()

    async def publish(self, envelope: Envelope) -> None:
        """Give a copy to every endpoint that listens to the message's name.

        Args:
            envelope: The message.

        Raises:
            TransportClosedError: It is closed.
        """
        self._refuse_closed()
        self._broker.sent.append(envelope)
        for endpoint in self._broker.endpoints.get(envelope.name, ()):
            self._broker.accept(endpoint, envelope)

    async def send(self, endpoint: str, envelope: Envelope) -> None:
        """Give a message to one endpoint.

        Args:
            endpoint: Its name.
            envelope: The message.

        Raises:
            TransportClosedError: It is closed.
        """
        self._refuse_closed()
        self._broker.sent.append(envelope)
        self._broker.accept(endpoint, envelope)
        self._broker.check_quiet()

    async def listen(self, endpoint: str, names: Collection[str], receive: Receiver, *, concurrency: int) -> None:
        """Begin to receive.

        Args:
            endpoint: The endpoint's name.
            names: The names of the messages that it wants copies of.
            receive: Called with each delivery.
            concurrency: The most deliveries in hand at once.

        Raises:
            TransportClosedError: It is closed.
        """
        self._refuse_closed()
        queue = self._broker.queue(endpoint)
        for name in names:
            self._broker.endpoints.setdefault(name, {})[endpoint] = None
        for _ in range(concurrency):
            task = asyncio.create_task(self._consume(endpoint, queue, receive))
            self._consumers.add(task)
            queue.listeners += 1
            task.add_done_callback(lambda done: self._gone(done, queue))
        if queue.waiting:
            self._broker.quiet.clear()

    async def stop_receiving(self) -> None:
        """Deliver nothing new."""
        self._receiving = False
        for queue in self._broker.queues.values():  # the idle ones notice
            for taker in queue.takers:
                if not taker.done():
                    taker.set_result(None)
            queue.takers.clear()

    async def close(self) -> None:
        """Give back what is in hand."""
        self._is_closed = True
        await self.stop_receiving()
        consumers = list(self._consumers)
        for task in consumers:
            task.cancel()
        await asyncio.gather(*consumers, return_exceptions=True)

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise TransportClosedError("the in-memory transport is closed")

    def _gone(self, task: asyncio.Task[None], queue: _Queue) -> None:
        self._consumers.discard(task)
        queue.listeners -= 1
        queue.wake()
        self._broker.check_quiet()
        if not task.cancelled():
            task.exception()  # a process that dies says nothing, and its messages are given back

    async def _consume(self, endpoint: str, queue: _Queue, receive: Receiver) -> None:
        broker = self._broker
        while self._receiving:
            if not queue.waiting:
                taker = asyncio.get_running_loop().create_future()
                queue.takers.append(taker)
                await taker
                continue
            envelope, attempt = queue.waiting.popleft()
            broker.in_hand += 1
            delivery = _Delivery(broker, endpoint, envelope, attempt)
            try:
                await receive(delivery)
            except Exception:
                _LOGGER.exception("the receiver at %s raised: message %s is delivered again", endpoint, envelope.id)
                if not delivery.ended:
                    await delivery.retry(timedelta(seconds=_PAUSE_AFTER_ERROR * attempt))
            except BaseException:  # the listener is gone: another one gets the message
                if not delivery.ended:
                    queue.waiting.appendleft((envelope, attempt + 1))
                    queue.wake()
                raise
            finally:
                broker.in_hand -= 1
                if not queue.waiting:
                    broker.check_quiet()
        queue.wake()

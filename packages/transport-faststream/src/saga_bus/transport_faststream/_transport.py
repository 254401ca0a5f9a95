"""The transport."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from saga_bus.core import ConfigurationError, Envelope, Receiver, TransportClosedError
from saga_bus.transport_faststream._brokers import broker_of, link_of
from saga_bus.transport_faststream._delivery import Desk
from saga_bus.transport_faststream._errors import translated
from saga_bus.transport_faststream._link import Link, Options
from saga_bus.transport_faststream._names import checked_prefix
from saga_bus.transport_faststream._wire import pack

__all__ = ["FastStreamTransport"]


class FastStreamTransport:
    """Carries the bus's messages over RabbitMQ, NATS JetStream, Redis Streams or Kafka.

    It takes a URL (``amqp://``, ``nats://``, ``redis://``, ``kafka://host:9092,host2:9092``), and then opens and
    closes what it needs; or one of FastStream's brokers, which it connects if nobody has, and never closes.
    Nothing is opened before ``start()``.

    Args:
        url: Where the broker is.
        broker: A ``RabbitBroker``, ``NatsBroker`` or ``RedisBroker`` of FastStream, or the ``KafkaBroker`` of
            ``faststream.confluent``; instead of the URL.
        prefix: What the names of all queues, streams and topics begin with: 1 to 40 ASCII letters, digits, ``_``
            and ``-``. Processes that are to reach one another have the same.
        redeliver_after: After how long a message whose worker died comes again on NATS and Redis; RabbitMQ notices
            the lost connection by itself, and Kafka the lost member of the group.
        timeout: How long the broker may take to confirm.
        prefetch: How many messages each endpoint holds ready beside those in hand.
        retain: How long NATS keeps messages in the stream that the transport makes, handled or not. What nobody has
            handled within it is lost.
        replicas: How many servers of a cluster keep a copy, on NATS and Kafka, where the transport makes the stream
            or the topic.
        partitions: Into how many parts a Kafka topic is made, the most of its messages that are in hand at once.
        make_topics: Whether the transport makes Kafka's topics; else Kafka does so when they are first used, or an
            administrator has.

    Raises:
        ConfigurationError: Not exactly one of URL and broker, a bad option, or a driver that is not installed.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        broker: Any = None,
        prefix: str = "saga-bus",
        redeliver_after: timedelta = timedelta(seconds=30),
        timeout: timedelta = timedelta(seconds=30),
        prefetch: int = 0,
        retain: timedelta = timedelta(days=7),
        replicas: int = 1,
        partitions: int = 8,
        make_topics: bool = True,
    ) -> None:
        if (url is None) == (broker is None):
            raise ConfigurationError("give either a URL or a broker")
        if redeliver_after < timedelta(milliseconds=100) or timeout <= timedelta(0) or retain <= timedelta(0):
            raise ConfigurationError("redeliver_after must be at least 100 ms; timeout and retain must be positive")
        if prefetch < 0 or replicas < 1 or partitions < 1:
            raise ConfigurationError("prefetch must not be negative; replicas and partitions must be positive")
        self._options = Options(
            prefix=checked_prefix(prefix),
            redeliver_after=redeliver_after,
            timeout=timeout,
            prefetch=prefetch,
            retain=retain,
            replicas=replicas,
            partitions=partitions,
            make_topics=make_topics,
        )
        self._open = broker_of(url) if url is not None else None
        self._broker = broker
        self._link: Link | None = None if broker is None else link_of(broker, self._options, owned=False)
        self._starting = asyncio.Lock()
        self._is_started = False
        self._is_closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}(prefix={self._options.prefix!r})"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Connect, and make what all endpoints share; starting twice is no error.

        Raises:
            TransportUnavailableError: The broker is not there.
            TransportClosedError: The transport was closed.
        """
        async with self._starting:
            if self._is_closed:
                raise TransportClosedError("the transport was closed")
            if self._is_started:
                return
            if self._link is None:
                assert self._open is not None  # noqa: S101 - the constructor saw to it
                self._link = link_of(self._open(), self._options, owned=True)
            try:
                async with translated(self._link, "connect", self._options.timeout):
                    await self._link.start()
            except BaseException:
                if self._open is not None:
                    link, self._link = self._link, None
                    await link.close()
                raise
            self._is_started = True

    async def publish(self, envelope: Envelope) -> None:
        """Give a copy to every endpoint that listens to the message's name; return when the broker has it.

        Args:
            envelope: The message.

        Raises:
            TransportUnavailableError: The broker could not be reached or did not confirm; it may have the message.
            TransportError: The broker refused it.
        """
        link = self._started()
        async with translated(link, "publish a message", self._options.timeout):
            await link.publish(envelope.name, envelope.body, pack(envelope))

    async def send(self, endpoint: str, envelope: Envelope) -> None:
        """Give a message to one endpoint, which is made if it is not there; return when the broker has it.

        Args:
            endpoint: The endpoint's name.
            envelope: The message.

        Raises:
            TransportUnavailableError: The broker could not be reached or did not confirm; it may have the message.
            TransportError: The broker refused it.
        """
        link = self._started()
        async with translated(link, "send a message", self._options.timeout):
            await link.send(endpoint, envelope.body, pack(envelope))

    async def listen(self, endpoint: str, names: Collection[str], receive: Receiver, *, concurrency: int) -> None:
        """Begin to receive what is sent to an endpoint, and what is published under some names.

        Args:
            endpoint: The endpoint's name.
            names: The names of the messages that it wants copies of.
            receive: Called with each delivery; it ends the delivery itself.
            concurrency: The most deliveries in hand at once.

        Raises:
            TransportUnavailableError: The broker could not be reached.
            TransportError: The broker refused it.
        """
        if concurrency < 1:
            raise ConfigurationError(f"concurrency must be positive, not {concurrency}")
        link = self._started()
        desk = Desk(link, endpoint, receive, self._options.timeout)
        async with translated(link, f"listen to {endpoint!r}", self._options.timeout):
            await link.listen(endpoint, sorted(set(names)), desk.take, concurrency)

    async def stop_receiving(self) -> None:
        """Deliver nothing new; what is in hand may still be ended."""
        if self._link is not None and self._is_started:
            await self._link.stop_receiving()

    async def close(self) -> None:
        """Give back what is in hand, and disconnect from a broker of one's own; closing twice is no error."""
        async with self._starting:
            was_started, self._is_started, self._is_closed = self._is_started, False, True
            if self._link is not None and was_started:
                await self._link.close()

    def _started(self) -> Link:
        if self._link is None or not self._is_started:
            raise TransportClosedError("the transport was not started, or was closed")
        return self._link

"""RabbitMQ: quorum queues and publisher confirms, over the connection of FastStream's broker.

An endpoint is a durable quorum queue; a name is a routing key of one direct exchange. FastStream's broker connects,
reconnects and publishes. Its subscribers are not used: on stopping they wait for what is in hand before they cancel
the consumer, and what arrives meanwhile is neither handled nor given back.

RabbitMQ cannot give a message back for later. A retry goes into a waiting queue of its delay, whose messages expire
into the endpoint's queue (at-least-once dead-lettering, so that none is lost on the way), and is acknowledged when
that queue has it. Delays are rounded up by at most a quarter, so that few such queues are needed; unused ones vanish.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

from aio_pika.abc import AbstractIncomingMessage, AbstractRobustChannel, AbstractRobustConnection, AbstractRobustQueue
from aio_pika.exceptions import AMQPError, AuthenticationError, ProbableAuthenticationError
from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed
from faststream.rabbit import RabbitBroker, RabbitExchange
from pamqp.commands import Basic

from saga_bus.core import TransportError, TransportUnavailableError
from saga_bus.transport_faststream._hands import Hands
from saga_bus.transport_faststream._link import Options, Take
from saga_bus.transport_faststream._names import broker_name
from saga_bus.transport_faststream._wire import ATTEMPT, DEAD, plain_headers

__all__ = ["RabbitLink", "open_broker", "open_link"]

_log = logging.getLogger("saga_bus.transport_faststream")

# RabbitMQ 4 drops a message after 20 deliveries unless told otherwise; version 3 knows no value for "never".
_DELIVERY_LIMIT = 1_000_000
_UNUSED_FOR = 600_000  # milliseconds after which a waiting queue vanishes that got no message meanwhile
_SHORTEST_DELAY = 8  # milliseconds
_RECONNECT_EVERY = 0.5  # seconds


def open_broker(url: str) -> RabbitBroker:
    """FastStream's broker for a URL."""
    return RabbitBroker(url, logger=None, reconnect_interval=_RECONNECT_EVERY)


def open_link(broker: RabbitBroker, options: Options, *, owned: bool) -> RabbitLink:
    """The link to RabbitMQ."""
    return RabbitLink(broker, options, owned=owned)


class RabbitLink:
    """See the module."""

    refused: tuple[type[Exception], ...] = (
        AuthenticationError,
        ProbableAuthenticationError,
        ChannelAccessRefused,
        ChannelPreconditionFailed,
    )
    # RuntimeError: what aio-pika raises for a connection or channel that is closed just now.
    unavailable: tuple[type[Exception], ...] = (AMQPError, RuntimeError)
    gone: tuple[type[Exception], ...] = (AMQPError, RuntimeError, OSError)

    def __init__(self, broker: RabbitBroker, options: Options, *, owned: bool) -> None:
        self._broker = broker
        self._options = options
        self._owned = owned
        self._connection: AbstractRobustConnection | None = None
        self._declarations: AbstractRobustChannel | None = None
        self._exchange = RabbitExchange(f"{options.prefix}.events", declare=False)
        self._known: set[str] = set()
        self._listening: list[_Listening] = []

    async def start(self) -> None:
        """Connect, and declare the exchange."""
        self._connection = await self._broker.connect()
        channel = await self._channel()
        await channel.declare_exchange(self._exchange.name, "direct", durable=True, robust=False)

    async def publish(self, name: str, body: bytes, headers: dict[str, str]) -> None:
        """To the exchange; a name that nobody listens to goes nowhere."""
        await self._confirmed(body, headers, exchange=self._exchange, routing_key=broker_name(name), mandatory=False)

    async def send(self, endpoint: str, body: bytes, headers: dict[str, str]) -> None:
        """To the endpoint's queue, declared before the first message to it."""
        queue = broker_name(endpoint)
        for _ in range(2):
            if queue not in self._known:
                await self._declare_endpoint(await self._channel(), queue, robust=False)
            if await self._confirmed(body, headers, queue=self._endpoint(queue)):
                return
            self._known.discard(queue)  # somebody deleted it
        raise TransportUnavailableError(f"RabbitMQ returned a message to {endpoint!r}: its queue was deleted")

    async def listen(self, endpoint: str, names: Collection[str], take: Take, concurrency: int) -> None:
        """Consume from the endpoint's queue, bound to the names."""
        assert self._connection is not None  # noqa: S101 - the transport is started
        channel = await self._connection.channel()
        hands = Hands(take, concurrency, self._options.prefetch)
        await channel.set_qos(prefetch_count=hands.capacity)
        queue = await self._declare_endpoint(channel, broker_name(endpoint), robust=True)
        for name in names:
            await queue.bind(self._exchange.name, routing_key=broker_name(name))

        async def receive(message: AbstractIncomingMessage) -> None:
            hands.add(_RabbitParcel(self, broker_name(endpoint), message))

        self._listening.append(_Listening(channel, queue, await queue.consume(receive), hands))

    async def stop_receiving(self) -> None:
        """Cancel the consumers; what they brought stays in hand."""
        for listening in self._listening:
            if listening.tag is not None:
                tag, listening.tag = listening.tag, None
                try:
                    await listening.queue.cancel(tag)
                except self.gone as error:
                    _log.debug("a consumer went with its connection: %r", error)

    async def close(self) -> None:
        """Closing the channels gives back what is in hand."""
        await self.stop_receiving()
        for listening in self._listening:
            await listening.hands.drop()
        channels = [listening.channel for listening in self._listening]
        self._listening.clear()
        try:
            for channel in [*channels, self._declarations]:
                if channel is not None and not channel.is_closed:
                    await channel.close()
            if self._owned:
                await self._broker.stop()
        except self.gone as error:
            _log.debug("the connection was gone already: %r", error)

    async def wait(self, queue: str, delay: timedelta, body: bytes, headers: Mapping[str, Any]) -> None:
        """Have a message come to a queue later.

        Args:
            queue: The endpoint's name as the broker knows it.
            delay: How much later, at least.
            body: The message.
            headers: Its headers.
        """
        if delay <= timedelta(0):
            await self._must_confirm(body, headers, self._endpoint(queue))
            return
        milliseconds = _rounded_up(delay)
        name = f"{self._options.prefix}.wait.{milliseconds}.{queue}"
        # Declared each time: that is what keeps it from vanishing while its messages wait.
        await (await self._channel()).declare_queue(
            name,
            durable=True,
            robust=False,
            arguments={
                **_quorum(self._endpoint(queue)),
                "x-message-ttl": milliseconds,
                "x-expires": milliseconds + _UNUSED_FOR,
            },
        )
        await self._must_confirm(body, headers, name)

    async def bury(self, queue: str, body: bytes, headers: Mapping[str, Any]) -> None:
        """Put a message among the dead letters.

        Args:
            queue: The endpoint's name as the broker knows it.
            body: The message.
            headers: Its headers.
        """
        await self._must_confirm(body, headers, self._dead(queue))

    def _endpoint(self, queue: str) -> str:
        return f"{self._options.prefix}.endpoint.{queue}"

    def _dead(self, queue: str) -> str:
        return f"{self._options.prefix}.dead.{queue}"

    async def _channel(self) -> AbstractRobustChannel:
        if self._declarations is None or self._declarations.is_closed:
            assert self._connection is not None  # noqa: S101 - the transport is started
            self._declarations = await self._connection.channel()
        return self._declarations

    async def _declare_endpoint(
        self, channel: AbstractRobustChannel, queue: str, *, robust: bool
    ) -> AbstractRobustQueue:
        dead = self._dead(queue)
        await channel.declare_queue(dead, durable=True, robust=robust, arguments={"x-queue-type": "quorum"})
        declared = await channel.declare_queue(
            self._endpoint(queue),
            durable=True,
            robust=robust,
            arguments={**_quorum(dead), "x-delivery-limit": _DELIVERY_LIMIT},
        )
        self._known.add(queue)
        return declared

    async def _must_confirm(self, body: bytes, headers: Mapping[str, Any], queue: str) -> None:
        if not await self._confirmed(body, headers, queue=queue):
            raise TransportUnavailableError(f"RabbitMQ returned a message: the queue {queue!r} was deleted")

    async def _confirmed(self, body: bytes, headers: Mapping[str, Any], **where: Any) -> bool:
        """Publish, and say whether a queue has it (or none had to)."""
        answer = await self._broker.publish(
            body, headers=dict(headers), persist=True, content_type="application/json", **where
        )
        if answer is None:
            raise TransportError("the broker's default channel has publisher confirms turned off")
        return isinstance(answer, Basic.Ack)


class _Listening:
    """One endpoint that is listened to."""

    def __init__(self, channel: AbstractRobustChannel, queue: AbstractRobustQueue, tag: str, hands: Hands) -> None:
        self.channel = channel
        self.queue = queue
        self.tag: str | None = tag
        self.hands = hands


class _RabbitParcel:
    """One message of a queue."""

    def __init__(self, link: RabbitLink, queue: str, message: AbstractIncomingMessage) -> None:
        self._link = link
        self._queue = queue
        self._message = message
        self.headers = plain_headers(message.headers)

    @property
    def body(self) -> bytes:
        """Its bytes."""
        return self._message.body

    @property
    def attempt(self) -> int:
        """Counted by our retries, and by the queue where a worker died."""
        died = self._message.headers.get("x-delivery-count", 0)
        return self._retries() + (died if isinstance(died, int) else 0) + 1

    async def ack(self) -> None:
        """Acknowledge."""
        await self._message.ack()

    async def retry(self, delay: timedelta) -> None:
        """Into the waiting queue, then acknowledge."""
        await self._link.wait(self._queue, delay, self.body, {**self._own(), ATTEMPT: str(self.attempt)})
        await self._message.ack()

    async def bury(self, note: str) -> None:
        """Into the queue of dead letters, then acknowledge."""
        await self._link.bury(self._queue, self.body, {**self._own(), DEAD: note})
        await self._message.ack()

    async def keep(self) -> None:
        """The connection says it."""

    async def release(self) -> None:
        """Closing the channel does it."""

    def _own(self) -> dict[str, Any]:
        # What RabbitMQ added on the way ("x-death", "x-delivery-count") would be taken for the message's own.
        return {name: value for name, value in self._message.headers.items() if not name.startswith("x-")}

    def _retries(self) -> int:
        written = self.headers.get(ATTEMPT, "")
        return int(written) if written.isascii() and written.isdigit() else 0


def _quorum(successor: str) -> dict[str, Any]:
    return {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": successor,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",  # which that strategy needs
    }


def _rounded_up(delay: timedelta) -> int:
    """Milliseconds of the form 4, 5, 6 or 7 times a power of two: not before the delay, at most a quarter after."""
    wanted = max(-(-delay // timedelta(milliseconds=1)), _SHORTEST_DELAY)
    step = 1 << (wanted.bit_length() - 3)
    return int(-(-wanted // step) * step)

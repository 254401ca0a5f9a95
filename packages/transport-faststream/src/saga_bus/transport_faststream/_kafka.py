"""Kafka: a topic for each name and one for each endpoint, consumer groups, by FastStream's producer and consumers.

A consumer of a group takes one message, ends it, and takes the next: what Kafka remembers is how far a group has
come in each part of a topic, so two messages in hand of one part could not be acknowledged apart. An endpoint has as
many consumers in a process as it may have messages in hand, at most one for each part. Kafka cannot give a message
back for later. A retry goes into a topic of those that wait, and from there back to the endpoint when it is due, in
the order in which they came: a long delay holds up those behind it. A new endpoint begins with the oldest messages
that its topics still hold.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta
from typing import Any, Literal

import faststream.confluent
from confluent_kafka import KafkaException, Message
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]
from faststream.confluent import KafkaBroker
from faststream.middlewares import AckPolicy

from saga_bus.transport_faststream._link import Options, Take
from saga_bus.transport_faststream._names import broker_name
from saga_bus.transport_faststream._wire import ATTEMPT, DEAD, plain_headers

__all__ = ["KafkaLink", "open_broker", "open_link"]

_log = logging.getLogger("saga_bus.transport_faststream")

_DUE = "saga-bus-due"  # the moment of a retry, in milliseconds since 1970
_POLL = 0.5  # seconds that a consumer waits for a message
_PAUSE = 0.5  # seconds before a message that could not be ended is taken again
# Milliseconds between two messages after which a worker counts as hanging; one that died is known by its heartbeats.
_LONGEST_HANDLING = 900_000
_LONGEST_WAIT = 86_400_000
_ADMIN_TIMEOUT = 15.0

_Kind = Literal["event", "send", "wait", "dead"]
_Handle = Callable[[Message], Awaitable[bool]]  # says whether the message was ended


def open_broker(url: str) -> KafkaBroker:
    """FastStream's broker for a URL."""
    return KafkaBroker(url.removeprefix("kafka://").rstrip("/"), logger=None, acks="all")


def open_link(broker: KafkaBroker, options: Options, *, owned: bool) -> KafkaLink:
    """The link to Kafka."""
    return KafkaLink(broker, options, owned=owned)


class KafkaLink:
    """See the module."""

    refused: tuple[type[Exception], ...] = ()
    unavailable: tuple[type[Exception], ...] = (KafkaException,)

    def __init__(self, broker: KafkaBroker, options: Options, *, owned: bool) -> None:
        self._broker = broker
        self._options = options
        self._owned = owned
        self._topics: set[str] = set()
        self._subscribers: list[Any] = []
        self._loops: list[asyncio.Task[None]] = []
        self._is_receiving = True

    async def start(self) -> None:
        """Connect."""
        await self._broker.connect()
        # The client connects in the background; a cluster that is not there is known by a question.
        await asyncio.to_thread(self._admin.list_topics, timeout=min(_ADMIN_TIMEOUT, self._seconds))

    async def publish(self, name: str, body: bytes, headers: dict[str, str]) -> None:
        """To the name's topic."""
        await self._confirmed(self._topic("event", name), body, headers)

    async def send(self, endpoint: str, body: bytes, headers: dict[str, str]) -> None:
        """To the endpoint's topic."""
        await self._confirmed(self._topic("send", endpoint), body, headers)

    async def listen(self, endpoint: str, names: Collection[str], take: Take, concurrency: int) -> None:
        """Join the endpoint's group with as many consumers as messages may be in hand."""
        topics = [self._topic("send", endpoint), *(self._topic("event", name) for name in names)]
        waiting = self._topic("wait", endpoint)
        await self._make([*topics, waiting, self._topic("dead", endpoint)])
        group = f"{self._options.prefix}..{broker_name(endpoint, '.')}"

        async def handle(message: Message) -> bool:
            parcel = _KafkaParcel(self, endpoint, message)
            await take(parcel)
            return parcel.is_ended

        async def pass_on(message: Message) -> bool:
            headers = _headers(message)
            due = int(headers.pop(_DUE, "0")) / 1000
            await asyncio.sleep(max(0.0, due - time.time()))
            await self._confirmed(topics[0], message.value() or b"", headers)
            return True

        for _ in range(min(concurrency, self._options.partitions)):
            await self._consume(endpoint, topics, group, handle, _LONGEST_HANDLING)
        await self._consume(endpoint, [waiting], f"{group}..wait", pass_on, _LONGEST_WAIT)

    async def stop_receiving(self) -> None:
        """Take no more; what is in hand goes on."""
        self._is_receiving = False

    async def close(self) -> None:
        """Leave the groups; what was not acknowledged goes to others of them."""
        await self.stop_receiving()
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self._loops.clear()
        for subscriber in self._subscribers:
            await subscriber.stop()
        self._subscribers.clear()
        if self._owned:
            await self._broker.stop()

    async def again(self, endpoint: str, delay: timedelta, body: bytes, headers: dict[str, str]) -> None:
        """Have a message come again.

        Args:
            endpoint: Its endpoint.
            delay: Not before this.
            body: The message.
            headers: Its headers.
        """
        if delay <= timedelta(0):
            await self._confirmed(self._topic("send", endpoint), body, headers)
            return
        due = str(int((time.time() + delay.total_seconds()) * 1000) + 1)
        await self._confirmed(self._topic("wait", endpoint), body, {**headers, _DUE: due})

    async def bury(self, endpoint: str, body: bytes, headers: dict[str, str]) -> None:
        """Put a message among the dead letters.

        Args:
            endpoint: Its endpoint.
            body: The message.
            headers: Its headers.
        """
        await self._confirmed(self._topic("dead", endpoint), body, headers)

    @property
    def _admin(self) -> Any:
        return self._broker.config.broker_config.admin.client

    @property
    def _seconds(self) -> float:
        return self._options.timeout.total_seconds()

    def _topic(self, kind: _Kind, name: str) -> str:
        # Two dots cannot be part of a name that was mapped.
        return f"{self._options.prefix}..{kind}..{broker_name(name, '.')}"

    async def _confirmed(self, topic: str, body: bytes, headers: dict[str, str]) -> None:
        await self._make([topic])
        await self._broker.publish(body, topic, headers=headers)

    async def _make(self, topics: Collection[str]) -> None:
        """Make the topics that are not there, unless the cluster is to do it by itself."""
        options = self._options
        wanted = set(topics) - self._topics
        if not wanted or not options.make_topics:
            return
        made = self._admin.create_topics(
            [NewTopic(topic, options.partitions, options.replicas) for topic in sorted(wanted)],
            request_timeout=min(_ADMIN_TIMEOUT, self._seconds),
        )
        for future in made.values():
            try:
                await asyncio.wrap_future(future)
            except KafkaException as error:
                if "TOPIC_ALREADY_EXISTS" not in str(error):
                    raise
        self._topics |= wanted

    async def _consume(self, endpoint: str, topics: list[str], group: str, handle: _Handle, longest: int) -> None:
        subscriber = self._broker.subscriber(
            *map(_undeclared, topics),
            group_id=group,
            auto_offset_reset="earliest",
            ack_policy=AckPolicy.MANUAL,
            max_poll_interval_ms=longest,
            no_reply=True,
        )
        self._subscribers.append(subscriber)
        await subscriber.start()
        self._loops.append(asyncio.create_task(self._take_one_by_one(endpoint, subscriber.consumer, handle)))

    async def _take_one_by_one(self, endpoint: str, consumer: Any, handle: _Handle) -> None:
        while self._is_receiving:
            message: Message | None = None
            try:
                message = await consumer.getone(timeout=_POLL)
                if message is None:
                    continue
                if self._is_receiving and await handle(message):
                    await consumer.commit(asynchronous=False)
                    continue
            except Exception as error:  # noqa: BLE001 - whatever it is, listening goes on
                _log.warning("could not take a message of %r, will try again: %r", endpoint, error)
            await self._rewind(consumer, message)

    async def _rewind(self, consumer: Any, message: Message | None) -> None:
        await asyncio.sleep(_PAUSE)
        if message is None:
            return
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        if topic is None or partition is None or offset is None:
            return
        try:
            await consumer.seek(topic, partition, offset)
        except KafkaException as error:
            _log.debug("the part of the topic has gone to another consumer: %r", error)


class _KafkaParcel:
    """One message of a topic; it is committed when its handling has returned."""

    def __init__(self, link: KafkaLink, endpoint: str, message: Message) -> None:
        self._link = link
        self._endpoint = endpoint
        self.body = message.value() or b""
        self.headers = _headers(message)
        self.is_ended = False

    @property
    def attempt(self) -> int:
        """Counted by our retries alone: Kafka does not say how often it delivered."""
        written = self.headers.get(ATTEMPT, "")
        return (int(written) if written.isascii() and written.isdigit() else 0) + 1

    async def ack(self) -> None:
        """Go on behind it."""
        self.is_ended = True

    async def retry(self, delay: timedelta) -> None:
        """Into the topic of those that wait."""
        await self._link.again(self._endpoint, delay, self.body, {**self.headers, ATTEMPT: str(self.attempt)})
        self.is_ended = True

    async def bury(self, note: str) -> None:
        """Into the topic of dead letters."""
        await self._link.bury(self._endpoint, self.body, {**self.headers, DEAD: note})
        self.is_ended = True

    async def keep(self) -> None:
        """The heartbeats of the client say it."""

    async def release(self) -> None:
        """Leaving the group does it."""


def _headers(message: Message) -> dict[str, str]:
    return plain_headers(dict(message.headers() or []))


def _undeclared(topic: str) -> Any:
    """A topic that FastStream does not make, where it can be told so."""
    kind = getattr(faststream.confluent, "Topic", None)
    return topic if kind is None else kind(topic, declare=False)

"""NATS JetStream: one stream, durable pull consumers, over the connection of FastStream's broker.

One stream holds what is published and sent, for some days; another one holds the dead letters. (Retention by interest
would remove what every consumer has acknowledged. But a server of version 2.9 that is killed and comes back with it
drops messages that its consumers have not acknowledged.)

An endpoint is a durable consumer for what is sent to it, and one for each name it listens to: a consumer of several
subjects needs NATS 2.10. FastStream's broker connects, reconnects and publishes. Its subscribers are not used: they
handle one batch to its end before they fetch the next, and nothing tells the server that a message is still in hand.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from datetime import timedelta
from weakref import WeakKeyDictionary

from faststream.nats import NatsBroker
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import AuthorizationError, Error
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import BadRequestError

from saga_bus.core import TransportError
from saga_bus.transport_faststream._hands import Hands
from saga_bus.transport_faststream._link import Options, Take
from saga_bus.transport_faststream._names import broker_name
from saga_bus.transport_faststream._nats_pull import pull
from saga_bus.transport_faststream._wire import DEAD

__all__ = ["NatsLink", "open_broker", "open_link"]

_log = logging.getLogger("saga_bus.transport_faststream")

_NAME_TAKEN = 10058  # the JetStream API's code for a stream that is there with another configuration
_PAUSE = 0.5  # seconds before asking a server again that failed


class _Refusal:
    """Notes that the server refused the user: while it connects, the client tells nobody else, and tries for ever."""

    def __init__(self) -> None:
        self.seen = asyncio.Event()

    async def note(self, error: Exception) -> None:
        _log.debug("NATS: %s", str(error))  # not the error, whose traceback holds the connection
        if _is_refusal(error):
            self.seen.set()


_REFUSALS: WeakKeyDictionary[NatsBroker, _Refusal] = WeakKeyDictionary()


def open_broker(url: str) -> NatsBroker:
    """FastStream's broker for a URL."""
    refusal = _Refusal()
    broker = NatsBroker(
        url,
        logger=None,
        error_cb=refusal.note,
        allow_reconnect=True,
        max_reconnect_attempts=-1,
        reconnect_time_wait=1,
    )
    _REFUSALS[broker] = refusal
    return broker


def open_link(broker: NatsBroker, options: Options, *, owned: bool) -> NatsLink:
    """The link to NATS."""
    return NatsLink(broker, options, owned=owned)


class NatsLink:
    """See the module."""

    refused: tuple[type[Exception], ...] = (AuthorizationError, BadRequestError)
    unavailable: tuple[type[Exception], ...] = (Error,)

    def __init__(self, broker: NatsBroker, options: Options, *, owned: bool) -> None:
        self._broker = broker
        self._options = options
        self._owned = owned
        self._client: Client | None = None
        self._known: set[str] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._hands: list[Hands] = []
        self._keeping: asyncio.Task[None] | None = None

    @property
    def _stream(self) -> str:
        return self._options.prefix

    @property
    def _jetstream(self) -> JetStreamContext:
        assert self._client is not None  # noqa: S101 - the transport is started
        return self._client.jetstream(timeout=self._options.timeout.total_seconds())

    async def start(self) -> None:
        """Connect, and make the two streams."""
        self._client = await self._connected()
        prefix = self._options.prefix
        subjects = [f"{prefix}.event.>", f"{prefix}.send.>"]
        await self._make_stream(self._stream, subjects, self._options.retain)
        await self._make_stream(f"{prefix}-dead", [f"{prefix}.dead.>"], None)
        self._keeping = asyncio.create_task(self._keep_what_is_in_hand())

    async def publish(self, name: str, body: bytes, headers: dict[str, str]) -> None:
        """To the name's subject; without a consumer the server drops it."""
        await self._confirmed(self._event(name), self._stream, body, headers)

    async def send(self, endpoint: str, body: bytes, headers: dict[str, str]) -> None:
        """To the endpoint's subject, for which a consumer is made before the first message."""
        if endpoint not in self._known:
            await self._make_consumer(broker_name(endpoint), self._send(endpoint))
            self._known.add(endpoint)
        await self._confirmed(self._send(endpoint), self._stream, body, headers)

    async def listen(self, endpoint: str, names: Collection[str], take: Take, concurrency: int) -> None:
        """Pull from the endpoint's consumers."""
        # "@@" cannot be part of a name that was mapped.
        subjects = {f"{broker_name(endpoint)}@@{broker_name(name)}": self._event(name) for name in names}
        subjects[broker_name(endpoint)] = self._send(endpoint)
        hands = Hands(take, concurrency, self._options.prefetch)
        for durable, subject in subjects.items():
            await self._make_consumer(durable, subject)
        self._known.add(endpoint)
        self._hands.append(hands)
        for durable, subject in subjects.items():
            self._loops.append(asyncio.create_task(self._pull(endpoint, durable, subject, hands, len(subjects))))

    async def stop_receiving(self) -> None:
        """End the pulls; what a server sends in answer to one that is ended comes again later."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self._loops.clear()

    async def close(self) -> None:
        """Give back what is in hand."""
        await self.stop_receiving()
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        try:
            for hands in self._hands:
                for parcel in await hands.drop():
                    await parcel.release()
            if self._client is not None and self._client.is_connected:
                await self._client.flush()
            if self._owned:
                await self._broker.stop()
        except Error as error:
            _log.debug("the connection was gone already: %r", error)
        self._hands.clear()

    async def bury(self, endpoint: str, body: bytes, headers: dict[str, str]) -> None:
        """Put a message among the dead letters.

        Args:
            endpoint: The endpoint.
            body: The message.
            headers: Its headers.
        """
        prefix = self._options.prefix
        await self._confirmed(f"{prefix}.dead.{broker_name(endpoint)}", f"{prefix}-dead", body, headers)

    async def _connected(self) -> Client:
        connecting = asyncio.create_task(self._broker.connect())
        refusal = _REFUSALS.get(self._broker, _Refusal())
        refused = asyncio.create_task(refusal.seen.wait())
        try:
            await asyncio.wait((connecting, refused), return_when=asyncio.FIRST_COMPLETED)
            if refused.done():
                await asyncio.wait((connecting,), timeout=_PAUSE)  # it may still end by itself, and tidy up
            if not connecting.done():
                raise AuthorizationError
            return await connecting
        except Error as error:
            if _is_refusal(error):  # a plain Error, too
                raise AuthorizationError from error
            raise
        finally:
            connecting.cancel()
            refused.cancel()
            await asyncio.gather(connecting, refused, return_exceptions=True)

    def _event(self, name: str) -> str:
        return f"{self._options.prefix}.event.{broker_name(name)}"

    def _send(self, endpoint: str) -> str:
        return f"{self._options.prefix}.send.{broker_name(endpoint)}"

    async def _confirmed(self, subject: str, stream: str, body: bytes, headers: dict[str, str]) -> None:
        await self._broker.publish(
            body, subject, headers=headers, stream=stream, timeout=self._options.timeout.total_seconds()
        )

    async def _make_stream(self, name: str, subjects: list[str], retain: timedelta | None) -> None:
        wanted = StreamConfig(
            name=name,
            subjects=subjects,
            retention=RetentionPolicy.LIMITS,
            max_age=None if retain is None else retain.total_seconds(),
            storage=StorageType.FILE,
            num_replicas=self._options.replicas,
        )
        try:
            await self._jetstream.add_stream(wanted)
        except BadRequestError as error:
            if error.err_code != _NAME_TAKEN:
                raise
            # An administrator may have chosen limits, copies and retention; what it carries must be right.
            found = (await self._jetstream.stream_info(name)).config
            if found.retention == RetentionPolicy.WORK_QUEUE or set(found.subjects or ()) != set(subjects):
                raise TransportError(f"the stream {name!r} has other subjects, or is a work queue") from error

    async def _make_consumer(self, durable: str, subject: str) -> None:
        config = ConsumerConfig(
            durable_name=durable,
            filter_subject=subject,
            ack_policy=AckPolicy.EXPLICIT,
            deliver_policy=DeliverPolicy.NEW,
            ack_wait=self._options.redeliver_after.total_seconds(),
            max_deliver=-1,
            max_ack_pending=-1,  # messages that wait for their retry count, and must not stop the others
        )
        await self._jetstream.add_consumer(self._stream, config)

    async def _pull(self, endpoint: str, durable: str, subject: str, hands: Hands, shares: int) -> None:
        assert self._client is not None  # noqa: S101 - the transport is started

        async def room() -> int:
            return max(1, await hands.room() // shares)

        def deliver(message: Msg) -> None:
            hands.add(_NatsParcel(self, endpoint, message))

        while True:
            try:
                await pull(self._client, self._stream, durable, room, deliver)
            except Exception as error:  # noqa: BLE001 - whatever it is, listening goes on
                _log.warning("could not pull for %r, will ask again: %r", endpoint, error)
            await asyncio.sleep(_PAUSE)
            try:
                await self._make_consumer(durable, subject)
            except Exception as error:  # noqa: BLE001 - as above
                _log.warning("could not make the consumer of %r again: %r", endpoint, error)

    async def _keep_what_is_in_hand(self) -> None:
        every = self._options.redeliver_after.total_seconds() / 3
        while True:
            await asyncio.sleep(every)
            for parcel in [parcel for hands in self._hands for parcel in hands.held]:
                try:
                    await parcel.keep()
                except Error as error:
                    _log.debug("could not say that a message is in hand: %r", error)


class _NatsParcel:
    """One message of a consumer."""

    def __init__(self, link: NatsLink, endpoint: str, message: Msg) -> None:
        self._link = link
        self._endpoint = endpoint
        self._message = message
        self.headers: dict[str, str] = dict(message.headers or {})

    @property
    def body(self) -> bytes:
        """Its bytes."""
        return self._message.data

    @property
    def attempt(self) -> int:
        """As the server counts."""
        return self._message.metadata.num_delivered or 1

    async def ack(self) -> None:
        """Acknowledge."""
        await self._message.ack()

    async def retry(self, delay: timedelta) -> None:
        """The server holds it back."""
        await self._message.nak(delay=delay.total_seconds() or None)

    async def bury(self, note: str) -> None:
        """Into the stream of dead letters, then acknowledge."""
        await self._link.bury(self._endpoint, self.body, {**self.headers, DEAD: note})
        await self._message.ack()

    async def keep(self) -> None:
        """Start the server's clock anew."""
        if not self._message.is_acked:
            await self._message.in_progress()

    async def release(self) -> None:
        """Give it back at once."""
        if not self._message.is_acked:
            await self._message.nak()


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, AuthorizationError) or "authorization" in str(error).lower()

"""Redis Streams: a stream and a consumer group for each endpoint, over the client of FastStream's broker.

Redis has no bindings: a set for each name says which endpoints listen to it, and a script on the server puts a copy
into each of their streams in one step. An entry is removed when it is acknowledged, so a stream is as long as its
work. An entry whose worker died stays pending until another worker claims it; a worker that lives tells the server
so, however long its handler takes. A retry waits in a sorted set and comes back when it is due.

FastStream's broker makes and configures the client. Its subscribers and its producer are not used: they know no
copies for several endpoints, no delays, and end for good when a stream is made anew.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Collection
from typing import Any

from faststream.redis import RedisBroker
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from saga_bus.transport_faststream._hands import Hands
from saga_bus.transport_faststream._link import Options, Take
from saga_bus.transport_faststream._names import broker_name
from saga_bus.transport_faststream._redis_endpoint import Keys, RedisEndpoint, fields_of
from saga_bus.transport_faststream._redis_pipe import RedisPipe
from saga_bus.transport_faststream._redis_scripts import PUBLISH

__all__ = ["RedisLink", "open_broker", "open_link"]


def open_broker(url: str) -> RedisBroker:
    """FastStream's broker for a URL."""
    silent: Any = None  # FastStream's own default is a logger of its own
    return RedisBroker(url, logger=silent)


def open_link(broker: RedisBroker, options: Options, *, owned: bool) -> RedisLink:
    """The link to Redis."""
    return RedisLink(broker, options, owned=owned)


class RedisLink:
    """See the module."""

    refused: tuple[type[Exception], ...] = (AuthenticationError, NoPermissionError)
    unavailable: tuple[type[Exception], ...] = (RedisError,)

    def __init__(self, broker: RedisBroker, options: Options, *, owned: bool) -> None:
        self._broker = broker
        self._options = options
        self._owned = owned
        self._client: Any = None
        self._pipe: RedisPipe | None = None
        self._consumer = uuid.uuid4().hex
        self._endpoints: list[RedisEndpoint] = []

    async def start(self) -> None:
        """Connect."""
        self._client = await self._broker.connect()
        self._pipe = RedisPipe(self._client)
        await self._pipe.do("PING")

    async def publish(self, name: str, body: bytes, headers: dict[str, str]) -> None:
        """A copy into each listening endpoint's stream, in one step."""
        streams = self._key("endpoint", "")
        await self._do.script(PUBLISH, [self._key("listeners", name)], streams, *fields_of(body, headers))

    async def send(self, endpoint: str, body: bytes, headers: dict[str, str]) -> None:
        """Into the endpoint's stream, which is there as soon as it holds something."""
        await self._do.do("XADD", self._key("endpoint", endpoint), "*", *fields_of(body, headers))

    async def listen(self, endpoint: str, names: Collection[str], take: Take, concurrency: int) -> None:
        """Read from the endpoint's stream as one of its group."""
        keys = Keys(
            endpoint=broker_name(endpoint),
            stream=self._key("endpoint", endpoint),
            waiting=self._key("waiting", endpoint),
            dead=self._key("dead", endpoint),
            listeners=tuple(self._key("listeners", name) for name in names),
        )
        hands = Hands(take, concurrency, self._options.prefetch)
        listening = RedisEndpoint(
            self._client,
            self._do,
            keys,
            consumer=self._consumer,
            hands=hands,
            redeliver_after=self._options.redeliver_after,
        )
        await listening.begin()
        self._endpoints.append(listening)

    async def stop_receiving(self) -> None:
        """End the reads; what a server gave to one that is ended is claimed later."""
        await asyncio.gather(*(endpoint.stop_reading() for endpoint in self._endpoints))

    async def close(self) -> None:
        """Give back what is in hand."""
        await self.stop_receiving()
        for endpoint in self._endpoints:
            await endpoint.close()
        self._endpoints.clear()
        if self._owned:
            await self._broker.stop()

    @property
    def _do(self) -> RedisPipe:
        assert self._pipe is not None  # noqa: S101 - the transport is started
        return self._pipe

    def _key(self, kind: str, name: str) -> str:
        return f"{{{self._options.prefix}}}:{kind}:{broker_name(name)}"

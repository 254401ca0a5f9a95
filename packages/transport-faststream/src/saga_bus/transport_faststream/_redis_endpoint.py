"""One endpoint on Redis: its stream, and this process's reading of it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from redis.exceptions import RedisError, ResponseError

from saga_bus.transport_faststream._hands import Hands
from saga_bus.transport_faststream._redis_pipe import RedisPipe
from saga_bus.transport_faststream._redis_scripts import ACK, BURY, KEEP, LATER, REMOVE_IDLE, RETURN_DUE
from saga_bus.transport_faststream._wire import plain_headers

__all__ = ["Keys", "RedisEndpoint", "fields_of"]

_log = logging.getLogger("saga_bus.transport_faststream")

_GROUP = "workers"
_BLOCK = 1_000  # milliseconds that a read waits for entries; below any client's socket timeout
_MOST_AT_ONCE = 100
_LONGEST_WAIT = 0.5  # seconds after which a worker looks for entries that another one made wait
_PAUSE = 0.5  # seconds before asking a server again that failed
_FORGOTTEN_AFTER = 3_600_000  # milliseconds after which the name of a worker that died is removed


def fields_of(body: bytes, headers: Mapping[str, str]) -> tuple[str | bytes, ...]:
    """The fields of an entry, each name before its value.

    Args:
        body: The message.
        headers: Its headers.
    """
    return ("body", body, "headers", json.dumps(headers, separators=(",", ":")))


@dataclass(frozen=True)
class Keys:
    """Where an endpoint is kept.

    Args:
        endpoint: Its name as a member of the sets of listeners.
        stream: Its stream.
        waiting: The sorted set of what comes again later.
        dead: The stream of its dead letters.
        listeners: The set of each name that it listens to.
    """

    endpoint: str
    stream: str
    waiting: str
    dead: str
    listeners: tuple[str, ...]


class RedisEndpoint:
    """Reads one endpoint's stream as one of its group.

    Args:
        client: The Redis client, for reads that wait.
        pipe: For all else.
        keys: Where the endpoint is kept.
        consumer: This process's name in the group.
        hands: Takes what arrives.
        redeliver_after: After how long without a sign of life a message is taken from its worker.
    """

    def __init__(
        self, client: Any, pipe: RedisPipe, keys: Keys, *, consumer: str, hands: Hands, redeliver_after: timedelta
    ) -> None:
        self._client = client
        self._pipe = pipe
        self._keys = keys
        self._consumer = consumer
        self._hands = hands
        self._idle = redeliver_after
        self._reading: list[asyncio.Task[None]] = []
        self._keeping: asyncio.Task[None] | None = None
        self._is_reading = True

    async def begin(self) -> None:
        """Make the group, and begin to read."""
        await self._register()
        await self._pipe.script(REMOVE_IDLE, [self._keys.stream], _GROUP, _FORGOTTEN_AFTER)
        self._reading = [
            asyncio.create_task(self._repeat(step)) for step in (self._read, self._claim, self._return_due)
        ]
        self._keeping = asyncio.create_task(self._keep_what_is_in_hand())

    async def stop_reading(self) -> None:
        """Read no more, and give back what the server gave to a read that was cut off."""
        if not self._reading:
            return
        self._is_reading = False
        await _ended(self._reading)
        self._reading = []
        try:
            answer = await self._client.xreadgroup(_GROUP, self._consumer, {self._keys.stream: "0"})
            held = {parcel.id for parcel in self._held()}
            for _, entries in answer:
                for entry, fields in entries:
                    if entry not in held and fields:
                        await _RedisParcel(self, entry, fields, 0).retry(timedelta(0))
        except RedisError as error:
            _log.debug("could not give back what was never in hand: %r", error)

    async def close(self) -> None:
        """Give back what is in hand."""
        try:
            for parcel in await self._hands.drop():
                await parcel.release()
            await self._pipe.script(REMOVE_IDLE, [self._keys.stream], _GROUP, _FORGOTTEN_AFTER)
        except RedisError as error:
            _log.debug("could not give back what was in hand: %r", error)
        if self._keeping is not None:
            await _ended([self._keeping])
            self._keeping = None

    async def ack(self, entry: bytes) -> None:
        """Remove an entry.

        Args:
            entry: Its id.
        """
        await self._pipe.script(ACK, [self._keys.stream], _GROUP, entry)

    async def later(self, entry: bytes, delay: timedelta, attempt: int) -> None:
        """Have an entry come again.

        Args:
            entry: Its id.
            delay: Not before this.
            attempt: How many times it was delivered.
        """
        milliseconds = -(-delay // timedelta(milliseconds=1))
        keys = self._keys
        await self._pipe.script(LATER, [keys.stream, keys.waiting], _GROUP, entry, milliseconds, attempt)
        if not milliseconds:
            await self._pipe.script(RETURN_DUE, [keys.waiting, keys.stream], _MOST_AT_ONCE)

    async def bury(self, entry: bytes, note: str) -> None:
        """Put an entry among the dead letters.

        Args:
            entry: Its id.
            note: What is known of it.
        """
        await self._pipe.script(BURY, [self._keys.stream, self._keys.dead], _GROUP, entry, note)

    async def keep(self, entry: bytes) -> None:
        """Tell the server that an entry is in hand.

        Args:
            entry: Its id.
        """
        await self._pipe.script(KEEP, [self._keys.stream], _GROUP, self._consumer, entry)

    def _held(self) -> list[_RedisParcel]:
        return [parcel for parcel in self._hands.held if isinstance(parcel, _RedisParcel)]

    async def _register(self) -> None:
        try:
            await self._client.xgroup_create(self._keys.stream, _GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        for listeners in self._keys.listeners:
            await self._client.sadd(listeners, self._keys.endpoint)

    async def _repeat(self, step: Callable[[], Awaitable[None]]) -> None:
        while self._is_reading:  # a cancellation alone can get lost in the client
            try:
                await step()
            except Exception as error:  # noqa: BLE001 - whatever it is, listening goes on
                _log.warning("could not read %r, will try again: %r", self._keys.stream, error)
                await asyncio.sleep(_PAUSE)
                try:
                    await self._register()  # somebody may have deleted the stream and its group
                except Exception as again:  # noqa: BLE001 - as above
                    _log.debug("could not make the group of %r again: %r", self._keys.stream, again)

    async def _read(self) -> None:
        room = min(await self._hands.room(), _MOST_AT_ONCE)
        answer = await self._client.xreadgroup(
            _GROUP, self._consumer, {self._keys.stream: ">"}, count=room, block=_BLOCK
        )
        for _, entries in answer:
            for entry, fields in entries:
                self._hands.add(_RedisParcel(self, entry, fields, 0))

    async def _claim(self) -> None:
        await asyncio.sleep(self._idle.total_seconds() / 2)
        room = min(await self._hands.room(), _MOST_AT_ONCE)
        idle = int(self._idle / timedelta(milliseconds=1))
        _, entries, *_ = await self._client.xautoclaim(
            self._keys.stream, _GROUP, self._consumer, idle, start_id="0-0", count=room
        )
        for entry, fields in entries:
            if not fields:  # what Redis 6 says of an entry that is gone
                await self._client.xack(self._keys.stream, _GROUP, entry)
                continue
            pending = await self._client.xpending_range(self._keys.stream, _GROUP, min=entry, max=entry, count=1)
            if pending:
                self._hands.add(_RedisParcel(self, entry, fields, pending[0]["times_delivered"] - 1))

    async def _return_due(self) -> None:
        keys = self._keys
        wait = await self._pipe.script(RETURN_DUE, [keys.waiting, keys.stream], _MOST_AT_ONCE)
        await asyncio.sleep(_LONGEST_WAIT if wait < 0 else min(wait / 1000, _LONGEST_WAIT))

    async def _keep_what_is_in_hand(self) -> None:
        while True:
            await asyncio.sleep(self._idle.total_seconds() / 3)
            try:
                await asyncio.gather(*(parcel.keep() for parcel in self._held()))
            except (RedisError, OSError) as error:
                _log.debug("could not say what is in hand: %r", error)


class _RedisParcel:
    """One entry of a stream."""

    def __init__(self, endpoint: RedisEndpoint, entry: bytes, fields: Mapping[bytes, bytes], died: int) -> None:
        self._endpoint = endpoint
        self._fields = fields
        self._died = died
        self.id = entry
        self.headers = _headers(fields)

    @property
    def body(self) -> bytes:
        """Its bytes."""
        return self._fields.get(b"body", b"")

    @property
    def attempt(self) -> int:
        """Counted by our retries, and by the group where a worker died."""
        written = self._fields.get(b"attempt", b"")
        return (int(written) if written.isdigit() else 0) + self._died + 1

    async def ack(self) -> None:
        """Remove it."""
        await self._endpoint.ack(self.id)

    async def retry(self, delay: timedelta) -> None:
        """Out of the stream until it is due."""
        await self._endpoint.later(self.id, delay, self.attempt)

    async def bury(self, note: str) -> None:
        """Into the stream of dead letters, with all its fields."""
        await self._endpoint.bury(self.id, note)

    async def keep(self) -> None:
        """Stay its owner."""
        await self._endpoint.keep(self.id)

    async def release(self) -> None:
        """Give it back at once."""
        await self._endpoint.later(self.id, timedelta(0), self.attempt)


def _headers(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    try:
        headers = json.loads(fields.get(b"headers", b"{}"))
    except ValueError:
        return {}
    return plain_headers(headers) if isinstance(headers, dict) else {}


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_PAUSE)

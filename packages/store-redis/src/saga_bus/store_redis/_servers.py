"""One server: commands sent over its connections exactly once, and the driver's errors translated.

redis-py's own methods send a command again when the connection breaks. A write that was applied the first time would
then fail as a conflict with itself, so the store takes a connection from the pool and speaks over it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import redis
from redis.exceptions import ReadOnlyError, ResponseError

from saga_bus.store import StoreClosedError
from saga_bus.store_redis._errors import DRIVER_ERRORS, translated

__all__ = ["Command", "Gate", "Server", "Timeouts"]

Command = Sequence[bytes]

# From 5.3 on the method warns of an argument, which it wants before.
_ARGUMENTS = () if tuple(map(int, redis.__version__.split(".")[:2])) >= (5, 3) else ("EVALSHA",)


@dataclass(frozen=True)
class Timeouts:
    """How long to wait, in seconds.

    Args:
        connect: For a connection.
        command: For an answer; None for ever.
    """

    connect: float
    command: float | None


class Gate:
    """Lets nobody in once it is closed, and closes when everybody is out; use it with ``with``."""

    def __init__(self) -> None:
        self._is_closed = False
        self._inside = 0
        self._leaving: asyncio.Future[None] | None = None

    def __enter__(self) -> None:
        if self._is_closed:
            raise StoreClosedError("the store is closed")
        self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside -= 1
        if self._inside == 0 and self._leaving is not None and not self._leaving.done():
            self._leaving.set_result(None)

    async def close(self) -> None:
        """Close it, and wait until nobody is inside."""
        self._is_closed = True
        if self._inside:
            self._leaving = asyncio.get_running_loop().create_future()
            await self._leaving


class Server:
    """One server.

    Args:
        pool: Its connections.
        timeouts: How long to wait.
    """

    def __init__(self, pool: Any, timeouts: Timeouts) -> None:
        self._pool = pool
        self._timeouts = timeouts

    async def ask(self, commands: Sequence[Command], *, writing: bool = False) -> list[Any]:
        """Send commands in one go, over one connection.

        Args:
            commands: The commands.
            writing: Whether one of them changes something.

        Returns:
            Their replies as bytes; an error reply is a ``ResponseError`` among them.

        Raises:
            StoreUnavailableError: There is no connection, or it was lost.
            OutcomeUnknownError: It was lost after a write was sent.
        """
        connection = await self._connection()
        sent = False
        try:
            async with asyncio.timeout(self._timeouts.command):
                packed = _packed(commands)
                sent = True
                await connection.send_packed_command(packed)
                replies = [await _reply(connection) for _ in commands]
            if any(isinstance(reply, ReadOnlyError) for reply in replies):
                await connection.disconnect()  # the next connection asks again who the primary is
        except DRIVER_ERRORS as error:
            raise translated(error, sent=writing and sent) from error
        finally:
            await self._pool.release(connection)
        return replies

    async def close(self) -> None:
        """Close the connections."""
        try:
            await self._pool.disconnect()
        except DRIVER_ERRORS:
            return  # what cannot be closed is closed

    async def _connection(self) -> Any:
        try:
            async with asyncio.timeout(self._timeouts.connect):
                return await self._pool.get_connection(*_ARGUMENTS)
        except DRIVER_ERRORS as error:
            raise translated(error, sent=False) from error


async def _reply(connection: Any) -> Any:
    try:
        # Whatever the client decodes: documents and packed outcomes are bytes.
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        # What a connection has answered is read: it stays usable.
        return error


def _packed(commands: Sequence[Command]) -> bytes:
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        parts += [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in command]
    return b"".join(parts)

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
from saga_bus.store.deadlines import Deadlines
from saga_bus.store_redis._errors import DRIVER_ERRORS, translated

__all__ = ["Command", "Gate", "Limits", "Server"]

Command = Sequence[bytes]

_VERSION = tuple(map(int, redis.__version__.split(".")[:2]))
_ARGUMENTS = () if _VERSION >= (5, 3) else ("EVALSHA",)  # from 5.3 on the pool warns of what it wanted before


@dataclass(frozen=True)
class Limits:
    """How long to wait, in seconds, and how many connections to use.

    Args:
        connect: For a connection.
        command: For an answer; None for ever.
        connections: The most connections to one server at the same time.
    """

    connect: float
    command: float | None
    connections: int


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
        limits: How long to wait, and how many connections to use.
        keeps: Whether to keep connections out of the pool between two uses, which saves what the pool does each time.
    """

    def __init__(self, pool: Any, limits: Limits, *, keeps: bool) -> None:
        self._pool = pool
        self._limits = limits
        self._keeps = keeps
        self._kept: list[Any] = []
        self._turns = asyncio.Semaphore(limits.connections)
        self._deadlines = Deadlines(limits.command)

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
        await self._turns.acquire()  # this and much else here is plain, as it is done for each call of a lone caller
        try:
            kept = self._kept
            connection = kept.pop() if kept and _is_quiet(kept[-1]) else await self._connection()
            return await self._exchange(connection, commands, writing)
        finally:
            self._turns.release()

    async def _exchange(self, connection: Any, commands: Sequence[Command], writing: bool) -> list[Any]:  # noqa: FBT001
        replies: list[Any] = []
        sent = is_usable = is_replica = False
        try:
            with self._deadlines.start():
                packed = _packed(commands)
                sent = True
                await connection.send_packed_command(packed)
                for _ in commands:
                    try:
                        # Whatever the client decodes: documents and packed outcomes are bytes.
                        replies.append(await connection.read_response(disable_decoding=True))
                    except ResponseError as error:
                        replies.append(error)  # it is an answer like others: the connection stays usable
                        is_replica = is_replica or isinstance(error, ReadOnlyError)
            if is_replica:
                await connection.disconnect()  # the next connection asks again who the primary is
            is_usable = not is_replica
        except DRIVER_ERRORS as error:
            raise translated(error, sent=writing and sent) from error
        finally:
            if is_usable and self._keeps:
                self._kept.append(connection)
            else:
                await self._pool.release(connection)
        return replies

    async def close(self) -> None:
        """Close the connections."""
        self._deadlines.close()
        try:
            while self._kept:
                await self._pool.release(self._kept.pop())
            await self._pool.disconnect()
        except DRIVER_ERRORS:
            return  # what cannot be closed is closed

    async def _connection(self) -> Any:
        while self._kept:
            connection = self._kept.pop()
            if _is_quiet(connection):
                return connection
            await self._pool.release(connection)  # the pool connects it again
        try:
            async with asyncio.timeout(self._limits.connect):
                connection = await self._pool.get_connection(*_ARGUMENTS)
                try:
                    if _was_reset(connection):
                        await connection.disconnect()
                        await connection.connect()
                except BaseException:
                    await self._pool.release(connection)
                    raise
                return connection
        except DRIVER_ERRORS as error:
            raise translated(error, sent=False) from error


def _is_quiet(connection: Any) -> bool:
    """Whether a connection is open, and holds no answer that nobody has read.

    redis-py has a coroutine for this, which in its older versions waits for the event loop.
    """
    reader, writer = getattr(connection, "_reader", None), getattr(connection, "_writer", None)
    if not (isinstance(reader, asyncio.StreamReader) and isinstance(writer, asyncio.StreamWriter)):
        return False
    unread: Any = getattr(reader, "_buffer", b"")
    return not (unread or reader.at_eof() or writer.is_closing())


def _was_reset(connection: Any) -> bool:
    """Whether the other end has reset a connection, which redis-py sees only when it sends something."""
    writer = getattr(connection, "_writer", None)
    return isinstance(writer, asyncio.StreamWriter) and writer.is_closing()


def _packed(commands: Sequence[Command]) -> bytes:
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        parts += [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in command]
    return b"".join(parts)

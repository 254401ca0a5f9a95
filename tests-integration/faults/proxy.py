"""A TCP proxy on loopback that can refuse, hold or cut connections, at the moment that a test chooses.

It runs in the event loop of the test. "Request" and "answer" are bytes: the proxy knows no protocol, so a test
either warms its connection up first, or names bytes that only the interesting request holds.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Literal, Self

__all__ = ["Proxy"]

Moment = Literal["before", "after"]

_CHUNK = 65_536


class _Link:
    """One connection through the proxy."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.answer_is_due = False  # its answer is to be thrown away, and the connection with it
        self.tail = b""  # of what the client sent: the bytes looked for may come in two chunks
        self.is_answered = True  # since the client last sent something

    def cut(self) -> None:
        for writer in (self.client, self.server):
            _reset(writer)

    def end(self) -> None:
        for writer in (self.client, self.server):
            writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    if not writer.transport.is_closing():
        # Lingering for no time at all makes closing a reset.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Proxy:
    """Forwards to one address; use it with ``async with``, then connect to ``host`` and ``port``.

    Args:
        host: The server's host.
        port: The server's port.

    Attributes:
        accepted: How many connections were made.
        turns: How many round trips began: what a client sends before it has an answer is one of them.
    """

    host = "127.0.0.1"

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._refusing = False
        self._armed: Moment | None = None
        self._matching = b""
        self._fired = asyncio.Event()
        self.port = 0
        self.accepted = 0
        self.turns = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    # -- what a test does ----------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """How many connections are open through the proxy."""
        return len(self._links)

    def refuse(self) -> None:
        """Close every new connection as soon as it is made."""
        self._refusing = True

    def accept(self) -> None:
        """Take new connections again."""
        self._refusing = False

    def hold(self) -> None:
        """Forward nothing in either direction, as a network that drops every packet."""
        self._open.clear()

    def release(self) -> None:
        """Forward again, what was held first."""
        self._open.set()

    def cut(self) -> None:
        """Reset every open connection now."""
        for link in tuple(self._links):
            link.cut()

    def cut_before_request(self, matching: bytes = b"") -> None:
        """Cut the connection of the next request instead of forwarding it: the server never sees it.

        Args:
            matching: Only a request with these bytes.
        """
        self._arm("before", matching)

    def cut_after_request(self, matching: bytes = b"") -> None:
        """Forward the next request, and cut its connection when the answer comes, which is thrown away.

        Args:
            matching: Only a request with these bytes.
        """
        self._arm("after", matching)

    async def fired(self) -> None:
        """Wait until the cut that was asked for has happened, 30 seconds at the most."""
        async with asyncio.timeout(30.0):
            await self._fired.wait()

    # -- how it is done ------------------------------------------------------------------------------------

    def _arm(self, moment: Moment, matching: bytes) -> None:
        self._armed, self._matching = moment, matching
        self._fired.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._refusing:
            _reset(writer)
            return
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            return
        link = _Link(writer, server_writer)
        self._links.add(link)
        pumps = [
            asyncio.ensure_future(self._pump(reader, server_writer, lambda chunk: self._request(link, chunk))),
            asyncio.ensure_future(self._pump(server_reader, writer, lambda chunk: self._answer(link, chunk))),
        ]
        self._tasks.update(pumps)
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            link.end()
            self._links.discard(link)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._tasks.difference_update(pumps)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: Callable[[bytes], Awaitable[bool]]
    ) -> None:
        try:
            while chunk := await reader.read(_CHUNK):
                await self._open.wait()
                if not await passes(chunk):
                    return
                writer.write(chunk)
                await writer.drain()
        except OSError:
            return

    async def _request(self, link: _Link, chunk: bytes) -> bool:
        seen = link.tail + chunk
        link.tail = seen[-len(self._matching) :] if self._matching else b""
        if link.is_answered:
            self.turns += 1
            link.is_answered = False
        if self._armed is None or self._matching not in seen:
            return True
        moment, self._armed = self._armed, None
        if moment == "before":
            link.cut()
            self._fired.set()
            return False
        link.answer_is_due = True
        return True

    async def _answer(self, link: _Link, chunk: bytes) -> bool:  # noqa: ARG002 - which bytes does not matter
        link.is_answered = True
        if not link.answer_is_due:
            return True
        link.cut()
        self._fired.set()
        return False

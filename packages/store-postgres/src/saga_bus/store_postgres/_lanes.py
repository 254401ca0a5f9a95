"""Lanes: connections that the statements of one kind follow one another on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from saga_bus.store_postgres._alone import retried
from saga_bus.store_postgres._connections import Connections, drop_broken, is_usable
from saga_bus.store_postgres._errors import DRIVER_ERRORS, ROLLED_BACK, sqlstate_of, translated

__all__ = ["Lane", "Lanes"]


class Lane:
    """Runs statements one after the other, on a connection that it keeps where the pool is the store's own.

    Args:
        connections: The pool.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._kept: Any = None
        seconds = connections.command_timeout
        self._timer = None if seconds is None else _Timer(seconds)

    def read(self, statement: str, *parameters: Any) -> Awaitable[list[Any]]:
        """Run a statement that changes nothing, and return its rows.

        Args:
            statement: The statement.
            *parameters: Its parameters.
        """
        return self._fetch(statement, parameters, writing=False)

    def write(self, statement: str, *parameters: Any) -> Awaitable[list[Any]]:
        """Run a statement that commits by itself, and return its rows.

        Args:
            statement: The statement.
            *parameters: Its parameters.
        """
        return self._fetch(statement, parameters, writing=True)

    async def close(self) -> None:
        """Give the kept connection back."""
        if self._timer is not None:
            self._timer.close()
        kept, self._kept = self._kept, None
        if kept is not None:
            await self._connections.give_back(kept)

    async def _fetch(
        self, statement: str, parameters: Sequence[Any], *, writing: bool, again: bool = False
    ) -> list[Any]:
        connection = self._kept
        if connection is None or not is_usable(connection):
            connection = await self._replaced(connection)
        rows: list[Any] | None = None
        try:
            if self._timer is None:
                rows = await connection.fetch(statement, *parameters)
            else:
                self._timer.start()
                try:
                    rows = await connection.fetch_untimed(statement, *parameters)
                finally:
                    self._timer.stop()
        except asyncio.CancelledError:
            if self._timer is None or not self._timer.has_expired():
                raise
            self._kept = None
            self._connections.give_back_later(connection)
            connection = None
            late = TimeoutError()
            raise translated(late, writing=writing) from late
        except DRIVER_ERRORS as error:
            drop_broken(connection, error)
            # Serializable transactions can fail by reading, too.
            if writing or again or sqlstate_of(error) not in ROLLED_BACK:
                raise translated(error, writing=writing) from error
        finally:
            if self._kept is None and connection is not None:
                await self._connections.give_back(connection)
        return await self._read_again(statement, parameters) if rows is None else rows

    async def _read_again(self, statement: str, parameters: Sequence[Any]) -> list[Any]:
        async def attempt() -> tuple[list[Any]]:
            return (await self._fetch(statement, parameters, writing=False, again=True),)

        (rows,) = await retried(attempt)
        return rows

    async def _replaced(self, broken: Any) -> Any:
        self._kept = None
        if broken is not None:
            await self._connections.give_back(broken)
        connection = await self._connections.take()
        if self._connections.keeps:
            self._kept = connection
        return connection


class Lanes:
    """As many lanes as groups of one kind may be in flight.

    Args:
        connections: The pool.
        count: How many.
    """

    def __init__(self, connections: Connections, count: int) -> None:
        self._lanes = [Lane(connections) for _ in range(count)]
        self._idle = list(self._lanes)

    @contextmanager
    def idle(self) -> Iterator[Lane]:
        """A lane that nobody else uses meanwhile."""
        lane = self._idle.pop()
        try:
            yield lane
        finally:
            self._idle.append(lane)

    async def close(self) -> None:
        """Give the kept connections back."""
        for lane in self._lanes:
            await lane.close()


class _Timer:
    """Ends a statement that takes too long.

    asyncpg sets a timer for each statement, which takes a lone caller a tenth of its time. Here one timer stays set
    while statements come and go, and when it is due it looks whether the last one is.

    Args:
        seconds: How long a statement may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = 0.0
        self._task: asyncio.Task[Any] | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._cancelled: asyncio.Task[Any] | None = None
        self._cancelling = 0

    def start(self) -> None:
        """A statement begins in the current task."""
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task(loop)
        self._deadline = loop.time() + self._seconds
        if self._handle is None:
            self._handle = loop.call_at(self._deadline, self._look, loop)

    def stop(self) -> None:
        """The statement has ended."""
        self._task = None

    def close(self) -> None:
        """No statement begins any more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def has_expired(self) -> bool:
        """Whether the statement's task was cancelled by the timer and by nobody else, as `asyncio.timeout` tells it."""
        cancelled, self._cancelled = self._cancelled, None
        return cancelled is not None and cancelled.uncancel() <= self._cancelling

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._handle = None
        if self._task is None:
            return
        if loop.time() < self._deadline:
            self._handle = loop.call_at(self._deadline, self._look, loop)
            return
        self._cancelled, self._cancelling = self._task, self._task.cancelling()
        self._task.cancel()

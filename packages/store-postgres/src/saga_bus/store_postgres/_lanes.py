"""Lanes: connections that the statements of one kind follow one another on."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import asyncpg  # type: ignore[import-untyped]

from saga_bus.store_postgres._alone import retried
from saga_bus.store_postgres._connections import Connections, drop_broken, is_usable
from saga_bus.store_postgres._errors import DRIVER_ERRORS, ROLLED_BACK, sqlstate_of, translated

__all__ = ["Lane", "Lanes"]


class Lane:
    """Runs statements one after the other, on a connection that it keeps where the pool is the store's own.

    On a kept connection it keeps its prepared statements, too, which spares asyncpg looking for them at each call.

    Args:
        connections: The pool.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._kept: Any = None
        self._prepared: dict[str, Any] = {}  # on the kept connection
        self._deadlines = connections.deadlines

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
        kept = self._kept
        self._forget()
        if kept is not None:
            await self._connections.give_back(kept)

    async def _fetch(
        self, statement: str, parameters: Sequence[Any], *, writing: bool, again: bool = False
    ) -> list[Any]:
        connection, running = self._kept, self._begun(statement, parameters)
        if running is None:
            if connection is None or not is_usable(connection):
                connection = await self._replaced(connection)
            running = self._run(connection, statement, parameters)
        rows: list[Any] | None = None
        try:
            with self._deadlines.start():
                rows = await running
        except DRIVER_ERRORS as error:
            if isinstance(error, TimeoutError) and self._deadlines.limit is not None:
                self._forget()
                self._connections.give_back_later(connection)
                connection = None
            else:
                drop_broken(connection, error)
            if again or not self._did_nothing(error, writing=writing):
                raise translated(error, writing=writing) from error
        finally:
            if self._kept is None and connection is not None:
                await self._connections.give_back(connection)
        return await self._fetch_again(statement, parameters, writing=writing) if rows is None else rows

    def _begun(self, statement: str, parameters: Sequence[Any]) -> Awaitable[list[Any]] | None:
        """A statement that is prepared on the kept connection, if that is open."""
        prepared = self._prepared.get(statement)
        if prepared is None:
            return None
        try:
            rows: Awaitable[list[Any]] = prepared.fetch(*parameters)
        except asyncpg.InterfaceError:  # asyncpg looks at the connection here, before anything runs
            return None
        return rows

    async def _run(self, connection: Any, statement: str, parameters: Sequence[Any]) -> list[Any]:
        rows: list[Any]
        if self._connections.prepares:
            prepared = self._prepared[statement] = await connection.prepare(statement)
            rows = await prepared.fetch(*parameters)
        else:
            fetch = connection.fetch if self._deadlines.limit is None else connection.fetch_untimed
            rows = await fetch(statement, *parameters)
        return rows

    def _did_nothing(self, error: BaseException, *, writing: bool) -> bool:
        if isinstance(error, asyncpg.InvalidCachedStatementError):  # the table was altered
            self._prepared.clear()
            return True
        return not writing and sqlstate_of(error) in ROLLED_BACK  # serializable transactions can fail by reading, too

    async def _fetch_again(self, statement: str, parameters: Sequence[Any], *, writing: bool) -> list[Any]:
        async def attempt() -> tuple[list[Any]]:
            return (await self._fetch(statement, parameters, writing=writing, again=True),)

        (rows,) = await retried(attempt)
        return rows

    async def _replaced(self, broken: Any) -> Any:
        self._forget()
        if broken is not None:
            await self._connections.give_back(broken)
        connection = await self._connections.take()
        if self._connections.keeps:
            self._kept = connection
        return connection

    def _forget(self) -> None:
        self._kept = None
        self._prepared.clear()


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

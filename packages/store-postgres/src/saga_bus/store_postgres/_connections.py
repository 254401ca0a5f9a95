"""The pool, and the lanes: connections that groups of one kind follow one another on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg  # type: ignore[import-untyped]

from saga_bus.store import InvalidSagaError, StoreUnavailableError
from saga_bus.store_postgres._alone import retried
from saga_bus.store_postgres._errors import DRIVER_ERRORS, ROLLED_BACK, sqlstate_of, translated

__all__ = ["Connections", "Lane", "Lanes", "PoolSettings", "is_usable"]

# Each lane keeps a connection, six in all. A smaller pool than this keeps none, so that no operation starves.
_LEAST_FOR_KEEPING = 8
_CLOSE_TIMEOUT = 10.0

# Every statement of the store finds its rows by an index. Plans are kept for a connection's life, so one that was
# made for an empty table, where reading all of it is cheapest, would stay when the table has grown.
_PLANNER = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection that is not reset when it goes back to the pool: that is a round trip, and nothing was set."""

    def get_reset_query(self) -> str:
        return ""


def is_usable(connection: Any) -> bool:
    """Whether a connection is open.

    Args:
        connection: A connection, or what a pool hands out for one; that is taken away from its holder when the
            connection breaks, and then answers no question any more.
    """
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:
        return False


def _drop_broken(connection: Any, error: BaseException) -> None:
    # The server's last words on a connection leave asyncpg waiting for more, and every later statement fails.
    if isinstance(error, asyncpg.InternalClientError) and is_usable(connection):
        connection.terminate()


@dataclass(frozen=True)
class PoolSettings:
    """How the store opens its own pool.

    Args:
        url: The database.
        min_size: The connections that are opened at once.
        max_size: The most connections.
        connect_timeout: For making a connection, in seconds.
        command_timeout: For the answer to a statement, in seconds; None for ever.
        statement_cache_size: Prepared statements per connection; 0 for none, as a transaction pooler needs it.
    """

    url: str
    min_size: int
    max_size: int
    connect_timeout: float
    command_timeout: float | None
    statement_cache_size: int

    async def open(self) -> Any:
        """Make the pool."""
        # A pooler refuses settings at the start of a connection, and keeps no plans for us anyway.
        settings = _PLANNER if self.statement_cache_size else None
        return await asyncpg.create_pool(
            self.url,
            min_size=self.min_size,
            max_size=self.max_size,
            timeout=self.connect_timeout,
            command_timeout=self.command_timeout,
            statement_cache_size=self.statement_cache_size,
            max_cacheable_statement_size=0,
            server_settings=settings,
            connection_class=_Connection,
        )


class Connections:
    """The pool of a store: its own, which it opens and closes, or a given one, which it leaves alone.

    Args:
        pool: The given pool.
        settings: How to open an own one; exactly one of the two.
        acquire_timeout: How long to wait for a free connection, in seconds.
    """

    def __init__(self, *, pool: Any = None, settings: PoolSettings | None = None, acquire_timeout: float) -> None:
        self._pool: Any = pool
        self._settings = settings
        self._acquire_timeout = acquire_timeout
        self.keeps = settings is not None and settings.max_size >= _LEAST_FOR_KEEPING

    async def open(self) -> None:
        """Open the own pool.

        Raises:
            StoreUnavailableError: The server cannot be reached.
        """
        if self._settings is not None:
            try:
                self._pool = await self._settings.open()
            except DRIVER_ERRORS as error:
                raise translated(error, writing=False) from error
            except ValueError as error:  # asyncpg's own checks of a URL and its options
                raise InvalidSagaError("asyncpg does not take the URL or an option") from error

    async def close(self) -> None:
        """Close the own pool; what still runs on it gets a while to end."""
        if self._settings is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._pool.close()
        except DRIVER_ERRORS:
            self._pool.terminate()

    async def take(self) -> Any:
        """Take a connection, to be given back.

        Raises:
            StoreUnavailableError: None was free in time, or none can be made.
        """
        try:
            return await self._pool.acquire(timeout=self._acquire_timeout)
        except DRIVER_ERRORS as error:
            if isinstance(error, TimeoutError) and not isinstance(error, ConnectionError):
                raise StoreUnavailableError(
                    f"no connection was free or could be made within {self._acquire_timeout:g} s"
                ) from error
            raise translated(error, writing=False) from error

    async def give_back(self, connection: Any) -> None:
        """Give a connection back; a broken one is dropped.

        Args:
            connection: What `take` returned.
        """
        try:
            await self._pool.release(connection)
        except DRIVER_ERRORS:
            return  # the pool has closed it and will make another one

    @asynccontextmanager
    async def connection(self, *, writing: bool) -> AsyncIterator[Any]:
        """A connection for a while, with the driver's errors translated.

        Args:
            writing: Whether writes are sent that commit by themselves.
        """
        taken = await self.take()
        try:
            yield taken
        except DRIVER_ERRORS as error:
            _drop_broken(taken, error)
            raise translated(error, writing=writing) from error
        finally:
            await self.give_back(taken)


class Lane:
    """Runs statements one after the other, on a connection that it keeps where the pool is the store's own.

    Args:
        connections: The pool.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._kept: Any = None

    async def read(self, statement: str, *parameters: Any) -> list[Any]:
        """Run a statement that changes nothing, and return its rows.

        Args:
            statement: The statement.
            *parameters: Its parameters.
        """
        try:
            return await self._fetch(statement, parameters, writing=False)
        except StoreUnavailableError as error:  # serializable transactions can fail by reading, too
            if sqlstate_of(error) not in ROLLED_BACK:
                raise

        async def again() -> tuple[list[Any]]:
            return (await self._fetch(statement, parameters, writing=False),)

        (rows,) = await retried(again)
        return rows

    async def write(self, statement: str, *parameters: Any) -> list[Any]:
        """Run a statement that commits by itself, and return its rows.

        Args:
            statement: The statement.
            *parameters: Its parameters.
        """
        return await self._fetch(statement, parameters, writing=True)

    async def close(self) -> None:
        """Give the kept connection back."""
        kept, self._kept = self._kept, None
        if kept is not None:
            await self._connections.give_back(kept)

    async def _fetch(self, statement: str, parameters: Sequence[Any], *, writing: bool) -> list[Any]:
        connection = self._kept
        if connection is None or not is_usable(connection):
            connection = await self._replaced(connection)
        try:
            rows: list[Any] = await connection.fetch(statement, *parameters)
        except DRIVER_ERRORS as error:
            _drop_broken(connection, error)
            raise translated(error, writing=writing) from error
        finally:
            if self._kept is None:
                await self._connections.give_back(connection)
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

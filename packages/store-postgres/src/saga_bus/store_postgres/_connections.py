"""The pool of a store, and how its connections are taken and given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg  # type: ignore[import-untyped]

from saga_bus.store import InvalidSagaError, StoreUnavailableError
from saga_bus.store.deadlines import Deadlines
from saga_bus.store_postgres._errors import DRIVER_ERRORS, translated

__all__ = ["Connections", "PoolSettings", "drop_broken", "is_usable"]

# Each lane keeps a connection, seven in all. A smaller pool than this keeps none, so that no operation starves.
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
    """A connection of the own pool, which lanes can use without a timer for each statement, as they have their own.

    It is not reset when it goes back to the pool: that is a round trip, and nothing was set.
    """

    command_timeout: float | None = None

    def get_reset_query(self) -> str:
        return ""

    def fetch_untimed(self, query: str, *parameters: Any) -> Awaitable[list[Any]]:
        rows: Awaitable[list[Any]] = super().fetch(query, *parameters)
        return rows

    async def fetch(self, query: str, *parameters: Any, **options: Any) -> Any:
        return await super().fetch(query, *parameters, **{"timeout": self.command_timeout, **options})

    async def fetchval(self, query: str, *parameters: Any, **options: Any) -> Any:
        return await super().fetchval(query, *parameters, **{"timeout": self.command_timeout, **options})

    async def fetchrow(self, query: str, *parameters: Any, **options: Any) -> Any:
        return await super().fetchrow(query, *parameters, **{"timeout": self.command_timeout, **options})

    async def execute(self, query: str, *parameters: Any, **options: Any) -> Any:
        return await super().execute(query, *parameters, **{"timeout": self.command_timeout, **options})


def _timed(seconds: float | None) -> type[_Connection]:
    return type("TimedConnection", (_Connection,), {"command_timeout": seconds})


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


def drop_broken(connection: Any, error: BaseException) -> None:
    """Close a connection that asyncpg would go on using in vain.

    Args:
        connection: The connection.
        error: What a statement on it raised.
    """
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
            statement_cache_size=self.statement_cache_size,
            max_cacheable_statement_size=0,
            server_settings=settings,
            connection_class=_timed(self.command_timeout),
        )


class Connections:
    """The pool of a store: its own, which it opens and closes, or a given one, which it leaves alone.

    Args:
        pool: The given pool.
        settings: How to open an own one; exactly one of the two.
        acquire_timeout: How long to wait for a free connection, in seconds.

    Attributes:
        keeps: Whether there are connections enough to keep some.
        prepares: Whether a kept connection can keep prepared statements, too.
        deadlines: For the answers to statements on the own pool; a given one has its own way.
    """

    def __init__(self, *, pool: Any = None, settings: PoolSettings | None = None, acquire_timeout: float) -> None:
        self._pool: Any = pool
        self._settings = settings
        self._acquire_timeout = acquire_timeout
        self._returning: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly
        self.keeps = settings is not None and settings.max_size >= _LEAST_FOR_KEEPING
        self.prepares = self.keeps and settings is not None and settings.statement_cache_size > 0
        self.deadlines = Deadlines(None if settings is None else settings.command_timeout)

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
        self.deadlines.close()
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
                    f"no connection was free within {self._acquire_timeout:g} s, or none could be made in time"
                ) from error
            raise translated(error, writing=False) from error

    async def give_back(self, connection: Any) -> None:
        """Give a connection back; a broken one is dropped.

        Args:
            connection: What `take` returned.
        """
        # A statement that was given up may still be on its way to its end; it is waited for, but not for ever.
        timeout = None if self._settings is None else _CLOSE_TIMEOUT
        try:
            await self._pool.release(connection, timeout=timeout)
        except DRIVER_ERRORS:
            return  # the pool has closed it and will make another one

    def give_back_later(self, connection: Any) -> None:
        """Give a connection back whose statement was given up, without waiting for its end.

        Args:
            connection: What `take` returned.
        """
        task = asyncio.get_running_loop().create_task(self.give_back(connection))
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

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
            drop_broken(taken, error)
            raise translated(error, writing=writing) from error
        finally:
            await self.give_back(taken)

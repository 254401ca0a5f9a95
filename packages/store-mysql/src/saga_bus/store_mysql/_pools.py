"""Pools of connections: the store's own one, and the caller's aiomysql pool."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from saga_bus.store import InvalidSagaError, SagaStoreError, StoreClosedError, StoreUnavailableError
from saga_bus.store_mysql._driver import Session, check_charset, is_alive
from saga_bus.store_mysql._errors import MySQLError, connection_lost, translated

__all__ = ["GivenPool", "OwnPool", "Pool"]

_EXHAUSTED = "no connection of the pool became free in {timeout} s"


class Pool(Protocol):
    """What lends sessions in autocommit mode."""

    async def acquire(self) -> Session:
        """Get a session that nobody else has."""
        ...

    async def release(self, session: Session) -> None:
        """Give a session back; one that is closed is replaced."""
        ...

    async def close(self) -> None:
        """Wait until all sessions are back, and close what the store opened."""
        ...


class OwnPool:
    """Connections that the store opens on demand.

    (aiomysql's own pool looks at every free connection each time, starts a task for each release, and lets all
    callers wait while one connects.)

    Args:
        connect: Opens a connection.
        size: The most connections.
        acquire_timeout: How long to wait for one, in seconds.
    """

    def __init__(self, connect: Callable[[], Awaitable[Session]], size: int, acquire_timeout: float) -> None:
        self._connect = connect
        self._size = size
        self._timeout = acquire_timeout
        self._free: list[Session] = []
        self._opened = 0  # free, lent, or being opened
        # Each gets a free session, or None: there is room for a new one.
        self._waiting: deque[asyncio.Future[Session | None]] = deque()
        self._is_closed = False
        self._all_back: asyncio.Future[None] | None = None

    async def acquire(self) -> Session:
        """Get a session that nobody else has.

        Raises:
            StoreUnavailableError: None became free in time, or the server cannot be reached.
            StoreClosedError: The pool was closed.
        """
        if self._is_closed:
            raise StoreClosedError("the store is closed")
        while self._free:
            session = self._free.pop()  # the one used last: the others may be closed by the server's idle timeout
            if is_alive(session.connection):
                return session
            self._drop(session)
        if self._opened < self._size:
            self._opened += 1
        else:
            session_or_room = await self._wait()
            if session_or_room is not None:
                return session_or_room
        try:
            return await self._connect()
        except BaseException:
            self._leave()
            raise

    async def _wait(self) -> Session | None:
        future: asyncio.Future[Session | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            async with asyncio.timeout(self._timeout):
                return await future
        except BaseException as error:
            if future.done() and not future.cancelled():  # something was handed over at the last moment
                self._put_back(future.result())
            elif future in self._waiting:
                self._waiting.remove(future)
            if isinstance(error, TimeoutError):
                raise StoreUnavailableError(_EXHAUSTED.format(timeout=self._timeout)) from error
            raise

    async def release(self, session: Session) -> None:
        """Give a session back; one that is closed is replaced.

        Args:
            session: The session.
        """
        self._put_back(None if session.connection.closed else session)

    def _put_back(self, session: Session | None) -> None:
        if session is None:
            self._leave()
        elif self._hand_over(session):
            pass
        elif self._is_closed:
            self._drop(session)
        else:
            self._free.append(session)

    async def close(self) -> None:
        """Wait until all sessions are back, and close them."""
        self._is_closed = True
        for session in self._free:
            try:
                await session.connection.ensure_closed()
            except OSError:
                session.close()
            self._opened -= 1
        self._free.clear()
        if self._opened:
            self._all_back = asyncio.get_running_loop().create_future()
            await self._all_back

    def _drop(self, session: Session) -> None:
        session.close()
        self._leave()

    def _leave(self) -> None:
        if not self._hand_over(None):
            self._opened -= 1
        if self._opened == 0 and self._all_back is not None and not self._all_back.done():
            self._all_back.set_result(None)

    def _hand_over(self, session: Session | None) -> bool:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(session)
                return True
        return False


class GivenPool:
    """The caller's aiomysql pool, which stays open.

    Args:
        pool: The pool.
        acquire_timeout: How long to wait for a connection, in seconds.
        command_timeout: How long a text of statements may take, in seconds.
    """

    def __init__(self, pool: Any, acquire_timeout: float, command_timeout: float) -> None:
        self._pool = pool
        self._acquire_timeout = acquire_timeout
        self._command_timeout = command_timeout
        self._manual: set[Session] = set()

    async def acquire(self) -> Session:
        """Get a session that nobody else has.

        Raises:
            StoreUnavailableError: None became free in time, or the server cannot be reached.
            InvalidSagaError: The pool's connections have another character set than utf8mb4.
        """
        try:
            async with asyncio.timeout(self._acquire_timeout):
                connection = await self._pool.acquire()
        except TimeoutError as error:
            raise StoreUnavailableError(_EXHAUSTED.format(timeout=self._acquire_timeout)) from error
        except MySQLError as error:
            raise translated(error) from error
        except RuntimeError as error:  # "Cannot acquire connection after closing pool"
            raise InvalidSagaError(f"the given pool cannot be used: {error}") from error
        except OSError as error:
            raise connection_lost(error, write_sent=False) from error
        session = Session(connection, self._command_timeout)
        try:
            check_charset(connection)
            if not connection.get_autocommit():
                await session.run(b"SET autocommit = 1")
                self._manual.add(session)
        except BaseException:
            self._pool.release(connection)
            raise
        return session

    async def release(self, session: Session) -> None:
        """Give a session back as it was.

        Args:
            session: The session.
        """
        try:
            if session in self._manual:
                self._manual.discard(session)
                if not session.connection.closed:
                    await session.run(b"SET autocommit = 0")
        except (MySQLError, SagaStoreError):
            session.close()
        finally:
            self._pool.release(session.connection)

    async def close(self) -> None:
        """Nothing: the pool is the caller's."""

"""Where operations run: on connections of a pool, or in the caller's transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

from saga_bus.store import Activity, Coalescer, SagaRow, StoreUnavailableError, UnsupportedOperationError
from saga_bus.store_mysql._driver import Session, check_charset
from saga_bus.store_mysql._errors import MySQLError, ends_transaction, lost_a_race, translated
from saga_bus.store_mysql._groups import ALONE, get_group, insert_group, update_group
from saga_bus.store_mysql._operations import Operations
from saga_bus.store_mysql._pools import Pool
from saga_bus.store_mysql._schema import Place

__all__ = ["BoundEngine", "Engine", "PooledEngine"]

ResultT = TypeVar("ResultT")
Work = Callable[[Session], Awaitable[ResultT]]

_TRIES = 3
_MAX_PACKET = b"SELECT @@max_allowed_packet"


class Engine(Protocol):
    """What a store needs to get its operations done."""

    async def open(self) -> int:
        """Get ready; returns the longest statement that the server takes, in bytes."""
        ...

    async def insert(self, row: SagaRow, correlation_id: str) -> None:
        """Write a new saga."""
        ...

    async def update(self, row: SagaRow, expected_version: int) -> None:
        """Write the next version of a saga."""
        ...

    async def delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        """Delete a saga."""
        ...

    async def get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        """Fetch a document by its saga's id."""
        ...

    async def get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        """Fetch a document by its saga's correlation id."""
        ...

    async def run(self, work: Callable[[Operations, Session], Awaitable[ResultT]]) -> ResultT:
        """Run anything else in a session."""
        ...

    async def close(self) -> None:
        """Finish what is in hand and close what the store opened."""
        ...


class PooledEngine:
    """Connections of a pool, in autocommit mode.

    A lone call is a plain statement. Calls of one kind that arrive while one is in flight leave together. A write that
    runs alone may wait for somebody else's lock; a group never does, and gives back what is in anybody's way to run
    alone. So a saga that is locked holds up no other one.

    Args:
        pool: The pool.
        place: The table.
    """

    def __init__(self, pool: Pool, place: Place) -> None:
        self._pool = pool
        self._operations = operations = Operations(place, commits=True)
        activity = Activity()
        self._inserts: Coalescer[tuple[SagaRow, str], Any] = Coalescer(
            partial(self._group, insert_group), key=_key_of, alone=self._insert_alone, activity=activity
        )
        self._updates: Coalescer[tuple[SagaRow, int], Any] = Coalescer(
            partial(self._group, update_group), key=_key_of, alone=self._update_alone, activity=activity
        )
        self._by_id: Coalescer[tuple[str, str], bytes | None] = Coalescer(
            partial(self._gets, operations.get_by_id, operations.sql.select_group_by_id)
        )
        self._by_correlation_id: Coalescer[tuple[str, str], bytes | None] = Coalescer(
            partial(self._gets, operations.get_by_correlation_id, operations.sql.select_group_by_correlation_id)
        )

    async def open(self) -> int:
        async with self._session() as session:
            self._operations.max_packet = await _max_packet(session)
        return self._operations.max_packet

    async def insert(self, row: SagaRow, correlation_id: str) -> None:
        if await self._inserts.call((row, correlation_id)) is ALONE:
            await self._insert_alone((row, correlation_id))

    async def update(self, row: SagaRow, expected_version: int) -> None:
        if await self._updates.call((row, expected_version)) is ALONE:
            await self._update_alone((row, expected_version))

    async def delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        await self._write(partial(self._operations.delete, saga_name, saga_id, expected_version))

    async def get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        return await self._by_id.call((saga_name, saga_id))

    async def get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        return await self._by_correlation_id.call((saga_name, correlation_id))

    async def run(self, work: Callable[[Operations, Session], Awaitable[ResultT]]) -> ResultT:
        async with self._session() as session:
            try:
                return await work(self._operations, session)
            except MySQLError as error:
                if session.connection.get_transaction_status():
                    await session.roll_back()
                raise translated(error) from error

    async def close(self) -> None:
        for coalescer in (self._inserts, self._updates, self._by_id, self._by_correlation_id):
            await coalescer.join()
        await self._pool.close()

    # -- groups and single calls -------------------------------------------------------------------------

    async def _group(self, together: Any, items: Sequence[Any]) -> list[Any]:
        async with self._session() as session:
            outcomes: list[Any] = await together(session, self._operations, items)
            return outcomes

    async def _gets(self, alone: Any, select: Any, keys: Sequence[tuple[str, str]]) -> list[bytes | None]:
        session = await self._pool.acquire()
        try:
            if len(keys) == 1:
                return [await alone(*keys[0], session)]
            return await get_group(session, select, keys)
        finally:
            await self._pool.release(session)

    async def _insert_alone(self, item: tuple[SagaRow, str]) -> None:
        await self._write(partial(self._operations.insert, *item))

    async def _update_alone(self, item: tuple[SagaRow, int]) -> None:
        await self._write(partial(self._operations.update, *item))

    async def _write(self, write: Work[None]) -> None:
        for left in reversed(range(_TRIES)):
            session = await self._pool.acquire()
            try:
                return await write(session)
            except StoreUnavailableError as error:
                # One statement that lost a deadlock has changed nothing, and did not wait for long.
                if not left or not lost_a_race(error.__cause__):
                    raise
            finally:
                await self._pool.release(session)
        return None

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        session = await self._pool.acquire()
        try:
            yield session
        finally:
            await self._pool.release(session)


class BoundEngine:
    """The caller's transaction: nothing here is ever committed or rolled back.

    Args:
        connection: The caller's aiomysql connection, with an open transaction.
        place: The table.
        command_timeout: How long a statement may take, in seconds.
        max_packet: The longest statement that the server takes, in bytes, None where it is not known.

    Raises:
        UnsupportedOperationError: There is no open transaction.
        InvalidSagaError: The connection has another character set than utf8mb4.
    """

    def __init__(self, connection: Any, place: Place, command_timeout: float, max_packet: int | None) -> None:
        check_charset(connection)
        self._session = Session(connection, command_timeout)
        self._operations = Operations(place, commits=False)
        self._operations.max_packet = max_packet
        self._turn = asyncio.Lock()
        self._is_over = False
        self._require_transaction()

    async def open(self) -> int:
        if self._operations.max_packet is None:
            self._operations.max_packet = await self.run(lambda _, session: _max_packet(session))
        return self._operations.max_packet

    async def insert(self, row: SagaRow, correlation_id: str) -> None:
        await self.run(lambda operations, session: operations.insert(row, correlation_id, session))

    async def update(self, row: SagaRow, expected_version: int) -> None:
        await self.run(lambda operations, session: operations.update(row, expected_version, session))

    async def delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        await self.run(lambda operations, session: operations.delete(saga_name, saga_id, expected_version, session))

    async def get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        return await self.run(lambda operations, session: operations.get_by_id(saga_name, saga_id, session))

    async def get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        return await self.run(
            lambda operations, session: operations.get_by_correlation_id(saga_name, correlation_id, session)
        )

    async def run(self, work: Callable[[Operations, Session], Awaitable[ResultT]]) -> ResultT:
        async with self._turn:  # a connection does one thing at a time
            self._require_transaction()
            try:
                return await work(self._operations, self._session)
            except MySQLError as error:
                self._is_over = self._is_over or ends_transaction(error)
                raise translated(error) from error
            except StoreUnavailableError as error:
                self._is_over = self._is_over or ends_transaction(error.__cause__)
                raise

    async def close(self) -> None:
        """Nothing: the connection is the caller's."""

    def _require_transaction(self) -> None:
        if self._is_over:
            # The server would commit what comes next by itself, and the driver does not see that.
            raise StoreUnavailableError("the server has ended the transaction: roll it back, begin another, bind again")
        connection = self._session.connection
        if not connection.get_transaction_status() and connection.get_autocommit():
            raise UnsupportedOperationError(
                "the connection has no open transaction (any more): await connection.begin() before bind(connection)"
            )


async def _max_packet(session: Session) -> int:
    return int((await session.run(_MAX_PACKET))[0].rows[0][0])


def _key_of(item: tuple[SagaRow, Any]) -> tuple[str, str]:
    return item[0].saga_name, item[0].saga_id

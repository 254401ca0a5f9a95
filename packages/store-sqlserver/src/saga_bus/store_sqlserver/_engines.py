"""Where operations run: in the store's own threads and connections, or in the caller's transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, TypeVar
from weakref import WeakValueDictionary

from saga_bus.store import (
    Activity,
    InvalidSagaError,
    SagaRow,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from saga_bus.store_sqlserver import _schema as schema
from saga_bus.store_sqlserver._connections import Settings
from saga_bus.store_sqlserver._driver import ConnectionPool
from saga_bus.store_sqlserver._errors import translated
from saga_bus.store_sqlserver._groups import GroupedReads, GroupedWrites, Write
from saga_bus.store_sqlserver._odbc import load
from saga_bus.store_sqlserver._operations import Operations
from saga_bus.store_sqlserver._schema import Place
from saga_bus.store_sqlserver._sessions import SETTINGS, Session
from saga_bus.store_sqlserver._values import Statement

__all__ = ["BoundEngine", "Engine", "PoolEngine", "SchemaWork"]

ResultT = TypeVar("ResultT")
SchemaWork = Literal["create", "check", "drop"]

_CANCEL_AGAIN = 0.05  # seconds
_TRANSACTIONS = Statement("SELECT @@TRANCOUNT AS transactions", ())
# A transaction at the level SNAPSHOT may make no index, and sees no table that others made while it waited.
_AT_READ_COMMITTED = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"
_SCHEMA_WORKS = {"create": schema.create, "check": schema.check, "drop": schema.drop}


class Engine(Protocol):
    """What a store needs to get its operations done."""

    async def open(self) -> None:
        """Get ready, as far as that cannot wait for the first operation."""
        ...

    async def get(self, saga_name: str, key: str, *, by_correlation_id: bool) -> bytes | None:
        """Fetch a document."""
        ...

    async def read(self, work: Callable[[Session], ResultT]) -> ResultT:
        """Run work that only reads, and no rows of sagas."""
        ...

    async def query(self, work: Callable[[Session], ResultT]) -> ResultT:
        """Run work that only reads; it may wait for a row that somebody has locked."""
        ...

    async def insert(self, row: SagaRow, correlation_id: str) -> None:
        """Write a new saga; when this returns it is committed, if committing is the engine's affair."""
        ...

    async def update(self, row: SagaRow, expected_version: int) -> None:
        """Write the next version of a saga; when this returns it is committed, as after `insert`."""
        ...

    async def write(self, work: Callable[[Session], ResultT]) -> ResultT:
        """Run another write; when this returns it is committed, as after `insert`."""
        ...

    async def schema(self, work: SchemaWork) -> None:
        """Create, check or drop the schema."""
        ...

    async def close(self) -> None:
        """Finish what is in hand and close what the engine opened."""
        ...


class PoolEngine:
    """A pool of the store's own.

    A lone call is a plain statement. Reads by key, inserts and updates that are made at the same time go to the server
    in groups, each one statement that waits for no lock, or not for long; what a group leaves undone goes alone, where
    it may wait. So a saga that somebody has locked holds up no other one. Deletes are rare, and go one by one.

    Args:
        connect: Opens a session.
        settings: The store's settings.
        place: The table.
        operations: The operations on it.
    """

    def __init__(
        self, connect: Callable[[], Session], settings: Settings, place: Place, operations: Operations
    ) -> None:
        self._pool = pool = ConnectionPool(
            connect, size=settings.pool_size, acquire_timeout=settings.acquire_timeout, name="saga-bus-sqlserver"
        )
        self._place = place
        activity = Activity()
        self._by_id = GroupedReads(pool, operations, activity, by_correlation_id=False)
        self._by_correlation_id = GroupedReads(pool, operations, activity, by_correlation_id=True)
        self._inserts = GroupedWrites(pool, operations.insert_group, operations.insert, _key_of_insert, activity)
        self._updates = GroupedWrites(pool, operations.update_group, operations.update, _key_of_update, activity)

    async def open(self) -> None:
        """Open one connection, so that what is wrong with the address or the login shows at once."""
        await self._pool.run(_nothing)

    async def get(self, saga_name: str, key: str, *, by_correlation_id: bool) -> bytes | None:
        reads = self._by_correlation_id if by_correlation_id else self._by_id
        return await reads.read((saga_name, key))

    async def read(self, work: Callable[[Session], ResultT]) -> ResultT:
        return await self._pool.run(work, repeatable=True)

    async def query(self, work: Callable[[Session], ResultT]) -> ResultT:
        return await self._pool.run(work, repeatable=True, may_wait=True)

    async def insert(self, row: SagaRow, correlation_id: str) -> None:
        await self._inserts.write(row, correlation_id)

    async def update(self, row: SagaRow, expected_version: int) -> None:
        await self._updates.write(row, expected_version)

    async def write(self, work: Callable[[Session], ResultT]) -> ResultT:
        return await self._pool.run(work, may_wait=True)

    async def schema(self, work: SchemaWork) -> None:
        await self._pool.run(partial(_work_on_schema, work, self._place))

    async def close(self) -> None:
        try:
            for groups in (self._inserts, self._updates, self._by_id, self._by_correlation_id):
                await groups.join()
        finally:
            await self._pool.close()


class BoundEngine:
    """The caller's transaction: nothing is ever committed or rolled back here.

    Statements run in a thread, one for each connection. A caller that is cancelled gets the connection
    back quiet: its statement is stopped, or has ended.

    Args:
        connection: The caller's connection.
        place: The table.
        operations: The operations on it.

    Raises:
        InvalidSagaError: It is no pyodbc connection.
    """

    def __init__(self, connection: Any, place: Place, operations: Operations) -> None:
        if not isinstance(connection, load().Connection):
            raise InvalidSagaError(f"bind takes a pyodbc connection, not {type(connection).__name__}")
        self._given = _GivenConnection.of(connection)
        self._place = place
        self._operations = operations
        self._session: Session | None = None

    async def open(self) -> None:
        """See that there is a transaction to join."""
        await self._run(self._see_transaction)

    async def get(self, saga_name: str, key: str, *, by_correlation_id: bool) -> bytes | None:
        operations = self._operations
        get = operations.get_by_correlation_id if by_correlation_id else operations.get_by_id
        return await self._run(partial(get, saga_name, key))

    async def read(self, work: Callable[[Session], ResultT]) -> ResultT:
        return await self._run(work)

    async def query(self, work: Callable[[Session], ResultT]) -> ResultT:
        return await self._run(work)

    async def insert(self, row: SagaRow, correlation_id: str) -> None:
        await self._run(partial(self._operations.insert, row, correlation_id))

    async def update(self, row: SagaRow, expected_version: int) -> None:
        await self._run(partial(self._operations.update, row, expected_version))

    async def write(self, work: Callable[[Session], ResultT]) -> ResultT:
        return await self._run(work)

    async def schema(self, work: SchemaWork) -> None:
        await self._run(lambda session: _SCHEMA_WORKS[work](session, self._place))

    async def close(self) -> None:
        """Nothing: the connection is the caller's."""

    async def _run(self, work: Callable[[Session], ResultT]) -> ResultT:
        running = self._given.thread.submit(self._work, work)
        result = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            while not running.cancel() and not result.done():
                if self._session is not None:
                    self._session.cancel()
                try:
                    # One that came before its statement had nothing to stop.
                    await asyncio.wait([result], timeout=_CANCEL_AGAIN)
                except asyncio.CancelledError:
                    continue
            if not result.cancelled() and result.done():
                result.exception()  # seen: nobody waits for it
            raise

    def _work(self, work: Callable[[Session], ResultT]) -> ResultT:
        session = self._own_session()
        if session.has_ended:
            raise StoreUnavailableError("the server has ended the transaction: roll it back, begin another, bind again")
        try:
            return work(session)
        finally:
            # One that is left to be collected later talks to the server from whatever thread that is in, and over
            # what the caller does with his connection.
            session.forget_cursors()

    def _own_session(self) -> Session:
        if self._session is None:
            try:
                self._session = Session(self._given.connection, in_transaction=True)
            except load().Error as error:
                raise translated(error) from error
        return self._session

    def _see_transaction(self, session: Session) -> None:
        # FreeTDS begins no other transaction when the server has ended one, and all that follows is committed at once.
        if session.connection.autocommit or session.is_freetds:
            ((transactions,),) = session.read(_TRANSACTIONS)
            if not transactions:
                raise UnsupportedOperationError(
                    "the connection has no open transaction: set autocommit = False on it before bind(connection), "
                    "or open another one where the server has ended its transaction"
                )
        session.run(SETTINGS)


class _GivenConnection:
    """A caller's connection, and the one thread in which all stores that are bound to it use it."""

    _known: ClassVar[WeakValueDictionary[int, _GivenConnection]] = WeakValueDictionary()

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="saga-bus-sqlserver-bound")  # it ends with this object

    @classmethod
    def of(cls, connection: Any) -> _GivenConnection:
        return cls._known.setdefault(id(connection), cls(connection))


def _work_on_schema(work: SchemaWork, place: Place, session: Session) -> None:
    if work == "check":
        schema.check(session, place)
        return
    session.forget_cursors()
    session.run(_AT_READ_COMMITTED)
    try:
        with session.transaction():
            _SCHEMA_WORKS[work](session, place)
    finally:
        session.is_lost = True  # nothing tells which level a function of the caller's had set


def _nothing(session: Session) -> None:
    """Only have a session."""


def _key_of_insert(write: Write) -> tuple[str, str]:
    return write[0].saga_name, write[1]  # two that start the same saga have ids of their own


def _key_of_update(write: Write) -> tuple[str, str]:
    return write[0].saga_name, write[0].saga_id

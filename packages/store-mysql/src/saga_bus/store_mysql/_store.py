"""The store."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Self, TypeVar

import aiomysql  # type: ignore[import-untyped]

from saga_bus.store import (
    BaseSagaStore,
    FoundRow,
    InvalidSagaError,
    SagaFilter,
    SagaQuery,
    SagaRow,
    StateCodec,
    StoreCapabilities,
)
from saga_bus.store_mysql import _schema as schema_work
from saga_bus.store_mysql._driver import Session, connect
from saga_bus.store_mysql._engines import BoundEngine, Engine, PooledEngine
from saga_bus.store_mysql._health import warnings_about
from saga_bus.store_mysql._location import parse_location
from saga_bus.store_mysql._operations import Operations
from saga_bus.store_mysql._pools import GivenPool, OwnPool, Pool
from saga_bus.store_mysql._schema import Place

__all__ = ["MySqlSagaStore", "check_schema", "create_schema", "drop_schema"]

StateT = TypeVar("StateT")
ResultT = TypeVar("ResultT")

_DEFAULT_TABLE = "saga_instances"
_MAX_SECONDS = 86_400.0
_MAX_POOL_SIZE = 10_000
_MAX_PURGE = 1000  # rows of one transaction
_ROOM = 16_384  # bytes of a statement beside the document: the keys, the times, the text itself


@dataclass(frozen=True)
class _Settings:
    table: str
    schema: str | None
    pool_size: int
    connect_timeout: float
    acquire_timeout: float
    command_timeout: float
    lock_timeout: float


class MySqlSagaStore(BaseSagaStore[StateT]):
    """Sagas in one table of a MySQL or MariaDB database.

    A lone call is one statement in autocommit mode. Calls that arrive while another one of their kind is in
    flight leave together as one statement or one transaction; each keeps its own result.

    Args:
        url: ``mysql://user:password@host:3306/database``, or ``mariadb://...``; its options
            ``?table=...&schema=...&pool_size=...`` and so on win over the arguments. Further ones are
            ``unix_socket``, ``ssl_mode`` (disabled, required, verify_ca, verify_identity), ``ssl_ca``,
            ``ssl_cert`` and ``ssl_key``.
        pool: Instead of a URL, an ``aiomysql.Pool``, which the store never closes. Make it with
            ``autocommit=True``: else each operation takes two more round trips.
        table: The table's name.
        schema: The name of the database with the table, if it is not the connection's own.
        pool_size: The most connections, 1 to 10,000; four serve the groups, the others what runs alone.
        connect_timeout: How long connecting may take, in seconds.
        acquire_timeout: How long to wait for a free connection, in seconds.
        command_timeout: How long a statement may take, in seconds.
        lock_timeout: How long a statement waits for a lock, in whole seconds, at least 1. For a given pool the
            sessions' own ``innodb_lock_wait_timeout`` counts.
        state_types: The state type of each saga name.
        codec: Replaces the JSON codec.

    Raises:
        InvalidSagaError: A bad argument, or not exactly one of URL and pool.
    """

    # max_state_bytes is known once the server has told its max_allowed_packet.
    capabilities = StoreCapabilities(
        conditional_delete=True,
        query=True,
        retention=True,
        schema=True,
        transactions=True,
        ping=True,
        processes=True,
    )

    def __init__(
        self,
        url: str | None = None,
        *,
        pool: Any = None,
        table: str = _DEFAULT_TABLE,
        schema: str | None = None,
        pool_size: int = 10,
        connect_timeout: float = 10.0,
        acquire_timeout: float = 10.0,
        command_timeout: float = 30.0,
        lock_timeout: float = 10.0,
        state_types: Mapping[str, type] | None = None,
        codec: StateCodec | None = None,
    ) -> None:
        super().__init__(state_types=state_types, codec=codec)
        if (url is None) == (pool is None):
            raise InvalidSagaError("give a URL or a pool: exactly one of them")
        if pool is not None and not isinstance(pool, aiomysql.Pool):
            raise InvalidSagaError(f"the pool must be an aiomysql.Pool, not {type(pool).__name__}")
        location = None if url is None else parse_location(url)
        options = {
            "table": table,
            "schema": schema,
            "pool_size": pool_size,
            "connect_timeout": connect_timeout,
            "acquire_timeout": acquire_timeout,
            "command_timeout": command_timeout,
            "lock_timeout": lock_timeout,
            **({} if location is None else location.options),
        }
        self._settings = settings = _checked(_Settings(**options))
        self._place = Place(settings.table, settings.schema)
        self._where = "the given pool" if location is None else str(location)
        lender: Pool
        if location is None:
            lender = GivenPool(pool, settings.acquire_timeout, settings.command_timeout)
        else:
            open_session = partial(
                connect,
                location.address,
                connect_timeout=settings.connect_timeout,
                command_timeout=settings.command_timeout,
                lock_timeout=int(settings.lock_timeout),
            )
            lender = OwnPool(open_session, settings.pool_size, settings.acquire_timeout)
        self._engine: Engine = PooledEngine(lender, self._place)

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({self._where!r}, table={self._place.quoted!r})"

    # -- life --------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        max_packet = await self._engine.open()
        self.capabilities = replace(self.capabilities, max_state_bytes=max(0, max_packet - _ROOM))

    async def _close(self) -> None:
        await self._engine.close()

    def _bind(self, connection: Any) -> Self:
        if not isinstance(connection, aiomysql.Connection):
            raise InvalidSagaError(f"bind takes an aiomysql.Connection, not {type(connection).__name__}")
        limit = self.capabilities.max_state_bytes
        max_packet = None if limit is None else limit + _ROOM
        return self._copy_with(
            _engine=BoundEngine(connection, self._place, self._settings.command_timeout, max_packet),
            _where="the caller's transaction",
        )

    # -- primitives --------------------------------------------------------------------------------------

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        await self._engine.insert(row, correlation_id)

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        await self._engine.update(row, expected_version)

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        await self._engine.delete(saga_name, saga_id, expected_version)

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        return await self._engine.get_by_id(saga_name, saga_id)

    async def _get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        return await self._engine.get_by_correlation_id(saga_name, correlation_id)

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        return await self._engine.run(lambda operations, session: operations.find(query, session))

    async def _count(self, where: SagaFilter) -> int:
        return await self._engine.run(lambda operations, session: operations.count(where, session))

    async def _purge(self, saga_name: str, before: datetime, batch_size: int) -> int:
        moment, batch = before.astimezone(UTC), min(batch_size, _MAX_PURGE)

        def purge(operations: Operations, session: Session) -> Awaitable[int]:
            return operations.purge(saga_name, moment, batch, session)

        return await self._engine.run(purge)

    async def _create_schema(self) -> None:
        await self._work_on_schema(schema_work.create)

    async def _check_schema(self) -> None:
        await self._work_on_schema(schema_work.check)

    async def _drop_schema(self) -> None:
        await self._work_on_schema(schema_work.drop)

    async def _work_on_schema(self, work: Callable[[Session, Place], Awaitable[None]]) -> None:
        await self._ensure_open()  # which looks at no table
        await self._engine.run(lambda _, session: work(session, self._place))

    async def _ping(self) -> Sequence[str]:
        return await self._engine.run(
            lambda operations, session: warnings_about(self._place, session, commits=operations.commits)
        )


async def create_schema(database: Any, *, table: str = _DEFAULT_TABLE, schema: str | None = None) -> None:
    """Create the table and its indexes in a database that is there; migrate an older table.

    Args:
        database: A URL or an ``aiomysql.Pool``, as `MySqlSagaStore` takes them.
        table: The table's name.
        schema: The name of the database with the table, if it is not the connection's own.

    Raises:
        SchemaError: The table is newer than the package, or was not made by it.
    """
    async with _store_on(database, table, schema) as store:
        await store.create_schema()


async def check_schema(database: Any, *, table: str = _DEFAULT_TABLE, schema: str | None = None) -> None:
    """Check that the table is there and of this package's version, and that ids and states fit into it.

    Args:
        database: A URL or an ``aiomysql.Pool``, as `MySqlSagaStore` takes them.
        table: The table's name.
        schema: The name of the database with the table, if it is not the connection's own.

    Raises:
        SchemaError: It is missing, older, newer or altered; the message says what to run.
    """
    async with _store_on(database, table, schema) as store:
        await store.check_schema()


async def drop_schema(database: Any, *, table: str = _DEFAULT_TABLE, schema: str | None = None) -> None:
    """Drop the table with its sagas; a table that is not there is no error.

    Args:
        database: A URL or an ``aiomysql.Pool``, as `MySqlSagaStore` takes them.
        table: The table's name.
        schema: The name of the database with the table, if it is not the connection's own.
    """
    async with _store_on(database, table, schema) as store:
        await store.drop_schema()


def _store_on(database: Any, table: str, schema: str | None) -> MySqlSagaStore[Any]:
    if isinstance(database, str):
        return MySqlSagaStore(database, table=table, schema=schema)
    return MySqlSagaStore(pool=database, table=table, schema=schema)


def _checked(settings: _Settings) -> _Settings:
    for name in ("connect_timeout", "acquire_timeout", "command_timeout", "lock_timeout"):
        seconds = getattr(settings, name)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise InvalidSagaError(f"{name} must be a number of seconds, not {seconds!r}")
        if not math.isfinite(seconds) or not 0 < seconds <= _MAX_SECONDS:
            raise InvalidSagaError(f"{name} must be above 0 and at most {_MAX_SECONDS:.0f} seconds, not {seconds!r}")
    if settings.lock_timeout < 1:
        raise InvalidSagaError(f"lock_timeout must be at least 1 second, not {settings.lock_timeout!r}")
    size = settings.pool_size
    if type(size) is not int or not 1 <= size <= _MAX_POOL_SIZE:
        raise InvalidSagaError(f"pool_size must be an int from 1 to {_MAX_POOL_SIZE}, not {size!r}")
    return settings

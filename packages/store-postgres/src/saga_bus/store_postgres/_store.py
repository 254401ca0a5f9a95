"""The PostgreSQL store."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Self, TypeVar

import asyncpg  # type: ignore[import-untyped]

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
from saga_bus.store.checks import check_count
from saga_bus.store_postgres import _alone as alone
from saga_bus.store_postgres import _schema as schema_work
from saga_bus.store_postgres._connections import Connections, PoolSettings
from saga_bus.store_postgres._engine import PoolEngine
from saga_bus.store_postgres._health import warnings_about
from saga_bus.store_postgres._location import check_url, shown
from saga_bus.store_postgres._queries import count_statement, find_statement, found_rows
from saga_bus.store_postgres._statements import Statements, quoted_table
from saga_bus.store_postgres._transactions import BoundEngine

__all__ = ["PostgresSagaStore", "check_schema", "create_schema", "drop_schema"]

StateT = TypeVar("StateT")

_DEFAULT_TABLE = "saga_instances"
_DEFAULT_SCHEMA = "public"
# As many one-digit numbers as PostgreSQL reads in one list: its array of 32 bytes for each doubles when it is full
# (appendElement in jsonb_util.c), and at 2**24 of them it is half of the largest block that it allocates. The JSONB
# of such a list is six times as large as the JSON, which no other shape exceeds, and so below its own limit of 256 MB.
_MAX_STATE_BYTES = 32 * 1024 * 1024


class PostgresSagaStore(BaseSagaStore[StateT]):
    """Sagas in a table of PostgreSQL, from version 13 on; any number of processes may share it.

    Calls that arrive while a statement is in flight leave together as the next one; each keeps its own result.

    Args:
        url: ``postgresql://user:password@host:port/database``, with what else asyncpg takes in a URL. The store
            opens a pool on it and closes it.
        pool: Instead of a URL, a pool of asyncpg's; it is never closed by the store.
        table: The table's name.
        schema: The name of the table's schema.
        min_size: The connections that the own pool opens at once.
        max_size: The most connections of the own pool; from 8 on, seven of them are kept at hand.
        connect_timeout: For making a connection of the own pool, in seconds.
        command_timeout: For the answer to a statement on the own pool, in seconds; None for ever.
        acquire_timeout: How long to wait for a free connection, in seconds.
        statement_cache_size: Prepared statements that each connection of the own pool keeps; 0 for none, as a
            transaction pooler such as PgBouncer needs it.
        state_types: The state type of each saga name.
        codec: Replaces the JSON codec.

    Raises:
        InvalidSagaError: A bad argument, or not exactly one of a URL and a pool.
    """

    capabilities = StoreCapabilities(
        conditional_delete=True,
        query=True,
        retention=True,
        schema=True,
        transactions=True,
        ping=True,
        processes=True,
        max_state_bytes=_MAX_STATE_BYTES,
    )

    def __init__(
        self,
        url: str | None = None,
        *,
        pool: Any = None,
        table: str = _DEFAULT_TABLE,
        schema: str = _DEFAULT_SCHEMA,
        min_size: int = 1,
        max_size: int = 10,
        connect_timeout: float = 10.0,
        command_timeout: float | None = 60.0,
        acquire_timeout: float = 10.0,
        statement_cache_size: int = 100,
        state_types: Mapping[str, type] | None = None,
        codec: StateCodec | None = None,
    ) -> None:
        super().__init__(state_types=state_types, codec=codec)
        if (url is None) == (pool is None):
            raise InvalidSagaError("give either a URL or a pool")
        if pool is not None and not isinstance(pool, asyncpg.Pool):
            raise InvalidSagaError(f"the pool must be an asyncpg.Pool, not {type(pool).__name__}")
        schema_work.check_names(schema, table)
        check_count("min_size", min_size, least=0)
        check_count("max_size", max_size, least=max(1, min_size))
        check_count("statement_cache_size", statement_cache_size, least=0)
        _check_seconds("connect_timeout", connect_timeout)
        _check_seconds("acquire_timeout", acquire_timeout)
        if command_timeout is not None:
            _check_seconds("command_timeout", command_timeout)
        self._schema_name = schema
        self._table_name = table
        self._quoted = quoted_table(schema, table)
        self._statements = Statements(schema, table)
        settings = None
        self._place = "the given pool"
        if url is not None:
            settings = PoolSettings(
                check_url(url), min_size, max_size, connect_timeout, command_timeout, statement_cache_size
            )
            self._place = shown(url)
        connections = Connections(pool=pool, settings=settings, acquire_timeout=acquire_timeout)
        self._engine: PoolEngine | BoundEngine = PoolEngine(connections, self._statements)

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({self._place!r}, table={self._table_name!r}, schema={self._schema_name!r})"

    # -- life --------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        await self._engine.open()

    async def _close(self) -> None:
        await self._engine.close()

    def _bind(self, connection: Any) -> Self:
        return self._copy_with(
            _engine=BoundEngine(connection, self._statements),
            _place="the caller's transaction",
        )

    # -- primitives --------------------------------------------------------------------------------------

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        await self._engine.insert(row, correlation_id)

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        await self._engine.update(row, expected_version)

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        await self._engine.delete(saga_name, saga_id, expected_version)

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        return await self._engine.get("saga_id", saga_name, saga_id)

    async def _get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        return await self._engine.get("correlation_id", saga_name, correlation_id)

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        statement, parameters = find_statement(self._quoted, query)
        return found_rows(await self._engine.fetch(statement, *parameters))

    async def _count(self, where: SagaFilter) -> int:
        statement, parameters = count_statement(self._quoted, where)
        ((number,),) = await self._engine.fetch(statement, *parameters)
        return int(number)

    async def _purge(self, saga_name: str, before: datetime, batch_size: int) -> int:
        async def batch() -> tuple[int]:
            async with self._engine.transaction() as connection:
                status = await connection.execute(self._statements.purge, saga_name, before.isoformat(), batch_size)
            return (int(status.rpartition(" ")[2]),)

        (deleted,) = await alone.retried(batch)
        return deleted

    async def _create_schema(self) -> None:
        await self._ensure_open()  # which looks at no table yet
        async with self._engine.transaction() as connection:
            await schema_work.create(connection, self._schema_name, self._table_name)

    async def _check_schema(self) -> None:
        await self._ensure_open()
        async with self._engine.connection() as connection:
            await schema_work.check(connection, self._schema_name, self._table_name)

    async def _drop_schema(self) -> None:
        await self._ensure_open()
        async with self._engine.transaction() as connection:
            await schema_work.drop(connection, self._schema_name, self._table_name)

    async def _ping(self) -> Sequence[str]:
        async with self._engine.connection() as connection:
            return await warnings_about(connection, self._schema_name, self._table_name)


async def create_schema(database: Any, *, table: str = _DEFAULT_TABLE, schema: str = _DEFAULT_SCHEMA) -> None:
    """Create the table and its indexes, and the schema where it is missing; migrate an older table.

    Args:
        database: A URL or a pool, as `PostgresSagaStore` takes them.
        table: The table's name.
        schema: The schema's name.

    Raises:
        SchemaError: The table is newer than the package, or was not made by it.
    """
    async with _store_on(database, table, schema) as store:
        await store.create_schema()


async def check_schema(database: Any, *, table: str = _DEFAULT_TABLE, schema: str = _DEFAULT_SCHEMA) -> None:
    """Check that the table is there and of this package's version.

    Args:
        database: A URL or a pool, as `PostgresSagaStore` takes them.
        table: The table's name.
        schema: The schema's name.

    Raises:
        SchemaError: It is missing, older or newer; the message says what to run.
    """
    async with _store_on(database, table, schema) as store:
        await store.check_schema()


async def drop_schema(database: Any, *, table: str = _DEFAULT_TABLE, schema: str = _DEFAULT_SCHEMA) -> None:
    """Drop the table with its sagas; the schema itself stays, and a table that is not there is no error.

    Args:
        database: A URL or a pool, as `PostgresSagaStore` takes them.
        table: The table's name.
        schema: The schema's name.
    """
    async with _store_on(database, table, schema) as store:
        await store.drop_schema()


def _store_on(database: Any, table: str, schema: str) -> PostgresSagaStore[Any]:
    if isinstance(database, asyncpg.Pool):
        return PostgresSagaStore(pool=database, table=table, schema=schema)
    return PostgresSagaStore(database, table=table, schema=schema)


def _check_seconds(what: str, seconds: float) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise InvalidSagaError(f"{what} must be a number of seconds above 0, not {seconds!r}")

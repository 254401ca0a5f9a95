"""The SQL Server store: construction, and primitives as operations on an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Self, TypeVar

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
from saga_bus.store_sqlserver._connections import AttrsBefore, Connect, Settings, open_given, open_own
from saga_bus.store_sqlserver._engines import BoundEngine, Engine, PoolEngine, SchemaWork
from saga_bus.store_sqlserver._health import warnings_about
from saga_bus.store_sqlserver._location import parse_location
from saga_bus.store_sqlserver._operations import Operations
from saga_bus.store_sqlserver._schema import Place
from saga_bus.store_sqlserver._sessions import Session

__all__ = ["SqlServerSagaStore", "check_schema", "create_schema", "drop_schema"]

StateT = TypeVar("StateT")

_DEFAULT_TABLE = "saga_instances"
_DEFAULT_SCHEMA = "dbo"
# nvarchar(max) holds 2 GB of UTF-16, in which a byte of UTF-8 can become two.
_MAX_STATE_BYTES = 2**30 - 2


class SqlServerSagaStore(BaseSagaStore[StateT]):
    """Sagas in a table of SQL Server or Azure SQL, through pyodbc.

    pyodbc blocks, so the work is done in threads of the store's own, each with a connection that only it uses;
    the event loop never waits. A connection that was lost is replaced. A cancelled caller stops waiting; what was
    sent goes on to its end, so no transaction stays open.

    Args:
        database: ``mssql://user:password@host:port/database?driver=...&encrypt=...&trust_server_certificate=...``,
            or an ODBC connection string (``Driver=...;Server=...``). A URL may carry the options ``table``,
            ``schema``, ``pool_size`` and the timeouts, which win over the arguments, and the driver's own
            keywords (``Trusted_Connection=yes``, ``Authentication=ActiveDirectoryMsi``). Without ``driver`` the
            newest of Microsoft's drivers that is registered is used, else FreeTDS.
        connect: Instead of a database, a function that gives a new pyodbc connection each time; it is called in a
            thread, and the store uses and closes what it gives.
        table: The table's name.
        schema: The name of the schema with the table.
        pool_size: The most connections, each with a thread, 1 to 1,000; they are opened on demand.
        connect_timeout: How long opening a connection may take, in seconds; ODBC counts whole ones.
        command_timeout: How long a statement may take, waiting for locks included, in seconds; ODBC counts whole
            ones.
        acquire_timeout: How long an operation may wait for a connection, in seconds.
        attrs_before: ODBC attributes to set before each connect, or a function that gives them, for access
            tokens that expire: ``{1256: token}``.
        state_types: The state type of each saga name.
        codec: Replaces the JSON codec.

    Raises:
        InvalidSagaError: A bad argument, or not exactly one of ``database`` and ``connect``.
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
        database: str | None = None,
        *,
        connect: Connect | None = None,
        table: str = _DEFAULT_TABLE,
        schema: str = _DEFAULT_SCHEMA,
        pool_size: int = 8,
        connect_timeout: float = 10.0,
        command_timeout: float = 30.0,
        acquire_timeout: float = 30.0,
        attrs_before: AttrsBefore | None = None,
        state_types: Mapping[str, type] | None = None,
        codec: StateCodec | None = None,
    ) -> None:
        super().__init__(state_types=state_types, codec=codec)
        if (database is None) == (connect is None):
            raise InvalidSagaError("give a database or connect, and not both")
        if connect is not None and attrs_before is not None:
            raise InvalidSagaError("attrs_before is for the store's own connections, not for those of connect()")
        location = None if database is None else parse_location(database)
        options: dict[str, Any] = {
            "table": table,
            "schema": schema,
            "pool_size": pool_size,
            "connect_timeout": connect_timeout,
            "command_timeout": command_timeout,
            "acquire_timeout": acquire_timeout,
            **({} if location is None else location.options),
        }
        self._table = Place(options.pop("table"), options.pop("schema"))
        settings = Settings(**options, attrs_before=attrs_before)
        self._operations = Operations(self._table)
        self._shown = "connect()" if location is None else location.shown
        opens: Callable[[], Session]
        if location is not None:
            opens = partial(open_own, location, settings)
        elif callable(connect):
            opens = partial(open_given, connect, settings)
        else:
            raise InvalidSagaError(f"connect must be a function, not {type(connect).__name__}")
        self._engine: Engine = PoolEngine(opens, settings, self._table, self._operations)

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({self._shown!r}, table={str(self._table)!r})"

    # -- life --------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        await self._engine.open()

    async def _close(self) -> None:
        await self._engine.close()

    def _bind(self, connection: Any) -> Self:
        return self._copy_with(
            _engine=BoundEngine(connection, self._table, self._operations),
            _shown="the caller's transaction",
        )

    # -- primitives --------------------------------------------------------------------------------------

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        await self._engine.insert(row, correlation_id)

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        await self._engine.update(row, expected_version)

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        await self._engine.write(partial(self._operations.delete, saga_name, saga_id, expected_version))

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        return await self._engine.get(saga_name, saga_id, by_correlation_id=False)

    async def _get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        return await self._engine.get(saga_name, correlation_id, by_correlation_id=True)

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        return await self._engine.query(partial(self._operations.find, query))

    async def _count(self, where: SagaFilter) -> int:
        return await self._engine.query(partial(self._operations.count, where))

    async def _purge(self, saga_name: str, before: datetime, batch_size: int) -> int:
        return await self._engine.write(partial(self._operations.purge, saga_name, before, batch_size))

    async def _create_schema(self) -> None:
        await self._work_on_schema("create")

    async def _check_schema(self) -> None:
        await self._work_on_schema("check")

    async def _drop_schema(self) -> None:
        await self._work_on_schema("drop")

    async def _work_on_schema(self, work: SchemaWork) -> None:
        await self._ensure_open()  # which looks at no table yet
        await self._engine.schema(work)

    async def _ping(self) -> Sequence[str]:
        return await self._engine.read(partial(warnings_about, self._table))


async def create_schema(database: str | Connect, *, table: str = _DEFAULT_TABLE, schema: str = _DEFAULT_SCHEMA) -> None:
    """Create the schema where it is missing, the table and its indexes; migrate an older table.

    Args:
        database: A URL, an ODBC connection string, or a function that gives a new pyodbc connection.
        table: The table's name.
        schema: The name of the schema with the table.

    Raises:
        SchemaError: The table is newer than the package, or was not made by it.
    """
    async with _store_on(database, table, schema) as store:
        await store.create_schema()


async def check_schema(database: str | Connect, *, table: str = _DEFAULT_TABLE, schema: str = _DEFAULT_SCHEMA) -> None:
    """Check that the table is there and of this package's version.

    Args:
        database: A URL, an ODBC connection string, or a function that gives a new pyodbc connection.
        table: The table's name.
        schema: The name of the schema with the table.

    Raises:
        SchemaError: It is missing, older or newer; the message says what to run.
    """
    async with _store_on(database, table, schema) as store:
        await store.check_schema()


async def drop_schema(database: str | Connect, *, table: str = _DEFAULT_TABLE, schema: str = _DEFAULT_SCHEMA) -> None:
    """Drop the table with its sagas; the schema stays, and a table that is not there is no error.

    Args:
        database: A URL, an ODBC connection string, or a function that gives a new pyodbc connection.
        table: The table's name.
        schema: The name of the schema with the table.
    """
    async with _store_on(database, table, schema) as store:
        await store.drop_schema()


def _store_on(database: str | Connect, table: str, schema: str) -> SqlServerSagaStore[Any]:
    if isinstance(database, str):
        return SqlServerSagaStore(database, table=table, schema=schema, pool_size=1)
    return SqlServerSagaStore(connect=database, table=table, schema=schema, pool_size=1)

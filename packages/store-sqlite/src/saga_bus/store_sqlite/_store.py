"""The SQLite store."""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Self, TypeVar, get_args

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
from saga_bus.store_sqlite._connections import Durability, Settings
from saga_bus.store_sqlite._engines import BoundEngine, Engine, FileEngine, GivenEngine, MemoryEngine, SchemaWork
from saga_bus.store_sqlite._health import warnings_about
from saga_bus.store_sqlite._location import parse_location
from saga_bus.store_sqlite._operations import Operations
from saga_bus.store_sqlite._schema import check_table_name

__all__ = ["SqliteSagaStore", "check_schema", "create_schema", "drop_schema"]

StateT = TypeVar("StateT")

_DEFAULT_DATABASE = "sagas.db"
_DEFAULT_TABLE = "saga_instances"
_MAX_BUSY_TIMEOUT = 86_400.0
# SQLite's default limit of a row (SQLITE_MAX_LENGTH) less room for the other columns.
_MAX_STATE_BYTES = 1_000_000_000 - 16_384


class SqliteSagaStore(BaseSagaStore[StateT]):
    """Sagas in one SQLite file, which several processes may share.

    Calls that arrive while a commit is in flight are committed together, in one transaction; each keeps its
    own result, and returns after the commit. The work is done in threads, so the event loop never waits.

    Args:
        database: A path, ``:memory:`` for a database that lives as long as the store is open, or a URL:
            ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``sqlite://`` for memory, with
            ``?table=...&durability=...&busy_timeout=...``, which win over the arguments. ``sagas.db`` when
            left out.
        connection: Instead of a database, a connection made with ``check_same_thread=False``; the store uses
            it in a thread, nobody else may meanwhile, and it is never closed by the store.
        table: The table's name.
        durability: "full": what was acknowledged survives a power failure. "normal": it survives a crash of
            the process; a power failure can lose the last commits, and never damages the file.
        busy_timeout: How long to wait for another process's lock, in seconds, 0 to 86,400. For a given
            connection its own ``timeout`` counts.
        state_types: The state type of each saga name.
        codec: Replaces the JSON codec.

    Raises:
        InvalidSagaError: A bad argument, or both a database and a connection.
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
        database: str | os.PathLike[str] | None = None,
        *,
        connection: sqlite3.Connection | None = None,
        table: str = _DEFAULT_TABLE,
        durability: Durability = "full",
        busy_timeout: float = 5.0,
        state_types: Mapping[str, type] | None = None,
        codec: StateCodec | None = None,
    ) -> None:
        super().__init__(state_types=state_types, codec=codec)
        if connection is not None and database is not None:
            raise InvalidSagaError("give a database or a connection, not both")
        if connection is not None and not isinstance(connection, sqlite3.Connection):
            raise InvalidSagaError(f"the connection must be a sqlite3.Connection, not {type(connection).__name__}")
        location = parse_location(_DEFAULT_DATABASE if database is None else database)
        options = {"table": table, "durability": durability, "busy_timeout": busy_timeout, **location.options}
        self._settings = _checked(Settings(**options))
        self._operations = Operations(self._settings.table)
        self._place = "the given connection" if connection is not None else str(location)
        self._engine: Engine
        if connection is not None:
            self._engine = GivenEngine(connection, self._settings)
            self.capabilities = replace(self.capabilities, processes=False)
        elif location.path is None:
            # No other process, and no connection of the caller's, reaches a database in memory.
            self._engine = MemoryEngine(self._settings)
            self.capabilities = replace(self.capabilities, processes=False, transactions=False)
        else:
            self._engine = FileEngine(location.path, self._settings)

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({self._place!r}, table={self._settings.table!r})"

    # -- life --------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        await self._engine.open()

    async def _close(self) -> None:
        await self._engine.close()

    def _bind(self, connection: Any) -> Self:
        if not isinstance(connection, sqlite3.Connection):
            raise InvalidSagaError(f"bind takes a sqlite3.Connection, not {type(connection).__name__}")
        return self._copy_with(
            _engine=BoundEngine(connection, self._settings),
            _place="the caller's transaction",
        )

    # -- primitives --------------------------------------------------------------------------------------

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        await self._engine.write(partial(self._operations.insert, row, correlation_id))

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        await self._engine.write(partial(self._operations.update, row, expected_version))

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        await self._engine.write(partial(self._operations.delete, saga_name, saga_id, expected_version))

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        document: bytes | None = await self._engine.read(partial(self._operations.get_by_id, saga_name, saga_id))
        return document

    async def _get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        read = partial(self._operations.get_by_correlation_id, saga_name, correlation_id)
        document: bytes | None = await self._engine.read(read)
        return document

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        rows: list[FoundRow] = await self._engine.query(partial(self._operations.find, query))
        return rows

    async def _count(self, where: SagaFilter) -> int:
        number: int = await self._engine.query(partial(self._operations.count, where))
        return number

    async def _purge(self, saga_name: str, before: datetime, batch_size: int) -> int:
        number: int = await self._engine.write(partial(self._operations.purge, saga_name, before, batch_size))
        return number

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
        warnings: list[str] = await self._engine.read(warnings_about)
        return warnings


async def create_schema(database: str | os.PathLike[str] | sqlite3.Connection, *, table: str = _DEFAULT_TABLE) -> None:
    """Create the table and its indexes, and the file where it is missing; migrate an older table.

    Args:
        database: What `SqliteSagaStore` takes, or a connection made with ``check_same_thread=False``.
        table: The table's name.

    Raises:
        SchemaError: The table is newer than the package, or was not made by it.
    """
    async with _store_on(database, table) as store:
        await store.create_schema()


async def check_schema(database: str | os.PathLike[str] | sqlite3.Connection, *, table: str = _DEFAULT_TABLE) -> None:
    """Check that the table is there and of this package's version.

    Args:
        database: What `SqliteSagaStore` takes, or a connection made with ``check_same_thread=False``.
        table: The table's name.

    Raises:
        SchemaError: It is missing, older or newer; the message says what to run.
    """
    async with _store_on(database, table) as store:
        await store.check_schema()


async def drop_schema(database: str | os.PathLike[str] | sqlite3.Connection, *, table: str = _DEFAULT_TABLE) -> None:
    """Drop the table with its sagas; the file stays, and a table that is not there is no error.

    Args:
        database: What `SqliteSagaStore` takes, or a connection made with ``check_same_thread=False``.
        table: The table's name.
    """
    async with _store_on(database, table) as store:
        await store.drop_schema()


def _store_on(database: str | os.PathLike[str] | sqlite3.Connection, table: str) -> SqliteSagaStore[Any]:
    if isinstance(database, sqlite3.Connection):
        return SqliteSagaStore(connection=database, table=table)
    return SqliteSagaStore(database, table=table)


def _checked(settings: Settings) -> Settings:
    check_table_name(settings.table)
    if settings.durability not in get_args(Durability):
        raise InvalidSagaError(f"durability must be 'full' or 'normal', not {settings.durability!r}")
    seconds = settings.busy_timeout
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InvalidSagaError(f"busy_timeout must be a number of seconds, not {seconds!r}")
    if not math.isfinite(seconds) or not 0 <= seconds <= _MAX_BUSY_TIMEOUT:
        raise InvalidSagaError(f"busy_timeout must be 0 to {_MAX_BUSY_TIMEOUT:.0f} seconds, not {seconds!r}")
    return settings

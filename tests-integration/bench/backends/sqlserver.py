"""The SQL Server store, beside raw pyodbc in threads, each on a table of its own on one server.

It is measured where ``SAGA_TEST_SQLSERVER_URL`` names a server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from threading import local
from typing import Any, TypeVar

import msgspec

from bench.subjects import StoreSubject, Subject, Target
from bench.workload import SAGA_NAME, OrderState, correlation_id_of, saga_id_of, state_of
from providers.sqlserver import connected
from saga_bus.store_sqlserver import SqlServerSagaStore, create_schema, drop_schema
from saga_bus.store_sqlserver._location import parse_location
from saga_bus.store_sqlserver._odbc import load

__all__ = ["BACKEND"]

ResultT = TypeVar("ResultT")

_POOL_SIZE = 8  # the store's own default
_CHUNK = 1_000

# The statements that a careful user writes for this table.
_COLUMNS = """\
saga_name, saga_id, correlation_id, version, is_completed, created_at, updated_at, archived_at, timeout_expires_at,
outbox_pending, state"""
_INSERT = f"INSERT INTO {{table}} ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL, ?, ?)"
_COPY = f"INSERT INTO {{table}} ({_COLUMNS}) SELECT {_COLUMNS} FROM {{template}} ORDER BY row_id"
_UPDATE = """\
UPDATE {table} SET version = ?, is_completed = ?, updated_at = ?, outbox_pending = ?, state = ?
WHERE saga_name = ? AND saga_id = ? AND version = ?"""
_BY_ID = "SELECT state FROM {table} WHERE saga_name = ? AND saga_id = ?"
_BY_CORRELATION_ID = "SELECT state FROM {table} WHERE saga_name = ? AND correlation_id = ?"
_FIRST_PAGE = """\
SELECT TOP (?) created_at, saga_id, state FROM {table}
WHERE saga_name = ? ORDER BY created_at DESC, saga_id DESC"""
_NEXT_PAGE = """\
SELECT TOP (?) created_at, saga_id, state FROM {table}
WHERE saga_name = ? AND (created_at < ? OR (created_at = ? AND saga_id < ?))
ORDER BY created_at DESC, saga_id DESC"""
_TOTALS = "SELECT COUNT_BIG(*), COALESCE(SUM(version), 0) FROM {table}"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(OrderState).decode


def _url() -> str:
    return os.environ["SAGA_TEST_SQLSERVER_URL"]


def _table_of(directory: Path) -> str:
    return f"bench_{blake2b(str(directory).encode(), digest_size=8).hexdigest()}"


def _naive(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None)  # as pyodbc takes it for a datetime2


def _inserted(correlation_id: str, state: OrderState) -> tuple[Any, ...]:
    metadata = state.metadata
    return (
        SAGA_NAME,
        metadata.saga_id,
        correlation_id,
        metadata.version,
        metadata.is_completed,
        _naive(metadata.created_at),
        _naive(metadata.updated_at),
        bool(metadata.outbox),
        _encode(state).decode(),
    )


def _updated(state: OrderState, expected_version: int) -> tuple[Any, ...]:
    metadata = state.metadata
    return (
        metadata.version,
        metadata.is_completed,
        _naive(metadata.updated_at),
        bool(metadata.outbox),
        _encode(state).decode(),
        SAGA_NAME,
        metadata.saga_id,
        expected_version,
    )


class _Table:
    """What all subjects share: a copy of the template, and the totals read through a connection of their own."""

    def __init__(self, directory: Path, template: str) -> None:
        self.table = _table_of(directory)
        self.template = template

    async def open(self) -> None:
        await drop_schema(_url(), table=self.table)
        await create_schema(_url(), table=self.table)
        with connected(_url()) as connection:
            connection.execute(_COPY.format(table=self.table, template=self.template))
            with contextlib.suppress(load().Error):  # Babelfish does not take it in every version
                connection.execute(f"UPDATE STATISTICS {self.table}")

    async def close(self) -> None:
        await drop_schema(_url(), table=self.table)

    async def totals(self) -> tuple[int, int]:
        with connected(_url()) as connection:
            count, versions = connection.execute(_TOTALS.format(table=self.table)).fetchone()
        return int(count), int(versions)


class SqlServerSubject(StoreSubject, _Table):
    """The store."""

    def __init__(self, directory: Path, template: str) -> None:
        _Table.__init__(self, directory, template)
        StoreSubject.__init__(self, SqlServerSagaStore(_url(), table=self.table, pool_size=_POOL_SIZE))

    async def open(self) -> None:
        await _Table.open(self)
        await StoreSubject.open(self)

    async def close(self) -> None:
        await StoreSubject.close(self)
        await _Table.close(self)
        await drop_schema(_url(), table=self.template)  # all subjects were open before the first closes


class ThreadsSubject(_Table):
    """pyodbc as an asyncio program uses it: threads with a connection and a cursor each, and a call per statement."""

    threads = _POOL_SIZE

    async def open(self) -> None:
        await super().open()
        self.executor = ThreadPoolExecutor(self.threads)
        self.own = local()
        self.connections: list[Any] = []

    async def close(self) -> None:
        self.executor.shutdown()
        for connection in self.connections:
            connection.close()
        await super().close()

    async def insert(self, correlation_id: str, state: OrderState) -> None:
        sql, parameters = _INSERT.format(table=self.table), _inserted(correlation_id, state)
        await self._run(lambda cursor: cursor.execute(sql, parameters).rowcount)

    async def get_by_id(self, saga_id: str) -> OrderState | None:
        return await self._fetch(_BY_ID, saga_id)

    async def get_by_correlation_id(self, correlation_id: str) -> OrderState | None:
        return await self._fetch(_BY_CORRELATION_ID, correlation_id)

    async def update(self, state: OrderState, expected_version: int) -> None:
        sql, parameters = _UPDATE.format(table=self.table), _updated(state, expected_version)
        if await self._run(lambda cursor: cursor.execute(sql, parameters).rowcount) != 1:
            raise LookupError(f"{state.metadata.saga_id} has another version")

    async def find(self, cursor: Any, limit: int) -> tuple[Sequence[OrderState], Any]:
        # One row more than the page tells whether there is a next one, as the store does it.
        if cursor is None:
            sql, parameters = _FIRST_PAGE, [limit + 1, SAGA_NAME]
        else:
            created_at, saga_id = cursor
            sql, parameters = _NEXT_PAGE, [limit + 1, SAGA_NAME, created_at, created_at, saga_id]
        rows = await self._run(lambda each: each.execute(sql.format(table=self.table), parameters).fetchall())
        states = [_decode(state) for _, _, state in rows[:limit]]
        return states, tuple(rows[limit - 1][:2]) if len(rows) > limit else None

    async def _fetch(self, statement: str, key: str) -> OrderState | None:
        sql = statement.format(table=self.table)
        row = await self._run(lambda cursor: cursor.execute(sql, SAGA_NAME, key).fetchone())
        return None if row is None else _decode(row[0])

    async def _run(self, work: Callable[[Any], ResultT]) -> ResultT:
        def in_thread() -> ResultT:
            # One cursor for all statements: closing one would cost another request, which releases what it prepared.
            if not hasattr(self.own, "cursor"):
                connection = load().connect(parse_location(_url()).connection_string(), autocommit=True)
                self.connections.append(connection)
                self.own.cursor = connection.cursor()
            return work(self.own.cursor)

        return await asyncio.get_running_loop().run_in_executor(self.executor, in_thread)


class HeldSubject(ThreadsSubject):
    """pyodbc with one connection in one thread; several callers take turns on it."""

    threads = 1


_PEERS: dict[str, type[ThreadsSubject]] = {"pyodbc threads": ThreadsSubject, "pyodbc held": HeldSubject}
_OPERATIONS = ("get_by_id", "get_by_correlation_id", "update", "cycle", "find", "insert")
_GETS_AND_CYCLES = ("get_by_id", "get_by_correlation_id", "cycle")


class SqlServerBackend:
    """Sagas in SQL Server."""

    name = "sqlserver"
    server = "sqlserver"
    variants = ("default",)
    peers = tuple(_PEERS)
    packages = ("saga-bus-store-sqlserver", "pyodbc")
    targets = (
        *(Target("ratio", 0.90, each, "default", 1, "pyodbc held") for each in _GETS_AND_CYCLES),
        *(Target("ratio", 1.5, each, "default", 64, "pyodbc threads") for each in _GETS_AND_CYCLES),
        *(
            Target("growth", 0.75, each, "default", callers, rows=1_000_000)
            for callers in (1, 64)
            for each in _OPERATIONS
        ),
    )

    def versions(self) -> dict[str, str]:
        with connected(_url()) as connection:
            version = connection.execute("SELECT @@VERSION").fetchval()
            driver = " ".join(str(connection.getinfo(each)) for each in (6, 7))  # SQL_DRIVER_NAME, SQL_DRIVER_VER
        return {"SQL Server": str(version).splitlines()[0], "ODBC driver": driver}

    async def prepare(self, directory: Path, rows: int) -> None:
        """Fill a template table; the directory holds only its name."""
        directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing else runs
        table = _table_of(directory)
        store: SqlServerSagaStore[OrderState] = SqlServerSagaStore(
            _url(), table=table, state_types={SAGA_NAME: OrderState}
        )
        async with store:
            await store.drop_schema()
            await store.create_schema()
            for first in range(0, rows, _CHUNK):
                # In the store's groups, as pyodbc's fast_executemany is made for Microsoft's driver.
                numbers = range(first, min(first + _CHUNK, rows))
                inserts = (store.insert(SAGA_NAME, correlation_id_of(each), state_of(each, 0)) for each in numbers)
                await asyncio.gather(*inserts)
            for number in {0, rows // 2, rows - 1}:
                for state in (
                    await store.get_by_id(SAGA_NAME, saga_id_of(number)),
                    await store.get_by_correlation_id(SAGA_NAME, correlation_id_of(number)),
                ):
                    if state != state_of(number, 0):
                        raise LookupError(f"the store reads order {number} as {state}")
        (directory / "template").write_text(table)

    def subject(self, name: str, variant: str, directory: Path, rows: int) -> Subject:  # noqa: ARG002
        template = (directory / "template").read_text()
        return SqlServerSubject(directory, template) if name == "store" else _PEERS[name](directory, template)

    @contextlib.asynccontextmanager
    async def locked(self, directory: Path, saga_id: str) -> AsyncIterator[None]:
        # An update that changes nothing: its lock keeps readers out, too, and Babelfish has it.
        hold = f"UPDATE {_table_of(directory)} SET is_completed = is_completed WHERE saga_name = ? AND saga_id = ?"
        with connected(_url()) as connection:
            connection.autocommit = False
            if connection.execute(hold, SAGA_NAME, saga_id).rowcount != 1:
                raise LookupError(f"{saga_id} is not there to be locked")
            yield
            connection.rollback()


BACKEND = SqlServerBackend()

"""The MySQL store, beside raw aiomysql, each on a table of its own on one server.

The server's URL is in ``SAGA_TEST_MYSQL_URL``; the runner starts a private server where it is not.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import aiomysql  # type: ignore[import-untyped]
import msgspec

from bench.subjects import StoreSubject, Subject, Target
from bench.workload import SAGA_NAME, OrderState, correlation_id_of, saga_id_of, state_of
from providers.mysql import connection_options, execute
from saga_bus.store_mysql import MySqlSagaStore

__all__ = ["BACKEND"]

_POOL_SIZE = 10  # aiomysql's default, and the store's
_CHUNK = 1_000

# The statements that a careful user writes for this table.
_INSERT = """\
INSERT INTO {table} (saga_name, saga_id, correlation_id, version, is_completed, created_at, updated_at,
                     archived_at, timeout_expires_at, outbox_pending, state)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"""
_UPDATE = """\
UPDATE {table}
SET version = %s, is_completed = %s, updated_at = %s, archived_at = %s, timeout_expires_at = %s, outbox_pending = %s,
    state = %s
WHERE saga_name = %s AND saga_id = %s AND version = %s"""
_BY_ID = "SELECT state FROM {table} WHERE saga_name = %s AND saga_id = %s"
_BY_CORRELATION_ID = "SELECT state FROM {table} WHERE saga_name = %s AND correlation_id = %s"
_FIRST_PAGE = """\
SELECT created_at, saga_id, state FROM {table}
WHERE saga_name = %s ORDER BY created_at DESC, saga_id DESC LIMIT %s"""
_NEXT_PAGE = """\
SELECT created_at, saga_id, state FROM {table}
WHERE saga_name = %s AND (created_at < %s OR (created_at = %s AND saga_id < %s))
ORDER BY created_at DESC, saga_id DESC LIMIT %s"""
_HOLD = "SELECT version FROM {table} WHERE saga_name = %s AND saga_id = %s FOR UPDATE"
_TOTALS = "SELECT COUNT(*), COALESCE(SUM(version), 0) FROM {table}"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(OrderState).decode


def _url() -> str:
    return os.environ["SAGA_TEST_MYSQL_URL"]


def _table_of(directory: Path) -> str:
    return f"bench_{blake2b(str(directory).encode(), digest_size=8).hexdigest()}"


def _naive(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=None)  # the driver leaves time zones out


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
        _naive(metadata.archived_at),
        _naive(metadata.timeout_expires_at),
        bool(metadata.outbox),
        _encode(state).decode(),
    )


def _updated(state: OrderState, expected_version: int) -> tuple[Any, ...]:
    metadata = state.metadata
    return (
        metadata.version,
        metadata.is_completed,
        _naive(metadata.updated_at),
        _naive(metadata.archived_at),
        _naive(metadata.timeout_expires_at),
        bool(metadata.outbox),
        _encode(state).decode(),
        SAGA_NAME,
        metadata.saga_id,
        expected_version,
    )


async def _fill(table: str, rows: int) -> None:
    """Make a table of the store with orders in it, and see that the store finds them."""
    store: MySqlSagaStore[OrderState] = MySqlSagaStore(_url(), table=table, state_types={SAGA_NAME: OrderState})
    async with store:
        await store.drop_schema()
        await store.create_schema()
        connection = await aiomysql.connect(**connection_options(_url()))
        async with connection, connection.cursor() as cursor:
            for first in range(0, rows, _CHUNK):
                numbers = range(first, min(first + _CHUNK, rows))
                await cursor.executemany(
                    _INSERT.format(table=table), [_inserted(correlation_id_of(n), state_of(n, 0)) for n in numbers]
                )
                await connection.commit()
        for number in {0, rows // 2, rows - 1}:
            for state in (
                await store.get_by_id(SAGA_NAME, saga_id_of(number)),
                await store.get_by_correlation_id(SAGA_NAME, correlation_id_of(number)),
            ):
                if state != state_of(number, 0):
                    raise LookupError(f"the store reads order {number} as {state}")


class _Table:
    """What all subjects share: a copy of the template, and the totals read through a connection of their own."""

    def __init__(self, directory: Path, template: str) -> None:
        self.table = _table_of(directory)
        self.template = template

    async def open(self) -> None:
        execute(
            _url(),
            f"DROP TABLE IF EXISTS {self.table}",
            f"CREATE TABLE {self.table} LIKE {self.template}",
            f"INSERT INTO {self.table} SELECT * FROM {self.template}",
            f"ANALYZE TABLE {self.table}",
        )

    async def close(self) -> None:
        execute(_url(), f"DROP TABLE IF EXISTS {self.table}")

    async def totals(self) -> tuple[int, int]:
        ((count, versions),) = execute(_url(), _TOTALS.format(table=self.table))
        return int(count), int(versions)


class MySqlSubject(StoreSubject, _Table):
    """The store."""

    def __init__(self, directory: Path, template: str) -> None:
        _Table.__init__(self, directory, template)
        StoreSubject.__init__(self, MySqlSagaStore(_url(), table=self.table, pool_size=_POOL_SIZE))

    async def open(self) -> None:
        await _Table.open(self)
        await StoreSubject.open(self)

    async def close(self) -> None:
        await StoreSubject.close(self)
        await _Table.close(self)
        execute(_url(), f"DROP TABLE IF EXISTS {self.template}")  # all subjects were open before the first closes


class PoolSubject(_Table):
    """aiomysql as its documentation shows it: a pool with its default size, a connection of it for each statement."""

    async def open(self) -> None:
        await super().open()
        self.pool = await aiomysql.create_pool(**connection_options(_url()), autocommit=True, maxsize=_POOL_SIZE)

    async def close(self) -> None:
        self.pool.close()
        await self.pool.wait_closed()
        await super().close()

    @asynccontextmanager
    async def cursor(self) -> Any:
        async with self.pool.acquire() as connection, connection.cursor() as cursor:
            yield cursor

    async def insert(self, correlation_id: str, state: OrderState) -> None:
        async with self.cursor() as cursor:
            await cursor.execute(_INSERT.format(table=self.table), _inserted(correlation_id, state))

    async def get_by_id(self, saga_id: str) -> OrderState | None:
        return await self._fetch(_BY_ID, saga_id)

    async def get_by_correlation_id(self, correlation_id: str) -> OrderState | None:
        return await self._fetch(_BY_CORRELATION_ID, correlation_id)

    async def _fetch(self, statement: str, key: str) -> OrderState | None:
        async with self.cursor() as cursor:
            await cursor.execute(statement.format(table=self.table), (SAGA_NAME, key))
            row = await cursor.fetchone()
        return None if row is None else _decode(row[0])

    async def update(self, state: OrderState, expected_version: int) -> None:
        async with self.cursor() as cursor:
            count = await cursor.execute(_UPDATE.format(table=self.table), _updated(state, expected_version))
        if count != 1:
            raise LookupError(f"{state.metadata.saga_id} has another version")

    async def find(self, cursor: Any, limit: int) -> tuple[Sequence[OrderState], Any]:
        # One row more than the page tells whether there is a next one, as the store does it.
        async with self.cursor() as executed:
            if cursor is None:
                await executed.execute(_FIRST_PAGE.format(table=self.table), (SAGA_NAME, limit + 1))
            else:
                created_at, saga_id = cursor
                parameters = (SAGA_NAME, created_at, created_at, saga_id, limit + 1)
                await executed.execute(_NEXT_PAGE.format(table=self.table), parameters)
            rows = await executed.fetchall()
        states = [_decode(state) for _, _, state in rows[:limit]]
        return states, rows[limit - 1][:2] if len(rows) > limit else None


class ConnectionSubject(PoolSubject):
    """aiomysql with one connection that is held; several callers take turns on it."""

    async def open(self) -> None:
        await _Table.open(self)
        self.held = await aiomysql.connect(**connection_options(_url()), autocommit=True)
        self.turn = asyncio.Lock()

    async def close(self) -> None:
        await self.held.ensure_closed()
        await _Table.close(self)

    @asynccontextmanager
    async def cursor(self) -> Any:
        async with self.turn, self.held.cursor() as cursor:
            yield cursor


_PEERS: dict[str, type[PoolSubject]] = {"aiomysql pool": PoolSubject, "aiomysql held": ConnectionSubject}
_OPERATIONS = ("get_by_id", "get_by_correlation_id", "update", "cycle", "find", "insert")
_GETS_AND_CYCLES = ("get_by_id", "get_by_correlation_id", "cycle")


class MySqlBackend:
    """Sagas in MySQL or MariaDB."""

    name = "mysql"
    server = "mysql"
    variants = ("default",)
    peers = tuple(_PEERS)
    packages = ("saga-bus-store-mysql", "aiomysql", "PyMySQL")
    targets = (
        *(Target("ratio", 0.90, each, "default", 1, "aiomysql held") for each in _GETS_AND_CYCLES),
        *(Target("ratio", 0.90, each, "default", 1, "aiomysql pool") for each in _GETS_AND_CYCLES),
        *(Target("ratio", 1.5, each, "default", 64, "aiomysql pool") for each in _GETS_AND_CYCLES),
        *(
            Target("growth", 0.75, each, "default", callers, rows=1_000_000)
            for callers in (1, 64)
            for each in _OPERATIONS
        ),
    )

    def versions(self) -> dict[str, str]:
        ((version,),) = execute(_url(), "SELECT VERSION()")
        return {"MySQL or MariaDB": version}

    async def prepare(self, directory: Path, rows: int) -> None:
        """Fill a template table; the directory holds only its name."""
        directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing else runs
        table = _table_of(directory)
        await _fill(table, rows)
        (directory / "template").write_text(table)

    def subject(self, name: str, variant: str, directory: Path, rows: int) -> Subject:  # noqa: ARG002
        template = (directory / "template").read_text()
        return MySqlSubject(directory, template) if name == "store" else _PEERS[name](directory, template)

    @asynccontextmanager
    async def locked(self, directory: Path, saga_id: str) -> AsyncIterator[None]:
        connection = await aiomysql.connect(**connection_options(_url()), autocommit=False)
        async with connection, connection.cursor() as cursor:
            if not await cursor.execute(_HOLD.format(table=_table_of(directory)), (SAGA_NAME, saga_id)):
                raise LookupError(f"{saga_id} is not there to be locked")
            yield
            await connection.rollback()


BACKEND = MySqlBackend()

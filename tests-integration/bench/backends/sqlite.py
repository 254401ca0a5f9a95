"""The SQLite store, beside raw sqlite3 in one thread and aiosqlite, on copies of the same file."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Literal

import aiosqlite
import msgspec

from bench.subjects import StoreSubject, Subject, Target
from bench.workload import SAGA_NAME, OrderState, correlation_id_of, saga_id_of, state_of
from saga_bus.store.checks import microseconds
from saga_bus.store_sqlite import SqliteSagaStore
from saga_bus.store_sqlite._schema import hour_of

__all__ = ["BACKEND"]

Durability = Literal["normal", "full"]

_FILE = "sagas.db"
_TABLE = "saga_instances"
_CHUNK = 10_000
_PATIENCE = 60.0  # seconds that a connection waits for another one's lock

# The store's own statements and rows, for its peers too.
_INSERT = f"""\
INSERT INTO {_TABLE} (saga_name, saga_id, correlation_id, version, is_completed, created_at, updated_at,
                      archived_at, timeout_expires_at, outbox_pending, state, updated_hour)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_UPDATE = f"""\
UPDATE {_TABLE}
SET version = ?, updated_at = ?, archived_at = ?, timeout_expires_at = ?, outbox_pending = ?, state = ?
WHERE saga_name = ? AND saga_id = ? AND version = ? AND is_completed = ? AND updated_hour = ?"""
_UPDATE_AND_MOVE = f"""\
UPDATE {_TABLE}
SET version = ?, updated_at = ?, archived_at = ?, timeout_expires_at = ?, outbox_pending = ?, state = ?,
    is_completed = ?, updated_hour = ?
WHERE saga_name = ? AND saga_id = ? AND version = ?"""
_BY_ID = f"SELECT state FROM {_TABLE} WHERE saga_name = ? AND saga_id = ?"
_BY_CORRELATION_ID = f"SELECT state FROM {_TABLE} WHERE saga_name = ? AND correlation_id = ?"
_NEWEST = f"""\
SELECT created_at, saga_id, state FROM {_TABLE}
WHERE saga_name = ? AND (created_at, saga_id) < (?, ?)
ORDER BY created_at DESC, saga_id DESC LIMIT ?"""
_TOTALS = f"SELECT count(*), coalesce(sum(version), 0) FROM {_TABLE}"

_AFTER_ALL = (2**63 - 1, "")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(OrderState).decode


def _inserted(correlation_id: str, state: OrderState) -> tuple[Any, ...]:
    metadata = state.metadata
    return (
        SAGA_NAME,
        metadata.saga_id,
        correlation_id,
        metadata.version,
        metadata.is_completed,
        microseconds(metadata.created_at),
        microseconds(metadata.updated_at),
        metadata.archived_at and microseconds(metadata.archived_at),
        metadata.timeout_expires_at and microseconds(metadata.timeout_expires_at),
        bool(metadata.outbox),
        _encode(state).decode(),
        hour_of(microseconds(metadata.updated_at)),
    )


def _updates(state: OrderState, expected_version: int) -> Iterable[tuple[str, tuple[Any, ...]]]:
    """The statement that nearly always finds the row, and the one to try when it does not."""
    metadata = state.metadata
    updated_at = microseconds(metadata.updated_at)
    new = (
        metadata.version,
        updated_at,
        metadata.archived_at and microseconds(metadata.archived_at),
        metadata.timeout_expires_at and microseconds(metadata.timeout_expires_at),
        bool(metadata.outbox),
        _encode(state).decode(),
    )
    place = (metadata.is_completed, hour_of(updated_at))
    old = (SAGA_NAME, metadata.saga_id, expected_version)
    yield _UPDATE, (*new, *old, *place)
    yield _UPDATE_AND_MOVE, (*new, *place, *old)


def _page(rows: Iterable[Any], limit: int) -> tuple[Sequence[OrderState], Any]:
    # One row more than the page tells whether there is a next one, as the store does it.
    found = list(rows)
    states = [_decode(state) for _, _, state in found[:limit]]
    return states, found[limit - 1][:2] if len(found) > limit else None


class _File:
    """What all subjects share: the file, and the totals read from it through a connection of their own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def totals(self) -> tuple[int, int]:
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
            count, versions = connection.execute(_TOTALS).fetchone()
            return count, versions


class SqliteSubject(StoreSubject, _File):
    """The store."""

    def __init__(self, path: Path, durability: Durability) -> None:
        _File.__init__(self, path)
        StoreSubject.__init__(self, SqliteSagaStore(path, table=_TABLE, durability=durability))


class RawSubject(_File):
    """sqlite3 as its documentation shows it: synchronous, one thread, a commit after each change.

    Its methods never wait, so several callers run one after the other.
    """

    def __init__(self, path: Path, durability: Durability) -> None:
        super().__init__(path)
        self.durability = durability

    async def open(self) -> None:
        self.connection = sqlite3.connect(self.path)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute(f"PRAGMA synchronous = {self.durability}")

    async def close(self) -> None:
        self.connection.close()

    async def insert(self, correlation_id: str, state: OrderState) -> None:
        with self.connection:
            self.connection.execute(_INSERT, _inserted(correlation_id, state))

    async def get_by_id(self, saga_id: str) -> OrderState | None:
        row = self.connection.execute(_BY_ID, (SAGA_NAME, saga_id)).fetchone()
        return None if row is None else _decode(row[0])

    async def get_by_correlation_id(self, correlation_id: str) -> OrderState | None:
        row = self.connection.execute(_BY_CORRELATION_ID, (SAGA_NAME, correlation_id)).fetchone()
        return None if row is None else _decode(row[0])

    async def update(self, state: OrderState, expected_version: int) -> None:
        with self.connection:
            for statement in _updates(state, expected_version):
                if self.connection.execute(*statement).rowcount == 1:
                    return
            raise LookupError(f"{state.metadata.saga_id} has another version")

    async def find(self, cursor: Any, limit: int) -> tuple[Sequence[OrderState], Any]:
        return _page(self.connection.execute(_NEWEST, (SAGA_NAME, *(cursor or _AFTER_ALL), limit + 1)), limit)


class AiosqliteSubject(_File):
    """aiosqlite as its documentation shows it: one connection, and each caller commits its own change.

    Without a lock the statements of several callers fall into one transaction, which the first commit ends:
    fast, but a rollback of one caller then undoes what its neighbours believe to be saved.
    """

    def __init__(self, path: Path, durability: Durability) -> None:
        super().__init__(path)
        self.durability = durability

    async def open(self) -> None:
        self.connection = await self._connect()

    async def close(self) -> None:
        await self.connection.close()

    async def _connect(self) -> aiosqlite.Connection:
        connection = await aiosqlite.connect(self.path, timeout=_PATIENCE)
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute(f"PRAGMA synchronous = {self.durability}")
        return connection

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[aiosqlite.Connection]:
        yield self.connection

    async def insert(self, correlation_id: str, state: OrderState) -> None:
        async with self._turn() as connection:
            await connection.execute(_INSERT, _inserted(correlation_id, state))
            await connection.commit()

    async def get_by_id(self, saga_id: str) -> OrderState | None:
        return await self._fetch(_BY_ID, saga_id)

    async def get_by_correlation_id(self, correlation_id: str) -> OrderState | None:
        return await self._fetch(_BY_CORRELATION_ID, correlation_id)

    async def _fetch(self, statement: str, key: str) -> OrderState | None:
        async with self._turn() as connection, connection.execute(statement, (SAGA_NAME, key)) as cursor:
            row = await cursor.fetchone()
        return None if row is None else _decode(row[0])

    async def update(self, state: OrderState, expected_version: int) -> None:
        async with self._turn() as connection:
            for statement in _updates(state, expected_version):
                if (await connection.execute(*statement)).rowcount == 1:
                    await connection.commit()
                    return
            await connection.rollback()
            raise LookupError(f"{state.metadata.saga_id} has another version")

    async def find(self, cursor: Any, limit: int) -> tuple[Sequence[OrderState], Any]:
        parameters = (SAGA_NAME, *(cursor or _AFTER_ALL), limit + 1)
        async with self._turn() as connection, connection.execute(_NEWEST, parameters) as found:
            rows = await found.fetchall()
        return _page(rows, limit)


class LockedAiosqliteSubject(AiosqliteSubject):
    """aiosqlite as it is correct with several callers on one connection: one transaction at a time."""

    async def open(self) -> None:
        self.lock = asyncio.Lock()
        await super().open()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[aiosqlite.Connection]:
        async with self.lock:
            yield self.connection


class PooledAiosqliteSubject(AiosqliteSubject):
    """aiosqlite with a connection, and so a thread, for each caller; SQLite's busy timeout makes them wait."""

    async def open(self) -> None:
        self.idle: list[aiosqlite.Connection] = []

    async def close(self) -> None:
        for connection in self.idle:
            await connection.close()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[aiosqlite.Connection]:
        connection = self.idle.pop() if self.idle else await self._connect()
        try:
            yield connection
        finally:
            self.idle.append(connection)


class ConnectingAiosqliteSubject(AiosqliteSubject):
    """aiosqlite as its README shows it: a connection for each piece of work."""

    async def open(self) -> None:
        """Nothing: there is no connection between two pieces of work."""

    async def close(self) -> None:
        """Nothing either."""

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[aiosqlite.Connection]:
        async with aiosqlite.connect(self.path, timeout=_PATIENCE) as connection:
            await connection.execute(f"PRAGMA synchronous = {self.durability}")  # the journal mode is the file's
            yield connection


_PEERS: dict[str, type[RawSubject | AiosqliteSubject]] = {
    "sqlite3": RawSubject,
    "aiosqlite": AiosqliteSubject,
    "aiosqlite+lock": LockedAiosqliteSubject,
    "aiosqlite+pool": PooledAiosqliteSubject,
    "aiosqlite+connect": ConnectingAiosqliteSubject,
}


def _targets() -> Iterable[Target]:
    # Of 32 callers on aiosqlite's one connection some lose what they saved, so it counts where it is correct.
    for peer in ("aiosqlite+lock", "aiosqlite+pool", "aiosqlite+connect"):
        yield Target("ratio", 2, "update", "normal", callers=32, peer=peer)
        yield Target("ratio", 8, "update", "full", callers=32, peer=peer)
    for variant in ("normal", "full"):
        for operation in ("get_by_id", "get_by_correlation_id", "update", "cycle", "find", "insert"):
            yield Target("ratio", 1, operation, variant, peer="aiosqlite")
    for callers in (1, 32):
        for operation in ("get_by_id", "get_by_correlation_id", "update", "cycle", "find", "insert"):
            yield Target("growth", 0.75, operation, "normal", callers=callers, rows=1_000_000)
    yield Target("walk", 150, "walk", "normal", rows=1_000_000)


class SqliteBackend:
    """Sagas in a SQLite file, in WAL mode."""

    name = "sqlite"
    variants = ("normal", "full")
    peers = tuple(_PEERS)
    packages = ("saga-bus-store-sqlite", "aiosqlite")
    targets = tuple(_targets())

    def versions(self) -> dict[str, str]:
        return {"SQLite": sqlite3.sqlite_version}

    async def prepare(self, directory: Path, rows: int) -> None:
        """Write the rows straight into the table that the store made, then see that the store finds them."""
        path = directory / _FILE
        store: SqliteSagaStore[OrderState] = SqliteSagaStore(
            path, table=_TABLE, durability="normal", state_types={SAGA_NAME: OrderState}
        )
        async with store:
            await store.create_schema()
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA synchronous = OFF")
                connection.execute("PRAGMA cache_size = -1000000")  # KiB: the indexes of 1,000,000 rows fit
                for first in range(0, rows, _CHUNK):
                    numbers = range(first, min(first + _CHUNK, rows))
                    with connection:
                        connection.executemany(
                            _INSERT, (_inserted(correlation_id_of(number), state_of(number, 0)) for number in numbers)
                        )
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            for number in {0, rows // 2, rows - 1}:
                for state in (
                    await store.get_by_id(SAGA_NAME, saga_id_of(number)),
                    await store.get_by_correlation_id(SAGA_NAME, correlation_id_of(number)),
                ):
                    if state != state_of(number, 0):
                        raise LookupError(f"the store reads order {number} as {state}")

    def subject(self, name: str, variant: str, directory: Path, rows: int) -> Subject:  # noqa: ARG002
        durability: Durability = "full" if variant == "full" else "normal"
        kind: type[SqliteSubject | RawSubject | AiosqliteSubject] = _PEERS.get(name, SqliteSubject)
        return kind(directory / _FILE, durability)


BACKEND = SqliteBackend()

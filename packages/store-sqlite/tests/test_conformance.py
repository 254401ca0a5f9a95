"""The whole kit on a file, in both durabilities, in memory, and on a given connection."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest

from saga_bus.store.conformance import SagaStoreConformance
from saga_bus.store_sqlite import SqliteSagaStore


class FileTransaction:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("CREATE TABLE IF NOT EXISTS business (name TEXT PRIMARY KEY)")
        self.connection.execute("BEGIN IMMEDIATE")

    async def commit(self) -> None:
        self.connection.execute("COMMIT")

    async def rollback(self) -> None:
        self.connection.execute("ROLLBACK")

    async def put_row(self, key: str) -> None:
        self.connection.execute("INSERT INTO business VALUES (?)", (key,))

    async def has_row(self, key: str) -> bool:
        with closing(sqlite3.connect(self.path)) as other:
            return other.execute("SELECT 1 FROM business WHERE name = ?", (key,)).fetchone() is not None


class FileConformance(SagaStoreConformance):
    durability = "full"

    @pytest.fixture(autouse=True)
    def in_directory(self, tmp_path):
        self.directory = tmp_path

    def open_store(self, namespace):
        return SqliteSagaStore(self.directory / "sagas.db", table=namespace, durability=self.durability)

    @asynccontextmanager
    async def open_transaction(self, namespace) -> AsyncIterator[FileTransaction]:
        transaction = FileTransaction(self.directory / "sagas.db")
        with closing(transaction.connection):
            yield transaction


class TestFile(FileConformance):
    pass


class TestFileWithNormalDurability(FileConformance):
    durability = "normal"


class TestGivenConnection(FileConformance):
    """Each store gets a connection of its own to the same file."""

    @pytest.fixture(autouse=True)
    def with_connections(self, in_directory):
        self.connections = []
        yield
        for connection in self.connections:
            connection.close()

    def open_store(self, namespace):
        connection = sqlite3.connect(self.directory / "sagas.db", check_same_thread=False)
        self.connections.append(connection)
        return SqliteSagaStore(connection=connection, table=namespace)


class TestOneGivenConnection(SagaStoreConformance):
    """All stores share one connection, so they take turns on it."""

    @pytest.fixture(autouse=True)
    def with_connection(self):
        with closing(sqlite3.connect(":memory:", check_same_thread=False)) as self.connection:
            yield

    def open_store(self, namespace):
        store = SqliteSagaStore(connection=self.connection, table=namespace)
        # Its own transactions would be on the connection that the stores have for themselves.
        store.capabilities = replace(store.capabilities, transactions=False)
        return store


class SharedEngine:
    """The engine of one database in memory, for several stores; it stays until the test ends."""

    def __init__(self, engine) -> None:
        self.engine = engine

    def __getattr__(self, name):
        return getattr(self.engine, name)

    async def close(self) -> None:
        pass


class TestMemory(SagaStoreConformance):
    """A database in memory belongs to one store; the kit's further clients get that store's engine."""

    @pytest.fixture(autouse=True)
    def with_engines(self):
        self.engines = {}
        yield

        async def close_all():
            for shared in self.engines.values():
                await shared.engine.close()

        asyncio.run(close_all())

    def open_store(self, namespace):
        store = SqliteSagaStore(":memory:", table=namespace)
        store._engine = self.engines.setdefault(namespace, SharedEngine(store._engine))
        return store

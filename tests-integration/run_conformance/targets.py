"""How the kit opens each of our stores; a new backend adds its target here."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from run_conformance.dynamodb import DynamoDBTarget
from run_conformance.mongodb import MongoTarget
from run_conformance.mysql import MySqlTarget
from run_conformance.postgres import PostgresTarget
from run_conformance.prisma import PrismaTarget
from run_conformance.redis import RedisTarget
from run_conformance.sqlserver import SqlServerTarget
from saga_bus.store.conformance import Hooks
from saga_bus.store_inmemory import InMemorySagaStore
from saga_bus.store_sqlite import SqliteSagaStore

__all__ = ["TARGETS"]


@dataclass
class InMemoryTarget:
    """A place is a name in this process's memory, which lives as long as this target."""

    url: str
    _kept: dict[str, InMemorySagaStore[Any]] = field(default_factory=dict)

    def open_store(self, namespace: str) -> InMemorySagaStore[Any]:
        self._kept.setdefault(namespace, InMemorySagaStore(self.url + namespace))
        return InMemorySagaStore(self.url + namespace)

    def hooks(self) -> Hooks:
        return Hooks(open_store=self.open_store)


@dataclass
class SqliteTransaction:
    """A transaction on a connection of the caller's."""

    connection: sqlite3.Connection

    async def commit(self) -> None:
        self.connection.commit()

    async def rollback(self) -> None:
        self.connection.rollback()

    async def put_row(self, key: str) -> None:
        self.connection.execute("INSERT INTO business_rows VALUES (?)", (key,))

    async def has_row(self, key: str) -> bool:
        return self.connection.execute("SELECT 1 FROM business_rows WHERE key = ?", (key,)).fetchone() is not None


@dataclass
class SqliteTarget:
    """A place is a table of one file."""

    url: str

    def open_store(self, namespace: str) -> SqliteSagaStore[Any]:
        return SqliteSagaStore(self.url, table=namespace)

    @asynccontextmanager
    async def open_transaction(self, _namespace: str) -> AsyncIterator[SqliteTransaction]:
        with closing(sqlite3.connect(urlsplit(self.url).path[1:], isolation_level=None)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS business_rows (key TEXT PRIMARY KEY)")
            connection.execute("BEGIN IMMEDIATE")
            yield SqliteTransaction(connection)

    def hooks(self) -> Hooks:
        return Hooks(open_store=self.open_store, open_transaction=self.open_transaction)


class Target(Protocol):
    """How the kit opens one store, on the database of a URL."""

    def hooks(self) -> Hooks: ...


TARGETS: Mapping[str, Callable[[str], Target]] = {
    "dynamodb": DynamoDBTarget,
    "inmemory": InMemoryTarget,
    "mongodb": MongoTarget,
    "mysql": MySqlTarget,
    "postgres": PostgresTarget,
    "prisma": PrismaTarget,
    "redis": RedisTarget,
    "redis_cluster": RedisTarget,
    "sqlite": SqliteTarget,
    "sqlserver": SqlServerTarget,
}

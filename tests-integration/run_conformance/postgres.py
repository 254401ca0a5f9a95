"""How the kit opens the PostgreSQL store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg  # type: ignore[import-untyped]

from saga_bus.store.conformance import Hooks
from saga_bus.store_postgres import PostgresSagaStore

__all__ = ["PostgresTarget"]


@dataclass
class PostgresTransaction:
    """A transaction on a connection of the caller's."""

    url: str
    table: str
    connection: Any
    transaction: Any

    async def commit(self) -> None:
        await self.transaction.commit()

    async def rollback(self) -> None:
        await self.transaction.rollback()

    async def put_row(self, key: str) -> None:
        await self.connection.execute(f"INSERT INTO {self.table} VALUES ($1)", key)

    async def has_row(self, key: str) -> bool:
        other = await asyncpg.connect(self.url)
        try:
            return bool(await other.fetchval(f"SELECT count(*) FROM {self.table} WHERE key = $1", key))
        finally:
            await other.close()


@dataclass
class PostgresTarget:
    """A place is a table of one database."""

    url: str

    def open_store(self, namespace: str) -> PostgresSagaStore[Any]:
        return PostgresSagaStore(self.url, table=namespace)

    @asynccontextmanager
    async def open_transaction(self, namespace: str) -> AsyncIterator[PostgresTransaction]:
        table = f"business_{namespace}"
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(f"CREATE TABLE {table} (key text PRIMARY KEY)")
            transaction = connection.transaction()
            await transaction.start()
            yield PostgresTransaction(self.url, table, connection, transaction)
        finally:
            await connection.execute(f"ROLLBACK; DROP TABLE {table}")
            await connection.close()

    def hooks(self) -> Hooks:
        return Hooks(open_store=self.open_store, open_transaction=self.open_transaction)

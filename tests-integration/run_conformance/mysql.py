"""How the kit opens the MySQL store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiomysql  # type: ignore[import-untyped]

from providers.mysql import connection_options, execute
from saga_bus.store.conformance import Hooks
from saga_bus.store_mysql import MySqlSagaStore

__all__ = ["MySqlTarget"]


@dataclass
class MySqlTransaction:
    """A transaction on a connection of the caller's."""

    url: str
    namespace: str
    connection: Any

    async def commit(self) -> None:
        await self.connection.commit()

    async def rollback(self) -> None:
        await self.connection.rollback()

    async def put_row(self, key: str) -> None:
        await self.connection.query(f"INSERT INTO business_rows VALUES ('{self.namespace}{key}')")

    async def has_row(self, key: str) -> bool:
        return bool(execute(self.url, f"SELECT 1 FROM business_rows WHERE name = '{self.namespace}{key}'"))


@dataclass
class MySqlTarget:
    """A place is a table of one database."""

    url: str

    def open_store(self, namespace: str) -> MySqlSagaStore[Any]:
        return MySqlSagaStore(self.url, table=namespace)

    @asynccontextmanager
    async def open_transaction(self, namespace: str) -> AsyncIterator[MySqlTransaction]:
        execute(self.url, "CREATE TABLE IF NOT EXISTS business_rows (name VARCHAR(200) PRIMARY KEY)")
        connection = await aiomysql.connect(**connection_options(self.url))
        try:
            await connection.begin()
            yield MySqlTransaction(self.url, namespace, connection)
        finally:
            connection.close()

    def hooks(self) -> Hooks:
        return Hooks(open_store=self.open_store, open_transaction=self.open_transaction)

"""How the kit opens the SQL Server store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from providers.sqlserver import connected
from saga_bus.store.conformance import Hooks
from saga_bus.store_sqlserver import SqlServerSagaStore

__all__ = ["SqlServerTarget"]

_CREATE = """\
IF NOT EXISTS (SELECT 1 FROM INFORMATION_SCHEMA.TABLES WHERE TABLE_NAME = N'business_rows')
CREATE TABLE business_rows (name NVARCHAR(200) NOT NULL PRIMARY KEY)"""


@dataclass
class SqlServerTransaction:
    """A transaction on a connection of the caller's."""

    url: str
    namespace: str
    connection: Any

    async def commit(self) -> None:
        self.connection.commit()

    async def rollback(self) -> None:
        self.connection.rollback()

    async def put_row(self, key: str) -> None:
        self.connection.execute("INSERT INTO business_rows VALUES (?)", self.namespace + key)

    async def has_row(self, key: str) -> bool:
        with connected(self.url) as other:
            sql = "SELECT COUNT(*) FROM business_rows WHERE name = ?"
            return bool(other.execute(sql, self.namespace + key).fetchval())


@dataclass
class SqlServerTarget:
    """A place is a table of one database."""

    url: str

    def open_store(self, namespace: str) -> SqlServerSagaStore[Any]:
        return SqlServerSagaStore(self.url, table=namespace)

    @asynccontextmanager
    async def open_transaction(self, namespace: str) -> AsyncIterator[SqlServerTransaction]:
        with connected(self.url) as connection:
            connection.execute(_CREATE)
            connection.autocommit = False
            yield SqlServerTransaction(self.url, namespace, connection)
            connection.rollback()

    def hooks(self) -> Hooks:
        return Hooks(open_store=self.open_store, open_transaction=self.open_transaction)

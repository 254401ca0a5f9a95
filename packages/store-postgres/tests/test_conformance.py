"""The whole kit on a URL, and on a given pool behind a pooler's restrictions, at the strictest isolation level."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from saga_bus.store.conformance import SagaStoreConformance
from saga_bus.store_postgres import PostgresSagaStore


class Transaction:
    def __init__(self, url, connection, table) -> None:
        self.url, self.connection, self.table = url, connection, table
        self.transaction = connection.transaction()

    async def commit(self) -> None:
        await self.transaction.commit()

    async def rollback(self) -> None:
        await self.transaction.rollback()

    async def put_row(self, key: str) -> None:
        await self.connection.execute(f"INSERT INTO {self.table} VALUES ($1)", key)

    async def has_row(self, key: str) -> bool:
        other = await asyncpg.connect(self.url)
        try:
            return await other.fetchval(f"SELECT count(*) FROM {self.table} WHERE key = $1", key) == 1
        finally:
            await other.close()


@asynccontextmanager
async def transaction_on(url, **options) -> AsyncIterator[Transaction]:
    connection = await asyncpg.connect(url, **options)
    try:
        await connection.execute("CREATE TABLE IF NOT EXISTS business_rows (key text PRIMARY KEY)")
        transaction = Transaction(url, connection, "business_rows")
        await transaction.transaction.start()
        yield transaction
    finally:
        await connection.close()


class TestUrl(SagaStoreConformance):
    @pytest.fixture(autouse=True)
    def on_database(self, url):
        self.url = url

    def open_store(self, namespace):
        return PostgresSagaStore(self.url, table=namespace)

    def open_transaction(self, namespace):
        return transaction_on(self.url)

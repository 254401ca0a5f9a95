"""The whole kit on a URL, on an odd given pool at the strictest isolation level, and through a transaction pooler."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import asyncpg
import pytest

from postgres_helpers import with_user
from saga_bus.store import StoreCapabilities
from saga_bus.store.conformance import SagaStoreConformance
from saga_bus.store.conformance.cases import stateful
from saga_bus.store_postgres import PostgresSagaStore
from saga_bus.store_postgres._transactions import BoundEngine


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
async def transaction_on(url, namespace, **options) -> AsyncIterator[Transaction]:
    table = f"business_{namespace}"
    connection = await asyncpg.connect(url, **options)
    try:
        await connection.execute(f"CREATE TABLE {table} (key text PRIMARY KEY)")
        transaction = Transaction(url, connection, table)
        await transaction.transaction.start()
        yield transaction
    finally:
        await connection.execute(f"ROLLBACK; DROP TABLE {table}")
        await connection.close()


class TestUrl(SagaStoreConformance):
    @pytest.fixture(autouse=True)
    def on_database(self, url):
        self.url = url

    def open_store(self, namespace):
        return PostgresSagaStore(self.url, table=namespace)

    def open_transaction(self, namespace):
        return transaction_on(self.url, namespace)


STRICT = {"default_transaction_isolation": "serializable", "TimeZone": "Asia/Kathmandu", "DateStyle": "SQL, DMY"}
ODD_SCHEMA = 'Odd "Schäma" {table}'


class StoreWithPool(PostgresSagaStore):
    """Closes its given pool, which the store itself must leave open, and whole."""

    async def close(self):
        pool, was_open = self.given, not self._is_closed
        await super().close()
        if was_open and not isinstance(self._engine, BoundEngine):
            assert pool.get_size() == pool.get_idle_size(), "a connection was not given back"
            assert not pool.is_closing()
            await pool.close()


class TestGivenPoolAndEverythingOdd(SagaStoreConformance):
    """A given pool without prepared statements, serializable by default, odd names, time zone and date style."""

    @pytest.fixture(autouse=True)
    def on_database(self, url):
        parts = urlsplit(url)
        password = parts.password or "s3cret-kit-password"
        self.secrets = (password,)
        self.url = with_user(url, parts.username, password)

    async def open_store(self, namespace):
        pool = await asyncpg.create_pool(
            self.url, min_size=0, max_size=4, statement_cache_size=0, server_settings=STRICT
        )
        store = StoreWithPool(pool=pool, table=f'SELECT "%s" {{key}} é {namespace}', schema=ODD_SCHEMA)
        store.given = pool
        return store

    def open_transaction(self, namespace):
        return transaction_on(self.url, namespace, statement_cache_size=0, server_settings=STRICT)


class TestOwnPoolAtTheStrictestIsolation(SagaStoreConformance):
    """The own pool's lanes, where PostgreSQL may refuse any transaction because of another one."""

    @pytest.fixture(autouse=True)
    def serializable(self, url, monkeypatch):
        self.url = f"{url}{'&' if urlsplit(url).query else '?'}default_transaction_isolation=serializable"
        monkeypatch.setattr(stateful, "EXAMPLES", 5)  # one caller, whom isolation does not concern

    def open_store(self, namespace):
        return SerializableStore(self.url, table=namespace)

    def open_transaction(self, namespace):
        return transaction_on(self.url, namespace)


class SerializableStore(PostgresSagaStore):
    """Makes sure of the isolation that its URL asks for."""

    async def _open(self):
        await super()._open()
        ((level,),) = await self._engine.fetch("SHOW transaction_isolation")
        assert level == "serializable"


class TestTransactionPooler(SagaStoreConformance):
    """PgBouncer between the store and the server: another server process may run each transaction."""

    @pytest.fixture(autouse=True)
    def behind_a_pooler(self, pooler, monkeypatch):
        self.url = pooler.url
        monkeypatch.setattr(stateful, "EXAMPLES", 15)  # TestUrl plays them all on the same statements

    def open_store(self, namespace):
        return PostgresSagaStore(self.url, table=namespace, statement_cache_size=0)

    def open_transaction(self, namespace):
        return transaction_on(self.url, namespace, statement_cache_size=0)


def test_every_ability_but_a_time_to_live_is_declared():
    """The kit tests what is declared, and would pass over what is not."""
    assert PostgresSagaStore.capabilities == StoreCapabilities(
        conditional_delete=True,
        query=True,
        retention=True,
        schema=True,
        transactions=True,
        ping=True,
        completed_ttl=None,
        processes=True,
        max_state_bytes=32 * 1024 * 1024,
    )

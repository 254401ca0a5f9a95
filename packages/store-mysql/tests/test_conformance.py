"""The whole kit: as most people use the store, and with everything odd at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiomysql
import pytest

from providers.mysql import connection_options, execute
from saga_bus.store import StoreCapabilities
from saga_bus.store.conformance import SagaStoreConformance
from saga_bus.store.identifiers import quote_identifier
from saga_bus.store_mysql import MySqlSagaStore

PASSWORD = "s3cret-kit-password"
ODD_DATABASE = "Odd `data` 'base?'"
ODD_PREFIX = '`SELECT` "%s" \'Ünïcode? {0} '
ODD_SESSION = (
    "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE; "
    "SET SESSION sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES', time_zone = '+09:30'"
)


class Transaction:
    """A caller's own transaction; autocommit is off, as aiomysql has it by default."""

    def __init__(self, url, connection, namespace) -> None:
        self.url = url
        self.connection = connection
        self.namespace = namespace

    async def commit(self) -> None:
        await self.connection.commit()

    async def rollback(self) -> None:
        await self.connection.rollback()

    async def put_row(self, key: str) -> None:
        async with self.connection.cursor() as cursor:
            await cursor.execute("INSERT INTO saga_business VALUES (%s)", (self.namespace + key,))

    async def has_row(self, key: str) -> bool:
        rows = execute(self.url, f"SELECT 1 FROM saga_business WHERE name = '{self.namespace + key}'")
        return bool(rows)


@asynccontextmanager
async def transaction(url, namespace, **options) -> AsyncIterator[Transaction]:
    connection = await aiomysql.connect(**connection_options(url), **options)
    try:
        yield Transaction(url, connection, namespace)
    finally:
        connection.close()


class StoreWithPool(MySqlSagaStore):
    """Closes its given pool, which the store itself must leave open, and whole."""

    def __init__(self, *, pool, **options) -> None:
        super().__init__(pool=pool, **options)
        self.pool = pool

    def _bind(self, connection):
        bound = super()._bind(connection)
        bound.pool = None
        return bound

    async def close(self):
        await super().close()
        if self.pool is not None:
            pool, self.pool = self.pool, None
            assert not pool._closing
            assert not pool._used
            pool.close()
            await pool.wait_closed()


class TestDefault(SagaStoreConformance):
    """By URL, as a user who may do nothing but what the store needs."""

    secrets = (PASSWORD,)

    @pytest.fixture(autouse=True)
    def with_user(self, url):
        self.admin = url
        parts = urlsplit(url)
        self.url = f"mysql://saga_kit:{PASSWORD}@{parts.hostname}:{parts.port or 3306}{parts.path}"
        database = parts.path.removeprefix("/")
        execute(
            url,
            f"CREATE USER IF NOT EXISTS saga_kit@'%' IDENTIFIED BY '{PASSWORD}'",
            f"GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX, DROP ON `{database}`.* TO saga_kit@'%'",
            "CREATE TABLE IF NOT EXISTS saga_business (name VARCHAR(200) PRIMARY KEY)",
        )

    def open_store(self, namespace):
        return MySqlSagaStore(self.url, table=namespace)

    @asynccontextmanager
    async def open_transaction(self, namespace):
        async with transaction(self.url, namespace) as mine:
            yield mine


class TestOddities(SagaStoreConformance):
    """A given pool with autocommit off, SERIALIZABLE, an odd SQL mode, time zone and names."""

    @pytest.fixture(autouse=True)
    def with_database(self, url):
        self.url = url
        execute(
            url,
            f"CREATE DATABASE IF NOT EXISTS {quote_identifier(ODD_DATABASE, style='mysql')}",
            "CREATE TABLE IF NOT EXISTS saga_business (name VARCHAR(200) PRIMARY KEY)",
        )

    async def open_store(self, namespace):
        pool = await aiomysql.create_pool(**connection_options(self.url), minsize=0, init_command=ODD_SESSION)
        return StoreWithPool(pool=pool, table=ODD_PREFIX + namespace, schema=ODD_DATABASE)

    @asynccontextmanager
    async def open_transaction(self, namespace):
        async with transaction(self.url, namespace, init_command=ODD_SESSION) as mine:
            yield mine


def test_every_ability_but_one_is_declared(url):
    """A case of an ability that is not declared is skipped."""
    assert MySqlSagaStore(url).capabilities == StoreCapabilities(
        conditional_delete=True,
        query=True,
        retention=True,
        schema=True,
        transactions=True,
        ping=True,
        completed_ttl=None,
        processes=True,
        max_state_bytes=None,  # known once the store is open
    )

"""The whole conformance kit, in every variant, where a SQL Server can be had (SAGA_TEST_SQLSERVER_URL names one)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import pytest

from saga_bus.store.conformance import SagaStoreConformance
from saga_bus.store_sqlserver import SqlServerSagaStore
from saga_bus.store_sqlserver._location import parse_location
from saga_bus.store_sqlserver._odbc import load
from sqlserver_helpers import is_babelfish


def connected(url, *, autocommit: bool = True, isolation: str = "READ COMMITTED"):
    connection = load().connect(parse_location(url).connection_string(), autocommit=True, timeout=10)
    connection.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
    connection.autocommit = autocommit
    return connection


class ServerTransaction:
    def __init__(self, url, namespace, connection) -> None:
        self.url = url
        self.namespace = namespace  # the table of business rows is the same for all variants, and for the next run
        self.connection = connection

    async def commit(self) -> None:
        await asyncio.to_thread(self.connection.commit)

    async def rollback(self) -> None:
        await asyncio.to_thread(self.connection.rollback)

    async def put_row(self, key: str) -> None:
        await asyncio.to_thread(self._put, "INSERT INTO saga_bus_test_business VALUES (?)", f"{self.namespace} {key}")

    def _put(self, sql, key):
        # A cursor that is closed later, by whatever thread drops it, would talk over the bound store's statements.
        self.connection.execute(sql, key).close()

    async def has_row(self, key: str) -> bool:
        with closing(connected(self.url)) as other:
            sql = "SELECT COUNT(*) FROM saga_bus_test_business WHERE name = ?"
            return bool(other.execute(sql, f"{self.namespace} {key}").fetchval())


class ServerConformance(SagaStoreConformance):
    isolation = "READ COMMITTED"

    @pytest.fixture(autouse=True)
    def on_server(self, databases):
        self.url = databases.url("sqlserver")
        try:
            connected(self.url, isolation=self.isolation).close()
        except load().Error as error:
            if self.isolation == "READ COMMITTED" or not is_babelfish(self.url):
                raise
            pytest.skip(f"{self.isolation} is not to be had here: {error}")  # Babelfish has not all levels

    def open_store(self, namespace):
        return SqlServerSagaStore(self.url, table=namespace, pool_size=4)

    @asynccontextmanager
    async def open_transaction(self, namespace) -> AsyncIterator[ServerTransaction]:
        with closing(connected(self.url)) as first:
            first.execute(
                "IF OBJECT_ID(N'saga_bus_test_business', N'U') IS NULL "
                "CREATE TABLE saga_bus_test_business (name NVARCHAR(200) NOT NULL PRIMARY KEY)"
            )
        with closing(connected(self.url, autocommit=False, isolation=self.isolation)) as connection:
            yield ServerTransaction(self.url, namespace, connection)
            connection.rollback()


class TestDefault(ServerConformance):
    pass


class TestStrictest(ServerConformance):
    """Every connection is SERIALIZABLE, the store's own and the caller's."""

    isolation = "SERIALIZABLE"

    def open_store(self, namespace):
        return SqlServerSagaStore(
            connect=lambda: connected(self.url, isolation="SERIALIZABLE"), table=namespace, pool_size=4
        )


class TestCustomSchema(ServerConformance):
    def open_store(self, namespace):
        return SqlServerSagaStore(self.url, table=f"Sagas of [{namespace}]", schema="saga bus 'tests'", pool_size=4)


class TestOneConnection(ServerConformance):
    """With a pool of one, whatever waits for a connection that it holds itself would hang."""

    def open_store(self, namespace):
        return SqlServerSagaStore(self.url, table=namespace, pool_size=1)

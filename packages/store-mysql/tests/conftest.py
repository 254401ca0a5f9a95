import asyncio
from contextlib import asynccontextmanager
from uuid import uuid4

import aiomysql
import pytest

from providers import UnavailableError
from providers.mysql import connection_options, execute, private_server
from providers.skipping import skip_unless_required
from saga_bus.store import SagaMetadata, SagaState
from saga_bus.store_mysql import MySqlSagaStore

NAME = "OrderSaga"


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("providers.plugin")


class OrderState(SagaState, kw_only=True):
    note: str = ""


class Place:
    """A fresh table on the server, and short ways to what tests do with it."""

    name = NAME
    State = OrderState

    def __init__(self, url: str) -> None:
        self.url = url
        self.table = f"t_{uuid4().hex[:12]}"

    def store(self, **options) -> MySqlSagaStore:
        return MySqlSagaStore(
            options.pop("url", self.url), **{"table": self.table, "state_types": {NAME: OrderState}, **options}
        )

    @asynccontextmanager
    async def opened(self, **options):
        """A store with its schema."""
        async with self.store(**options) as store:
            await store.create_schema()
            yield store

    @asynccontextmanager
    async def connection(self, **options):
        """A connection of the test's own."""
        connection = await aiomysql.connect(**connection_options(self.url), **options)
        try:
            yield connection
        finally:
            connection.close()

    @asynccontextmanager
    async def holding(self, *saga_ids: str):
        """Somebody else's transaction that has locked sagas."""
        async with self.connection() as connection:
            await connection.begin()
            for saga_id in saga_ids:
                where = f"saga_name = '{NAME}' AND saga_id = '{saga_id}'"
                await connection.query(f"SELECT 1 FROM {self.table} WHERE {where} FOR UPDATE")
            yield connection
            await connection.rollback()

    def execute(self, *statements: str):
        return execute(self.url, *statements)

    @staticmethod
    def state(saga_id: str, note: str = "", version: int = 0) -> OrderState:
        fresh = SagaMetadata.fresh(saga_id)
        for _ in range(version):
            fresh = fresh.next()
        return OrderState(metadata=fresh, note=note)

    @staticmethod
    def follow(state: OrderState, note: str = "") -> OrderState:
        return OrderState(metadata=state.metadata.next(), note=note)

    async def insert(self, store, *saga_ids: str) -> list[OrderState]:
        states = [self.state(saga_id) for saga_id in saga_ids]
        for state in states:
            await store.insert(NAME, f"order-{state.metadata.saga_id}", state)
        return states


@pytest.fixture(scope="session")
def url(databases):
    """The URL of an administrator of the server."""
    return databases.url("mysql")


# Each is allowed, and none is what the server has by default. With a log of statements it warns of every group of
# updates; and it may lose commits, which makes its tests faster.
CARELESS = (
    "--sql-mode=",
    "--transaction-isolation=SERIALIZABLE",
    "--log-bin=log",
    "--binlog-format=STATEMENT",
    "--sync-binlog=0",
    "--innodb-flush-log-at-trx-commit=2",
    "--innodb-doublewrite=OFF",
)


@pytest.fixture(scope="session")
def careless_url():
    """The URL of an administrator of a server whose settings are careless."""
    try:
        with private_server(CARELESS) as server:
            yield server.url
    except UnavailableError as error:
        skip_unless_required("mysql", str(error))


@pytest.fixture
def place(url):
    fresh = Place(url)
    yield fresh
    fresh.execute(f"DROP TABLE IF EXISTS `{fresh.table}`")


@pytest.fixture
def careless_place(careless_url):
    fresh = Place(careless_url)
    yield fresh
    fresh.execute(f"DROP TABLE IF EXISTS `{fresh.table}`")


@pytest.fixture
def user(place):
    """Makes users who may do only what is named; yields a function from rights to a URL."""
    made = []

    def make(*rights: str, password: str = "pass-word", limit: str = "") -> str:
        name = f"u_{uuid4().hex[:8]}"
        made.append(name)
        database = connection_options(place.url)["db"]
        place.execute(
            f"CREATE USER {name}@'%' IDENTIFIED BY '{password}' {limit}",
            *([f"GRANT {', '.join(rights)} ON `{database}`.* TO {name}@'%'"] if rights else []),
        )
        return place.url.replace("root@", f"{name}:{password}@")

    yield make
    for name in made:
        place.execute(f"DROP USER {name}@'%'")


@pytest.fixture
def run():
    return asyncio.run

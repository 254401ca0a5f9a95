import asyncio
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from providers.dynamodb import connected, endpoint_of, url_of
from saga_bus.store import SagaMetadata, SagaState
from saga_bus.store_dynamodb import DynamoDBSagaStore

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
        self.endpoint = endpoint_of(url)
        self.table = f"t_{uuid4().hex[:12]}"
        self.url = url_of(self.endpoint, self.table)

    def store(self, **options) -> DynamoDBSagaStore:
        database = () if {"client", "session"} & set(options) else (options.pop("url", self.url),)
        table = {} if database else {"table": self.table}
        return DynamoDBSagaStore(*database, **{"state_types": {NAME: OrderState}, **table, **options})

    @asynccontextmanager
    async def opened(self, **options):
        """A store with its schema."""
        async with self.store(**options) as store:
            await store.create_schema()
            yield store

    def client(self):
        return connected(self.url)

    def items(self) -> dict[str, dict]:
        """Everything in the table, by its keys."""
        with self.client() as client:
            return {item["pk"]["S"]: item for item in client.scan(TableName=self.table, ConsistentRead=True)["Items"]}

    def change(self, key: str, **attributes) -> None:
        """Set attributes of an item, or remove those that are None."""
        with self.client() as client:
            found = client.get_item(TableName=self.table, Key={"pk": {"S": key}})["Item"]
            found |= attributes
            client.put_item(
                TableName=self.table, Item={name: value for name, value in found.items() if value is not None}
            )

    @staticmethod
    def state(saga_id: str, note: str = "", version: int = 0, **changes) -> OrderState:
        fresh = SagaMetadata.fresh(saga_id)
        for _ in range(version):
            fresh = fresh.next()
        return OrderState(metadata=fresh, note=note)

    @staticmethod
    def follow(state: OrderState, note: str = "", **changes) -> OrderState:
        return OrderState(metadata=state.metadata.next(**changes), note=note)

    async def insert(self, store, *saga_ids: str) -> list[OrderState]:
        states = [self.state(saga_id) for saga_id in saga_ids]
        for state in states:
            await store.insert(NAME, f"order-{state.metadata.saga_id}", state)
        return states


class RecordingClient:
    """A client that tells of each request before it makes it."""

    def __init__(self, real, recorder) -> None:
        self._real = real
        self._recorder = recorder

    def __getattr__(self, name):
        method = getattr(self._real, name)
        if name in ("close", "meta"):
            return method
        return lambda **request: self._recorder.make(name, method, request)


class Recorder:
    """Writes down the requests of an open store, by the client's methods; what is in ``instead`` is called for one."""

    def __init__(self, store) -> None:
        self.requests: list[tuple[str, dict]] = []
        self.instead = {}
        store._driver._client = RecordingClient(store._driver._client, self)

    def make(self, name, method, request):
        self.requests.append((name, request))
        waiting = self.instead.get(name)
        other = waiting.pop(0) if waiting else None
        return method(**request) if other is None else other(method, request)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.requests]

    def clear(self) -> None:
        self.requests.clear()


@pytest.fixture(scope="session")
def url(databases):
    """The URL of a server."""
    return databases.url("dynamodb")


@pytest.fixture
def place(url):
    fresh = Place(url)
    yield fresh
    with fresh.client() as client:
        if fresh.table in client.list_tables()["TableNames"]:
            client.update_table(TableName=fresh.table, DeletionProtectionEnabled=False)
            client.delete_table(TableName=fresh.table)


@pytest.fixture
def recorder():
    return Recorder


@pytest.fixture
def run():
    return asyncio.run

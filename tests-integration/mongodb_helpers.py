"""What the tests of the MongoDB store share."""

from __future__ import annotations

import gc
import sys
import uuid
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from providers import UnavailableError, required_backends
from providers.mongodb import PrivateMongo
from saga_bus.store import SagaState
from saga_bus.store_mongodb import MongoSagaStore

SAGA = "OrderSaga"
DATABASE = "sagas"


class OrderState(SagaState, kw_only=True):
    note: str = ""
    data: dict[str, Any] = msgspec.field(default_factory=dict)


def new_collection() -> str:
    return f"c_{uuid.uuid4().hex[:12]}"


def follow(state: OrderState, note: str = "") -> OrderState:
    return OrderState(metadata=state.metadata.next(), note=note)


def database_of(url: str) -> str:
    """The database of a URL; a given server's URL names one, as the private server's does."""
    return url.rpartition("/")[2].partition("?")[0] or DATABASE


@asynccontextmanager
async def store_on(url: str, **options: Any) -> AsyncIterator[MongoSagaStore[OrderState]]:
    """A store on a collection of its own, which is dropped at the end."""
    options = {"collection": new_collection(), **options}
    opened: MongoSagaStore[OrderState] = MongoSagaStore(url, state_types={SAGA: OrderState}, **options)
    async with opened as store:
        await store.create_schema()
        try:
            yield store
        finally:
            await store.drop_schema()


@asynccontextmanager
async def client_of(url: str, **options: Any) -> AsyncIterator[AsyncMongoClient[dict[str, Any]]]:
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(url, **options)
    try:
        yield client
    finally:
        await client.close()


def private_server() -> PrivateMongo:
    """A server of a test's own, not yet started; without one, the test fails if MongoDB is required.

    There is no wheel of SecantusDB for Python 3.14. What needs a server to kill is tested on the others.
    """
    try:
        return PrivateMongo()
    except UnavailableError as error:
        if "mongodb" in required_backends() and sys.version_info < (3, 14):
            pytest.fail(f"SAGA_TEST_REQUIRE names mongodb: {error}")
        pytest.skip(str(error))


def collect_sockets() -> None:
    """Collect what pymongo's monitor leaves open if a client is closed while it connects: a socket, with a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class Heard(CommandListener):
    """The commands that a client sends, without those that it sends for itself."""

    def __init__(self) -> None:
        self.commands: list[dict[str, Any]] = []

    def started(self, event: CommandStartedEvent) -> None:
        if event.command_name not in ("hello", "endSessions", "ping", "killCursors"):
            self.commands.append({"name": event.command_name, **event.command})

    def succeeded(self, event: CommandSucceededEvent) -> None:
        pass

    def failed(self, event: CommandFailedEvent) -> None:
        pass

    def names(self) -> list[str]:
        """The names of the commands since the last call."""
        names = [command["name"] for command in self.commands]
        self.commands.clear()
        return names


@asynccontextmanager
async def heard_store(url: str, **options: Any) -> AsyncIterator[tuple[Heard, MongoSagaStore[OrderState]]]:
    """A store on a given client, with what that client sends; what opening and the schema took is not in it."""
    heard = Heard()
    async with client_of(url, event_listeners=[heard], **options) as client:
        store: MongoSagaStore[OrderState] = MongoSagaStore(
            client=client, collection=new_collection(), state_types={SAGA: OrderState}
        )
        async with store:
            await store.create_schema()
            await store.get_by_id(SAGA, "warm")
            heard.commands.clear()
            try:
                yield heard, store
            finally:
                await store.drop_schema()

"""How the kit opens the MongoDB store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession

from saga_bus.store.conformance import Hooks
from saga_bus.store_mongodb import MongoSagaStore

__all__ = ["MongoTarget", "MongoTransaction", "transaction_on"]


@dataclass
class MongoTransaction:
    """A transaction in a session of the caller's."""

    connection: AsyncClientSession
    rows: Any

    async def commit(self) -> None:
        await self.connection.commit_transaction()

    async def rollback(self) -> None:
        await self.connection.abort_transaction()

    async def put_row(self, key: str) -> None:
        await self.rows.insert_one({"_id": key}, session=self.connection)

    async def has_row(self, key: str) -> bool:
        return await self.rows.find_one({"_id": key}) is not None


@asynccontextmanager
async def transaction_on(url: str, namespace: str) -> AsyncIterator[MongoTransaction]:
    """A transaction beside a collection for business rows, which is dropped at the end.

    Args:
        url: The URL, with a database.
        namespace: Names the collection.
    """
    async with AsyncMongoClient[dict[str, Any]](url) as client:
        database = client.get_default_database()
        rows = await database.create_collection(f"business_{namespace}")
        try:
            async with client.start_session() as session:
                await session.start_transaction()
                yield MongoTransaction(session, rows)
        finally:
            await rows.drop()


@dataclass
class MongoTarget:
    """A place is a collection of one database."""

    url: str

    def open_store(self, namespace: str) -> MongoSagaStore[Any]:
        return MongoSagaStore(self.url, collection=namespace)

    @asynccontextmanager
    async def open_transaction(self, namespace: str) -> AsyncIterator[MongoTransaction]:
        async with transaction_on(self.url, namespace) as transaction:
            yield transaction

    def hooks(self) -> Hooks:
        return Hooks(open_store=self.open_store, open_transaction=self.open_transaction)

"""The whole kit on a URL, and on a given client with options of its own and names that need care."""

from __future__ import annotations

import pytest
from bson.son import SON
from pymongo import AsyncMongoClient

from mongodb_helpers import database_of
from run_conformance.mongodb import transaction_on
from saga_bus.store.conformance import SagaStoreConformance
from saga_bus.store_mongodb import MongoSagaStore
from saga_bus.store_mongodb._transactions import BoundEngine


class TestUrl(SagaStoreConformance):
    @pytest.fixture(autouse=True)
    def on_database(self, url):
        self.url = url

    def open_store(self, namespace):
        return MongoSagaStore(self.url, collection=namespace)

    def open_transaction(self, namespace):
        return transaction_on(self.url, namespace)


class StoreWithClient(MongoSagaStore):
    """Closes its given client, which the store itself must leave open."""

    async def close(self):
        client, was_open = self.given, not self._is_closed
        await super().close()
        if was_open and not isinstance(self._engine, BoundEngine):
            await client.admin.command("ping")
            await client.close()


class TestGivenClientAndEverythingOdd(SagaStoreConformance):
    """A given client that reads other types, has two connections and another database by default; odd names."""

    secrets = ("s3cret-kit-name",)
    test_stateful_behaves_like_the_model = None  # slow, and about the store, which is TestUrl's

    @pytest.fixture(autouse=True)
    def on_database(self, url):
        self.url = url

    async def open_store(self, namespace):
        client = AsyncMongoClient(self.url, document_class=SON, tz_aware=True, maxPoolSize=2, appname="s3cret-kit-name")
        store = StoreWithClient(
            client=client, database=f"{database_of(self.url)}-ödd", collection=f"{{}} é%s.{namespace}"
        )
        store.given = client
        return store

    def open_transaction(self, namespace):
        return transaction_on(self.url, namespace)

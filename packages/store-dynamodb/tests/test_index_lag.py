"""The kit on indexes that lag behind, as AWS's do and those of DynamoDB Local do not."""

from __future__ import annotations

import asyncio
import time

from providers.dynamodb import connected, endpoint_of, url_of
from saga_bus.store.conformance import run_conformance
from saga_bus.store_dynamodb import DynamoDBSagaStore, table_definition
from saga_bus.store_dynamodb._driver import Driver

LAG = 0.15  # seconds


class Replica:
    """A table that is another one as that was a moment ago; its indexes are what queries are answered from."""

    def __init__(self, table: str) -> None:
        self.table = f"{table}_replica"
        self.behind = 0  # how many queries were answered with what was no longer so
        self._versions = [(0.0, {})]
        self._items = None  # of the replica
        self._lock = asyncio.Lock()

    async def note(self, driver: Driver, table: str) -> None:
        """Note what is in the table now."""
        response = await driver.read("scan", TableName=table, ConsistentRead=True)
        self._versions.append((time.monotonic(), {item["pk"]["S"]: item for item in response["Items"]}))

    async def query(self, driver: Driver, request: dict) -> dict:
        """Answer a query."""
        async with self._lock:
            if self._items is None:
                await Driver.write(driver, "create_table", **table_definition(self.table))
                self._items = {}
            until = time.monotonic() - LAG
            items = next(items for since, items in reversed(self._versions) if since <= until)
            self.behind += items is not self._versions[-1][1]
            for key in self._items.keys() - items.keys():
                await Driver.write(driver, "delete_item", TableName=self.table, Key={"pk": {"S": key}})
            for key, item in items.items():
                if self._items.get(key) != item:
                    await Driver.write(driver, "put_item", TableName=self.table, Item=item)
            self._items = items
            return await Driver.read(driver, "query", **{**request, "TableName": self.table})


def test_the_store_keeps_the_contract_on_indexes_that_lag_behind(url, run):
    endpoint = endpoint_of(url)
    replicas: dict[str, Replica] = {}

    class LaggingDriver(Driver):
        async def write(self, operation, **request):
            try:
                return await super().write(operation, **request)
            finally:
                if operation != "create_table":
                    await replicas[self._table].note(self, self._table)

        async def read(self, operation, **request):
            if operation == "query":
                return await replicas[self._table].query(self, request)
            return await super().read(operation, **request)

    def open_store(namespace):
        replicas.setdefault(namespace, Replica(namespace))
        store = DynamoDBSagaStore(url_of(endpoint, namespace))
        store._driver.__class__ = LaggingDriver
        return store

    async def judge():
        return await run_conformance(open_store, only=("insert", "query", "retention"))

    try:
        report = run(judge())
    finally:
        with connected(url) as client:
            left = set(client.list_tables()["TableNames"])
            for replica in replicas.values():
                if replica.table in left:
                    client.delete_table(TableName=replica.table)
    assert report.ok, report.verdict()
    assert {"query", "retention"} <= set(report.declared)
    assert sum(replica.behind for replica in replicas.values()) > 100

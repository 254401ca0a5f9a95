"""How the kit opens the DynamoDB store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from saga_bus.store.conformance import Hooks
from saga_bus.store_dynamodb import DynamoDBSagaStore

__all__ = ["DynamoDBTarget"]


@dataclass
class DynamoDBTarget:
    """A place is a table of one account."""

    url: str

    def open_store(self, namespace: str) -> DynamoDBSagaStore[Any]:
        head, _, query = self.url.partition("?")
        database = f"{head.rpartition('/')[0]}/{namespace}" + (f"?{query}" if query else "")
        return DynamoDBSagaStore(database)

    def hooks(self) -> Hooks:
        return Hooks(open_store=self.open_store)

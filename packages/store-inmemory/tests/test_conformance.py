"""The whole kit on the in-memory store."""

from __future__ import annotations

from typing import Any

from saga_bus.store.conformance import SagaStoreConformance
from saga_bus.store_inmemory import InMemorySagaStore


class TestInMemory(SagaStoreConformance):
    def open_store(self, namespace: str) -> InMemorySagaStore[Any]:
        return InMemorySagaStore(f"memory://{namespace}")

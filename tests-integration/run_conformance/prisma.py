"""How the kit opens the Prisma store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from providers.prisma import MODELS, PrismaEngine, attached, generated_client, imported, shared_schema
from saga_bus.store.conformance import Hooks
from saga_bus.store_prisma import PrismaSagaStore, drop_schema, get_schema_prisma

__all__ = ["PrismaPlaces", "PrismaTarget", "kit_schema"]

_BUSINESS_ROW = """
model BusinessRow {
  name String @id

  @@map("business_rows")
}
"""


def kit_schema(provider: Any) -> str:
    """A schema with some models of sagas, and one of business rows.

    Args:
        provider: "sqlite" or "postgresql".
    """
    models = [
        get_schema_prisma(provider=provider, model=f"Saga{number}", table=f"Saga {number} é")
        for number in range(MODELS)
    ]
    return shared_schema(provider, "\n".join(models) + _BUSINESS_ROW)


@dataclass
class PrismaTransaction:
    """A transaction of a client of the caller's."""

    client: Any
    manager: Any
    connection: Any
    namespace: str

    async def commit(self) -> None:
        await self.manager.commit()

    async def rollback(self) -> None:
        await self.manager.rollback()

    async def put_row(self, key: str) -> None:
        await self.connection.businessrow.create_many([{"name": self.namespace + key}])

    async def has_row(self, key: str) -> bool:
        return bool(await self.client.businessrow.count(where={"name": self.namespace + key}))


class OwnClient(PrismaSagaStore[Any]):
    """Disconnects its given client, which the store itself must leave connected."""

    async def close(self) -> None:
        client, was_open = self._prisma, not self._is_closed
        await super().close()
        if was_open and not client.is_transaction():
            assert client.is_connected(), "the store disconnected a client that it was given connected"
            await client.disconnect()


@dataclass
class PrismaPlaces:
    """A place is one of the models of a client, which are used again in turns, each time without a table.

    It can be sent to other processes, which use the same engine.
    """

    folder: Path
    engine_url: str
    models: dict[str, str] = field(default_factory=dict)

    async def open_store(self, namespace: str) -> OwnClient:
        is_new = namespace not in self.models
        model = self.models.setdefault(namespace, f"saga{len(self.models) % MODELS}")
        client = attached(imported(self.folder), self.engine_url)
        if is_new:
            await drop_schema(client, model=model)
        return OwnClient(prisma=client, model=model)

    @asynccontextmanager
    async def open_transaction(self, namespace: str) -> AsyncIterator[PrismaTransaction]:
        client = attached(imported(self.folder), self.engine_url)
        try:
            await client.execute_raw("CREATE TABLE IF NOT EXISTS business_rows (name TEXT PRIMARY KEY)")
            manager = client.tx()
            yield PrismaTransaction(client, manager, await manager.start(), namespace)
        finally:
            await client.disconnect()

    def hooks(self) -> Hooks:
        return Hooks(open_store=self.open_store, open_transaction=self.open_transaction)


class PrismaTarget(PrismaPlaces):
    """The places on a database of a URL, with an engine of its own that ends with this process."""

    def __init__(self, url: str) -> None:
        folder = generated_client(kit_schema("postgresql" if url.startswith("postgres") else "sqlite"))
        self._engine = PrismaEngine(imported(folder), url)
        super().__init__(folder, self._engine.url)

    def hooks(self) -> Hooks:
        return PrismaPlaces(self.folder, self.engine_url).hooks()

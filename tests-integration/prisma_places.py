"""Places for the Prisma store; a light module, as the processes of the kit import it."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from saga_bus.store.conformance import Hooks
from saga_bus.store_prisma import PrismaSagaStore, drop_schema

__all__ = ["MODELS", "OwnClient", "PrismaPlaces", "PrismaTransaction", "attached", "imported"]

MODELS = 4  # more than the places that a case of the kit uses at a time


def imported(folder: Path) -> ModuleType:
    """A generated client as a module.

    Args:
        folder: What `generated_client` returned.
    """
    if str(folder.parent) not in sys.path:
        sys.path.append(str(folder.parent))
    return importlib.import_module(folder.name)


def attached(package: ModuleType, url: str) -> Any:
    """A connected client on an engine that runs already: a process less for each test.

    Args:
        package: The generated client.
        url: Where the engine listens.
    """
    client = package.Prisma(use_dotenv=False, http={"verify": False})  # reading certificates takes 25 ms
    client._engine = client._create_engine()
    client._engine.url = url
    return client


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
            for _ in range(10):  # the sockets of cancelled calls close in later turns of the event loop
                await asyncio.sleep(0)


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

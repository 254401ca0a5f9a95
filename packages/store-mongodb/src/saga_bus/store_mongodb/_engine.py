"""The operations on a client, each committed by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from saga_bus.store import SagaRow
from saga_bus.store_mongodb._collections import Client, Collections, collections_of, owned_client, patience_with
from saga_bus.store_mongodb._documents import Insert, Update
from saga_bus.store_mongodb._groups import Groups
from saga_bus.store_mongodb._location import Location
from saga_bus.store_mongodb._operations import Key, Operations
from saga_bus.store_mongodb._schema import Verified

__all__ = ["ClientEngine"]


class ClientEngine:
    """Works on a client.

    Args:
        given: A client of the caller's, which is never closed.
        location: A URL instead, for a client that is made when it is first needed and closed at the end.
        database: The database's name.
        collection: The collection's name.
        verified: Where the unique index was found.
    """

    session = None

    def __init__(
        self,
        given: Client | None,
        location: Location | None,
        database: str,
        collection: str,
        verified: Verified,
    ) -> None:
        self._client = given
        self._location = location
        self._names = database, collection
        self._verified = verified
        self._is_ready = False
        self._collections: Collections | None = None

    async def open(self) -> None:
        """Make the own client, which connects when it is used."""
        patience: float | None = None
        if self._client is None and self._location is not None:
            self._client, patience = owned_client(self._location), patience_with(self._location)
        if self._client is None:
            raise RuntimeError("an engine has a client, or makes one")
        self._collections = collections_of(self._client, *self._names, patience)
        self._single = Operations(self._collections)
        self._groups = Groups(self._collections, self._single)

    async def close(self) -> None:
        """Finish what is in hand and close the own client."""
        await self._groups.close()
        self.collections().calls.close()
        if self._location is not None and self._client is not None:
            await self._client.close()

    def collections(self) -> Collections:
        """The collection, verified or not."""
        if self._collections is None:
            raise RuntimeError("the engine is not open")
        return self._collections

    @asynccontextmanager
    async def using(self) -> AsyncIterator[Collections]:
        """The collection, whose unique index was found once.

        Raises:
            SchemaError: It is not there.
        """
        if not self._is_ready:
            await self._verify()
        yield self.collections()

    def forget(self) -> None:
        """The schema was dropped."""
        self._verified.forget()
        self._is_ready = False

    async def get(self, key: Key, saga_name: str, value: str) -> bytes | None:
        """Fetch a document."""
        if not self._is_ready:
            await self._verify()
        return await self._groups.get(key, saga_name, value)

    async def insert(self, row: SagaRow, correlation_id: str) -> None:
        """Insert a document."""
        item = Insert.of(row, correlation_id)
        if not self._is_ready:
            await self._verify()
        await self._groups.insert(item)

    async def update(self, row: SagaRow, expected_version: int) -> None:
        """Write the next version of a document."""
        item = Update.of(row, expected_version)
        if not self._is_ready:
            await self._verify()
        await self._groups.update(item)

    async def delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        """Delete a document."""
        if not self._is_ready:
            await self._verify()
        await self._single.delete(saga_name, saga_id, expected_version)

    async def _verify(self) -> None:
        await self._verified.verify(self.collections())
        self._is_ready = True

"""The operations inside the caller's transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pymongo.asynchronous.client_session import AsyncClientSession

from saga_bus.store import InvalidSagaError, SagaRow
from saga_bus.store_mongodb._collections import Collections, collections_of
from saga_bus.store_mongodb._documents import Insert, Update
from saga_bus.store_mongodb._operations import Key, Operations
from saga_bus.store_mongodb._schema import Verified

__all__ = ["BoundEngine"]


class BoundEngine:
    """Works in the caller's session, one operation at a time, and never commits or aborts its transaction.

    Args:
        session: A session of pymongo's with an open transaction.
        database: The database's name.
        collection: The collection's name.
        verified: Where the unique index was found.

    Raises:
        InvalidSagaError: It is none, or no transaction is open.
    """

    def __init__(self, session: Any, database: str, collection: str, verified: Verified) -> None:
        if not isinstance(session, AsyncClientSession):
            raise InvalidSagaError(f"bind takes an AsyncClientSession of pymongo's, not {type(session).__name__}")
        self.session: AsyncClientSession | None = session
        self._in_session = session
        self._collections = collections_of(session.client, database, collection)
        self._operations = Operations(self._collections, session)
        self._verified = verified
        self._turn = asyncio.Lock()
        self._check_transaction()

    async def open(self) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        """The session is the caller's."""

    def collections(self) -> Collections:
        """The collection, verified or not."""
        return self._collections

    @asynccontextmanager
    async def using(self) -> AsyncIterator[Collections]:
        """The collection, whose unique index was found once, when it is this operation's turn.

        Raises:
            InvalidSagaError: The transaction has ended.
            SchemaError: It is not there.
        """
        async with self._turn:
            self._check_transaction()
            await self._verified.verify(self._collections)
            yield self._collections

    def forget(self) -> None:
        """The schema was dropped."""
        self._verified.forget()

    async def get(self, key: Key, saga_name: str, value: str) -> bytes | None:
        """Fetch a document, as the transaction sees it."""
        async with self.using():
            if key == "saga_id":
                return await self._operations.get_by_id((saga_name, value))
            return await self._operations.get_by_correlation_id((saga_name, value))

    async def insert(self, row: SagaRow, correlation_id: str) -> None:
        """Insert a document."""
        item = Insert.of(row, correlation_id)
        async with self.using():
            await self._operations.refuse_taken(item)
            await self._operations.insert(item)

    async def update(self, row: SagaRow, expected_version: int) -> None:
        """Write the next version of a document."""
        item = Update.of(row, expected_version)
        async with self.using():
            await self._operations.update(item)

    async def delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        """Delete a document."""
        async with self.using():
            await self._operations.delete(saga_name, saga_id, expected_version)

    def _check_transaction(self) -> None:
        if self._in_session.has_ended or not self._in_session.in_transaction:
            raise InvalidSagaError("the session has no open transaction: start one, and bind inside it")

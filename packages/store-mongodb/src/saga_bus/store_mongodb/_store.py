"""The MongoDB store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Self, TypeVar

from pymongo import AsyncMongoClient
from pymongo.errors import ConfigurationError

from saga_bus.store import (
    BaseSagaStore,
    FoundRow,
    InvalidSagaError,
    SagaFilter,
    SagaQuery,
    SagaRow,
    StateCodec,
    StoreCapabilities,
)
from saga_bus.store_mongodb import _schema as schema_work
from saga_bus.store_mongodb._collections import Client, check_acknowledged
from saga_bus.store_mongodb._documents import MAX_STATE_BYTES
from saga_bus.store_mongodb._engine import ClientEngine
from saga_bus.store_mongodb._health import warnings_about
from saga_bus.store_mongodb._location import check_names, parsed
from saga_bus.store_mongodb._queries import conditions_of, found_rows, old_completed, page_of
from saga_bus.store_mongodb._transactions import BoundEngine

__all__ = ["MongoSagaStore", "check_schema", "create_schema", "drop_schema"]

StateT = TypeVar("StateT")

_DEFAULT_COLLECTION = "saga_instances"


class MongoSagaStore(BaseSagaStore[StateT]):
    """Sagas in a collection of MongoDB, each a document; any number of processes may share it.

    Writes are acknowledged by a majority that has them in its journals, and reads see what a majority has, unless
    the client or the URL says otherwise. Calls that are made while others are in progress leave in groups; each keeps
    its own result.

    Args:
        url: ``mongodb://user:password@host:port/database`` with any options of pymongo's, or ``mongodb+srv://``. The
            store makes a client on it and closes it.
        client: Instead of a URL, a pymongo ``AsyncMongoClient``; it is never closed by the store.
        database: The database's name, where the URL or the client names none, or another one.
        collection: The collection's name.
        state_types: The state type of each saga name.
        codec: Replaces the JSON codec.

    Raises:
        InvalidSagaError: A bad argument, not exactly one of a URL and a client, no database, or ``w=0``.
    """

    capabilities = StoreCapabilities(
        conditional_delete=True,
        query=True,
        retention=True,
        schema=True,
        transactions=True,
        ping=True,
        processes=True,
        max_state_bytes=MAX_STATE_BYTES,
    )

    def __init__(
        self,
        url: str | None = None,
        *,
        client: Any = None,
        database: str | None = None,
        collection: str = _DEFAULT_COLLECTION,
        state_types: Mapping[str, type] | None = None,
        codec: StateCodec | None = None,
    ) -> None:
        super().__init__(state_types=state_types, codec=codec)
        if (url is None) == (client is None):
            raise InvalidSagaError("give either a URL or a client")
        location = None if url is None else parsed(url)
        if location is not None:
            check_acknowledged(location.options.get("w"))
            named, self._place = location.database, location.shown
        else:
            if not isinstance(client, AsyncMongoClient):
                raise InvalidSagaError(f"the client must be an AsyncMongoClient, not {type(client).__name__}")
            check_acknowledged(client.write_concern.document.get("w"))
            named, self._place = _default_database(client), "the given client"
        name = database if database is not None else named
        if name is None:
            raise InvalidSagaError("name a database: in the URL, or as database=...")
        check_names(name, collection)
        self._names = name, collection
        self._verified = schema_work.Verified()
        self._engine: ClientEngine | BoundEngine = ClientEngine(client, location, name, collection, self._verified)

    def __repr__(self) -> str:
        database, collection = self._names
        return f"{type(self).__qualname__}({self._place!r}, database={database!r}, collection={collection!r})"

    # -- life --------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        await self._engine.open()

    async def _close(self) -> None:
        await self._engine.close()

    def _bind(self, connection: Any) -> Self:
        return self._copy_with(
            _engine=BoundEngine(connection, *self._names, self._verified), _place="the caller's transaction"
        )

    # -- primitives --------------------------------------------------------------------------------------

    def _refuse_too_large(self, saga_name: str, saga_id: str, document: bytes) -> None:
        """What counts is the size as BSON, which is known when the state is encoded as such."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        await self._engine.insert(row, correlation_id)

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        await self._engine.update(row, expected_version)

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        await self._engine.delete(saga_name, saga_id, expected_version)

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        return await self._engine.get("saga_id", saga_name, saga_id)

    async def _get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        return await self._engine.get("correlation_id", saga_name, correlation_id)

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        page, session = page_of(query), self._engine.session
        async with self._engine.using() as collections:
            with collections.calls(writing=False):
                cursor = collections.sagas.find(page.where, page.fields, session=session).sort(page.sort)
                documents = await cursor.hint(page.hint).limit(query.limit).batch_size(query.limit).to_list()
        return found_rows(documents, query.order)

    async def _count(self, where: SagaFilter) -> int:
        async with self._engine.using() as collections:
            with collections.calls(writing=False):
                return await collections.sagas.count_documents(conditions_of(where), session=self._engine.session)

    async def _purge(self, saga_name: str, before: datetime, batch_size: int) -> int:
        session, old = self._engine.session, old_completed(saga_name, before)
        async with self._engine.using() as collections:
            while True:
                with collections.calls(writing=False):
                    cursor = collections.sagas.find(old, {"_id": 1}, session=session).hint("saga_completed_of_name")
                    found = await cursor.limit(batch_size).to_list()
                if not found:
                    return 0
                # Each is deleted only if it still is old and completed.
                batch = {"_id": {"$in": [document["_id"] for document in found]}, **old}
                with collections.calls(writing=session is None):
                    deleted = (await collections.sagas.delete_many(batch, session=session)).deleted_count
                if deleted:
                    return deleted

    async def _create_schema(self) -> None:
        await self._ensure_open()  # which looks at nothing yet
        await schema_work.create(self._engine.collections())

    async def _check_schema(self) -> None:
        await self._ensure_open()
        await schema_work.check(self._engine.collections())

    async def _drop_schema(self) -> None:
        await self._ensure_open()
        self._engine.forget()
        await schema_work.drop(self._engine.collections())

    async def _ping(self) -> Sequence[str]:
        return await warnings_about(self._engine.collections())


async def create_schema(server: Any, *, database: str | None = None, collection: str = _DEFAULT_COLLECTION) -> None:
    """Create the collection and its indexes where they are missing.

    Args:
        server: A URL or a client, as `MongoSagaStore` takes them.
        database: The database's name, where the URL or the client names none.
        collection: The collection's name.

    Raises:
        SchemaError: The collection is newer than the package, or was not made by it.
    """
    async with _store_on(server, database, collection) as store:
        await store.create_schema()


async def check_schema(server: Any, *, database: str | None = None, collection: str = _DEFAULT_COLLECTION) -> None:
    """Check that the collection and its indexes are there and of this package's version.

    Args:
        server: A URL or a client, as `MongoSagaStore` takes them.
        database: The database's name, where the URL or the client names none.
        collection: The collection's name.

    Raises:
        SchemaError: Something is missing, older or newer; the message says what to run.
    """
    async with _store_on(server, database, collection) as store:
        await store.check_schema()


async def drop_schema(server: Any, *, database: str | None = None, collection: str = _DEFAULT_COLLECTION) -> None:
    """Drop the collection with its sagas; one that is not there is no error.

    Args:
        server: A URL or a client, as `MongoSagaStore` takes them.
        database: The database's name, where the URL or the client names none.
        collection: The collection's name.
    """
    async with _store_on(server, database, collection) as store:
        await store.drop_schema()


def _store_on(server: Any, database: str | None, collection: str) -> MongoSagaStore[Any]:
    if isinstance(server, str):
        return MongoSagaStore(server, database=database, collection=collection)
    return MongoSagaStore(client=server, database=database, collection=collection)


def _default_database(client: Client) -> str | None:
    try:
        return client.get_default_database().name
    except ConfigurationError:  # its URL named none
        return None

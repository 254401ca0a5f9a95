"""The collection, its indexes and their version: creating, checking and dropping them.

The version is a document of its own in the collection ``saga_bus_schema`` of the same database. What ``create`` does
it may do again, and in many processes at once: each command makes what is missing, or finds it there.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError, OperationFailure

from saga_bus.store import SchemaError
from saga_bus.store_mongodb._collections import Client, Collections
from saga_bus.store_mongodb._location import check_names

__all__ = ["INDEXES", "SCHEMA_VERSION", "VERSIONS", "Verified", "check", "create", "drop", "get_schema_commands"]

Document = dict[str, Any]

VERSIONS = "saga_bus_schema"
SCHEMA_VERSION = 1

# The order of `find` is that of the keys, forwards or backwards; a partial index holds what its expression says, and
# a query names it by a hint. An update changes one key of one index, where it does not complete the saga or set a
# timeout: that of `stalest`.
INDEXES: tuple[Document, ...] = (
    {"name": "saga_correlation", "key": {"saga_name": 1, "correlation_id": 1}, "unique": True},
    {"name": "saga_newest", "key": {"created_at": 1, "saga_name": 1, "saga_id": 1}},
    {"name": "saga_newest_of_name", "key": {"saga_name": 1, "created_at": 1, "saga_id": 1}},
    {"name": "saga_stalest", "key": {"is_completed": 1, "updated_at": 1, "saga_name": 1, "saga_id": 1}},
    {
        "name": "saga_completed_of_name",
        "key": {"saga_name": 1, "updated_at": 1, "saga_id": 1},
        "partialFilterExpression": {"is_completed": True},
    },
    {
        "name": "saga_due",
        "key": {"timeout_expires_at": 1, "saga_name": 1, "saga_id": 1},
        "partialFilterExpression": {"is_completed": False, "timeout_expires_at": {"$exists": True}},
    },
    {
        "name": "saga_pending",
        "key": {"created_at": 1, "saga_name": 1, "saga_id": 1},
        "partialFilterExpression": {"outbox_pending": True},
    },
)
_UNIQUE = INDEXES[0]
_COMPARED = ("unique", "partialFilterExpression", "sparse", "collation", "expireAfterSeconds")

_NAMESPACE_EXISTS = 48
_NAMESPACE_NOT_FOUND = 26


class Verified:
    """The clients on whose server the unique index was found, so that it is looked for once."""

    def __init__(self) -> None:
        self._clients: dict[int, weakref.ref[Client]] = {}
        self._turn = asyncio.Lock()

    def forget(self) -> None:
        """The schema was dropped."""
        self._clients.clear()

    async def verify(self, collections: Collections) -> None:
        """Look for the unique index, if it was not found before.

        Args:
            collections: The collection.

        Raises:
            SchemaError: It is not there, so that inserts would not be unique.
        """
        client = collections.database.client
        known = self._clients.get(id(client))
        if known is not None and known() is client:
            return
        async with self._turn:
            with collections.calls(writing=False):
                found = await _indexes(collections)
            if not _is_like(found.get(_UNIQUE["name"]), _UNIQUE):
                raise _missing(collections, f"the unique index {_UNIQUE['name']!r}")
            self._clients[id(client)] = weakref.ref(client)


def get_schema_commands(*, collection: str = "saga_instances") -> list[Document]:
    """The database commands that do what ``create_schema`` does, for people who run them by themselves.

    Args:
        collection: The collection's name.

    Returns:
        Commands for ``db.runCommand``, in their order. The first one fails where the collection is there already.

    Raises:
        InvalidSagaError: A bad name.
    """
    check_names("any", collection)
    return [
        {"create": collection},
        _create_indexes(collection),
        {
            "update": VERSIONS,
            "updates": [
                {"q": {"_id": collection}, "u": {"$setOnInsert": {"version": SCHEMA_VERSION}}, "upsert": True},
            ],
            "writeConcern": {"w": "majority"},
        },
    ]


async def create(collections: Collections) -> None:
    """Make what is missing of the collection, its indexes and its version.

    Args:
        collections: The collection.

    Raises:
        SchemaError: The collection is of a newer version, or was not made by ``create_schema``.
    """
    database, name = collections.database, collections.sagas.name
    with collections.calls(writing=True):
        found = await _version(database, name)
        if found is None and await collections.latest.find_one({}, {"_id": 1}) is not None:
            found = await _version(database, name)  # another process may have made it meanwhile
            if found is None:
                raise SchemaError(
                    f"there is a collection {name!r} that create_schema() did not make: choose another name"
                )
        _refuse_newer(name, found)
        try:
            await database.command({"create": name})
        except OperationFailure as error:
            if error.code != _NAMESPACE_EXISTS:
                raise
            await _refuse_collation(database, name)
        await database.command({**_create_indexes(name), "writeConcern": database.write_concern.document})
        with suppress(DuplicateKeyError):  # as two upserts at once may end
            await database[VERSIONS].update_one(
                {"_id": name}, {"$setOnInsert": {"version": SCHEMA_VERSION}}, upsert=True
            )


async def check(collections: Collections) -> None:
    """Refuse a schema that is not the package's.

    Args:
        collections: The collection.

    Raises:
        SchemaError: Something is missing, older or newer; the message says what to do.
    """
    name = collections.sagas.name
    with collections.calls(writing=False):
        version = await _version(collections.database, name)
        found = await _indexes(collections)
    if version is None:
        raise _missing(collections, "the version of the collection")
    _refuse_newer(name, version)
    if version < SCHEMA_VERSION:
        raise SchemaError(
            f"the collection {name!r} has schema version {version}, the package needs {SCHEMA_VERSION}: "
            "run create_schema()"
        )
    for index in INDEXES:
        if not _is_like(found.get(index["name"]), index):
            raise _missing(collections, f"the index {index['name']!r}")
    with collections.calls(writing=False):
        await _refuse_collation(collections.database, name)


async def drop(collections: Collections) -> None:
    """Drop the collection and its version; the empty collection of the versions stays.

    Args:
        collections: The collection.
    """
    with collections.calls(writing=True):
        await collections.sagas.drop()
        await collections.database[VERSIONS].delete_one({"_id": collections.sagas.name})


def _create_indexes(collection: str) -> Document:
    return {"createIndexes": collection, "indexes": [dict(index) for index in INDEXES]}


def _missing(collections: Collections, what: str) -> SchemaError:
    place = f"{collections.database.name}.{collections.sagas.name}"
    return SchemaError(f"{place}: {what} is missing or of another kind: run create_schema()")


def _refuse_newer(name: str, version: int | None) -> None:
    if version is not None and version > SCHEMA_VERSION:
        raise SchemaError(
            f"the collection {name!r} has schema version {version}, newer than this package's {SCHEMA_VERSION}: "
            "upgrade saga-bus-store-mongodb"
        )


async def _version(database: AsyncDatabase[Document], name: str) -> int | None:
    found = await database[VERSIONS].find_one({"_id": name}, {"_id": 0, "version": 1})
    return None if found is None else int(found["version"])


async def _indexes(collections: Collections) -> dict[str, Mapping[str, Any]]:
    try:
        found = await (await collections.latest.list_indexes()).to_list()
    except OperationFailure as error:
        if error.code == _NAMESPACE_NOT_FOUND:
            return {}
        raise
    return {index["name"]: index for index in found}


def _is_like(found: Mapping[str, Any] | None, wanted: Document) -> bool:
    return (
        found is not None
        and list(found["key"].items()) == list(wanted["key"].items())
        and all(_plain(found.get(option)) == wanted.get(option) for option in _COMPARED)
    )


def _plain(value: Any) -> Any:
    if value is False:
        return None  # an option that is off is one that was left out
    return {key: _plain_item(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _plain_item(item: Any) -> Any:
    return dict(item) if isinstance(item, Mapping) else item


async def _refuse_collation(database: AsyncDatabase[Document], name: str) -> None:
    found = await (await database.list_collections(filter={"name": name})).to_list()
    if found and found[0].get("options", {}).get("collation"):
        raise SchemaError(f"the collection {name!r} has a collation of its own: ids would not compare exactly")

"""A collection as the store uses it: its own codec options, and concerns that lose no acknowledged write."""

from __future__ import annotations

from typing import Any, NamedTuple

from bson.codec_options import CodecOptions
from pymongo import AsyncMongoClient, ReadPreference
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from saga_bus.store import InvalidSagaError
from saga_bus.store_mongodb._calls import Calls
from saga_bus.store_mongodb._location import Location

__all__ = ["Client", "Collections", "check_acknowledged", "collections_of", "owned_client", "patience_with"]

Client = AsyncMongoClient[dict[str, Any]]

# Seconds; by default a connection that is open waits for its answer without end.
_PATIENCE = 60.0
# Whatever the client's own ones are: the documents are the store's.
_CODEC_OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(document_class=dict)


class Collections(NamedTuple):
    """One collection, with two kinds of options.

    Args:
        sagas: Writes are majority and journaled, reads majority on the primary, unless the client says otherwise.
        latest: Reads see what is there now on the primary, to say why a write found no match.
        database: The database, with the options of ``sagas``.
        calls: Wraps what is done with them.
    """

    sagas: AsyncCollection[dict[str, Any]]
    latest: AsyncCollection[dict[str, Any]]
    database: AsyncDatabase[dict[str, Any]]
    calls: Calls


def owned_client(location: Location) -> Client:
    """A client on a URL; it connects when it is first used.

    Args:
        location: The URL.

    Raises:
        SagaStoreError: pymongo refuses one of its options.
    """
    with Calls()(writing=False):
        return AsyncMongoClient(location.url)


def patience_with(location: Location) -> float | None:
    """How long a call may take on a client of `owned_client`, in seconds; None where the URL has a limit of its own.

    Args:
        location: The URL.
    """
    return None if {"sockettimeoutms", "timeoutms"} & location.options.keys() else _PATIENCE


def check_acknowledged(w: Any) -> None:
    """Refuse writes that nobody answers: a store could not tell a conflict from a success.

    Args:
        w: The ``w`` of a write concern.

    Raises:
        InvalidSagaError: It is 0.
    """
    if w == 0:
        raise InvalidSagaError("w=0 is refused: without an answer a store cannot tell a conflict from a success")


def collections_of(client: Client, database: str, name: str, patience: float | None = None) -> Collections:
    """The collection of a name.

    Args:
        client: The client, whose own concerns and read preference count where it has any.
        database: The database's name.
        name: The collection's name.
        patience: How long a call may take, in seconds; None for as long as the client's own settings let it.
    """
    said = client.write_concern.document
    safe = {"w": "majority"} if "fsync" in said else {"w": "majority", "j": True}
    place = client.get_database(
        database,
        codec_options=_CODEC_OPTIONS,
        write_concern=WriteConcern(**{**safe, **said}),
        read_concern=client.read_concern if client.read_concern.level else ReadConcern("majority"),
        read_preference=client.read_preference,
    )
    collection = place.get_collection(name)
    latest = place.get_collection(name, read_concern=ReadConcern("local"), read_preference=ReadPreference.PRIMARY)
    return Collections(collection, latest, place, Calls(patience))

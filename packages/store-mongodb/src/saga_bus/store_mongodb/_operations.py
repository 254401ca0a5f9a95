"""The operations one by one: for a caller that is alone, and inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import DuplicateKeyError, WriteError

from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
    SagaStoreError,
    StoreUnavailableError,
    version_conflict,
)
from saga_bus.store_mongodb._collections import Collections
from saga_bus.store_mongodb._documents import Insert, Update, correlation_filter, json_of, key_of
from saga_bus.store_mongodb._errors import translated

__all__ = ["Key", "Operations", "conflict_of_insert", "conflict_of_write", "retried"]

Key = Literal["saga_id", "correlation_id"]
ResultT = TypeVar("ResultT")

_STATE = {"_id": 0, "state": 1}
_VERSION = {"_id": 0, "version": 1}
_ID = {"_id": 1}
_ATTEMPTS = 5


class Operations:
    """Single operations on a collection.

    Args:
        collections: The collection.
        session: A session with the caller's open transaction, None for writes that commit by themselves.
    """

    def __init__(self, collections: Collections, session: AsyncClientSession | None = None) -> None:
        self._collections = collections
        self._session = session
        self._commits = session is None

    async def get_by_id(self, pair: tuple[str, str]) -> bytes | None:
        """Fetch a document.

        Args:
            pair: The saga's name and id.
        """
        return await self._get({"_id": key_of(*pair)})

    async def get_by_correlation_id(self, pair: tuple[str, str]) -> bytes | None:
        """Fetch a document.

        Args:
            pair: The saga's name and its correlation id.
        """
        return await self._get(correlation_filter(*pair))

    async def insert(self, item: Insert) -> None:
        """Insert a document.

        Args:
            item: What to insert.

        Raises:
            DuplicateSagaError: A key is taken.
        """
        with self._collections.calls(writing=self._commits):
            try:
                await self._collections.sagas.insert_one(item.document, session=self._session)
            except DuplicateKeyError as error:
                refused = error
            else:
                return
        conflict = conflict_of_insert(item, refused, id_taken=await self._is_there(item.document["_id"]))
        raise conflict or translated(refused, writing=False) from refused

    async def refuse_taken(self, item: Insert) -> None:
        """Refuse an insert whose keys are taken before it is tried: trying would end the transaction.

        Args:
            item: What is to be inserted.

        Raises:
            DuplicateSagaError: A key is taken.
        """
        own = {"_id": item.document["_id"]}
        where = {"$or": [own, correlation_filter(item.row.saga_name, item.correlation_id)]}
        with self._collections.calls(writing=False):
            taken = await self._collections.sagas.find(where, _ID, session=self._session).to_list()
        if taken:
            raise _duplicate(item, "saga_id" if own in taken else "correlation_id")

    async def update(self, item: Update) -> None:
        """Write the next version of a document.

        Args:
            item: What to write.

        Raises:
            ConcurrencyError: Another version is there, or none.
        """

        async def attempt() -> bool:
            with self._collections.calls(writing=self._commits):
                done = await self._collections.sagas.update_one(item.where, item.changes, session=self._session)
            return done.matched_count == 1 or await self._lost(
                item.row.saga_name, item.row.saga_id, item.expected_version
            )

        await retried(attempt)

    async def delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        """Delete a document.

        Args:
            saga_name: The saga's name.
            saga_id: The saga's id.
            expected_version: The version that must be there, None for any or none.

        Raises:
            ConcurrencyError: Another version is there, or none.
        """
        where: dict[str, Any] = {"_id": key_of(saga_name, saga_id)}
        if expected_version is not None:
            where["version"] = expected_version

        async def attempt() -> bool:
            with self._collections.calls(writing=self._commits):
                done = await self._collections.sagas.delete_one(where, session=self._session)
            if expected_version is None or done.deleted_count == 1:
                return True
            return await self._lost(saga_name, saga_id, expected_version)

        await retried(attempt)

    async def _get(self, where: dict[str, Any]) -> bytes | None:
        with self._collections.calls(writing=False):
            found = await self._collections.sagas.find_one(where, _STATE, session=self._session)
        return None if found is None else json_of(found["state"])

    async def _lost(self, saga_name: str, saga_id: str, expected_version: int) -> bool:
        """Raise what a write that matched nothing means; False where the saga has come back meanwhile."""
        where = {"_id": key_of(saga_name, saga_id)}
        with self._collections.calls(writing=False):
            found = await self._collections.latest.find_one(where, _VERSION, session=self._session)
        conflict = conflict_of_write(saga_name, saga_id, expected_version, None if found is None else found["version"])
        if conflict is not None:
            raise conflict
        return False

    async def _is_there(self, key: str) -> bool:
        if self._session is not None:  # the error has ended the transaction
            return False
        try:
            with self._collections.calls(writing=False):
                return await self._collections.latest.find_one({"_id": key}, _ID) is not None
        except SagaStoreError:  # then the server's own word has to do
            return False


def conflict_of_write(saga_name: str, saga_id: str, expected: int, found: int | None) -> ConcurrencyError | None:
    """The error of an update or a conditional delete, None if the saga is there as it was expected.

    Args:
        saga_name: The saga's name.
        saga_id: The saga's id.
        expected: The version that the caller expected.
        found: The version that is there now, None where there is none.
    """
    if found == expected:
        return None
    return version_conflict(saga_name, saga_id, expected_version=expected, actual_version=found)


def conflict_of_insert(item: Insert, error: WriteError, *, id_taken: bool) -> DuplicateSagaError | None:
    """What a duplicate key means, None where it is one of an index that is not ours.

    Args:
        item: What was to be inserted.
        error: What the server said.
        id_taken: Whether there is a saga with its id; if both keys are taken, this one is named, because a caller
            who does not know whether an insert was applied knows its own saga by the id.
    """
    fields = tuple((error.details or {}).get("keyPattern", ()))
    if fields not in (("_id",), ("saga_name", "correlation_id")):
        return None
    return _duplicate(item, "saga_id" if id_taken or fields == ("_id",) else "correlation_id")


def _duplicate(item: Insert, conflict: Key) -> DuplicateSagaError:
    row = item.row
    return DuplicateSagaError(
        saga_name=row.saga_name, saga_id=row.saga_id, correlation_id=item.correlation_id, conflict=conflict
    )


async def retried(attempt: Callable[[], Awaitable[bool]]) -> None:
    """Try again what found a saga on the move, until it is done.

    Args:
        attempt: Does it, and says whether it is done.

    Raises:
        StoreUnavailableError: It was in vain each time.
    """
    for _ in range(_ATTEMPTS):
        if await attempt():
            return
    raise StoreUnavailableError(f"others deleted and made the saga again during each of {_ATTEMPTS} attempts")

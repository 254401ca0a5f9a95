"""Groups: what several callers ask for at once is one command, and each gets its own outcome.

Gets are one ``find`` with ``$in``. Inserts are one unordered ``insert``, whose answer names each document that was
refused. An unordered ``update`` of several statements only answers how many matched, and not which, before the
``bulkWrite`` command of MongoDB 8. So each statement is an upsert that can only fail: where nothing has the expected
version, the server would insert a document, finds that ``$setOnInsert`` gives it another ``_id`` than the filter does,
and refuses it with an error that names the statement. Nothing is ever inserted that way, because ``_id`` is immutable.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, WriteError

from saga_bus.store import Activity, Coalescer, OutcomeUnknownError, SagaStoreError
from saga_bus.store_mongodb._collections import Collections
from saga_bus.store_mongodb._documents import Insert, Update, json_of, key_of
from saga_bus.store_mongodb._errors import (
    DUPLICATE,
    NOT_MATCHED,
    error_of_write,
    translated,
    unsatisfied,
)
from saga_bus.store_mongodb._operations import Key, Operations, conflict_of_insert, conflict_of_write

__all__ = ["Groups"]

_MAX_GROUP = 128
# Two of a kind may be on their way at once: while the server works on one, the next one is made.
_IN_FLIGHT = 2
_ANOTHER_ID = {"_id": ""}
Pair = tuple[str, str]


class Groups:
    """The gets, inserts and updates of many callers.

    Args:
        collections: The collection.
        single: The same operations for a caller that is alone.
    """

    def __init__(self, collections: Collections, single: Operations) -> None:
        self._collections = collections
        self._single = single
        activity = Activity()
        self._reads: dict[Key, Coalescer[Pair, bytes | None]] = {
            "saga_id": Coalescer(
                self._by_ids,
                max_size=_MAX_GROUP,
                max_in_flight=_IN_FLIGHT,
                alone=single.get_by_id,
                activity=activity,
            ),
            "correlation_id": Coalescer(
                self._by_correlation_ids,
                max_size=_MAX_GROUP,
                max_in_flight=_IN_FLIGHT,
                alone=single.get_by_correlation_id,
                activity=activity,
            ),
        }
        self._inserts: Coalescer[Insert, None] = Coalescer(
            self._insert,
            max_size=_MAX_GROUP,
            key=_key,
            max_in_flight=_IN_FLIGHT,
            alone=single.insert,
            activity=activity,
        )
        self._updates: Coalescer[Update, None] = Coalescer(
            self._update,
            max_size=_MAX_GROUP,
            key=_key,
            max_in_flight=_IN_FLIGHT,
            alone=single.update,
            activity=activity,
        )

    async def close(self) -> None:
        """Wait until nothing is in hand."""
        for reads in self._reads.values():
            await reads.join()
        await self._inserts.join()
        await self._updates.join()

    async def get(self, key: Key, saga_name: str, value: str) -> bytes | None:
        """Fetch a document.

        Args:
            key: Which key the saga is looked up by.
            saga_name: The saga's name.
            value: The key.
        """
        return await self._reads[key].call((saga_name, value))

    async def insert(self, item: Insert) -> None:
        """Insert a document.

        Args:
            item: What to insert.
        """
        await self._inserts.call(item)

    async def update(self, item: Update) -> None:
        """Write the next version of a document.

        Args:
            item: What to write.
        """
        await self._updates.call(item)

    # -- gets ----------------------------------------------------------------------------------------------

    async def _by_ids(self, pairs: Sequence[Pair]) -> Sequence[bytes | BaseException | None]:
        keys = [key_of(*pair) for pair in pairs]
        found = await self._find({"_id": {"$in": keys}}, {"state": 1}, len(keys))
        states = {document["_id"]: document["state"] for document in found}
        return [_outcome(states, key) for key in keys]

    async def _by_correlation_ids(self, pairs: Sequence[Pair]) -> Sequence[bytes | BaseException | None]:
        wanted: defaultdict[str, list[str]] = defaultdict(list)
        for saga_name, correlation_id in pairs:
            wanted[saga_name].append(correlation_id)
        parts = [{"saga_name": name, "correlation_id": {"$in": ids}} for name, ids in wanted.items()]
        fields = {"_id": 0, "saga_name": 1, "correlation_id": 1, "state": 1}
        found = await self._find(parts[0] if len(parts) == 1 else {"$or": parts}, fields, len(pairs))
        states = {(document["saga_name"], document["correlation_id"]): document["state"] for document in found}
        return [_outcome(states, pair) for pair in pairs]

    async def _find(self, where: dict[str, Any], fields: dict[str, int], most: int) -> list[dict[str, Any]]:
        # A batch that is not full is known to be the last one: one round trip, where the default is 101 documents.
        with self._collections.calls(writing=False):
            return await self._collections.sagas.find(where, fields).batch_size(most + 1).to_list()

    # -- inserts -------------------------------------------------------------------------------------------

    async def _insert(self, items: Sequence[Insert]) -> Sequence[BaseException | None]:
        with self._collections.calls(writing=True):
            try:
                await self._collections.sagas.insert_many([item.document for item in items], ordered=False)
            except BulkWriteError as error:
                refused, rest = _refused(error), _rest(error)
            else:
                return [None] * len(items)
        outcomes: list[BaseException | None] = [rest] * len(items)
        taken = [place for place, why in refused.items() if why.code == DUPLICATE]
        versions = await self._versions([items[place].document["_id"] for place in taken])
        for place, why in refused.items():
            conflict = None
            if place in taken:
                there = not isinstance(versions, BaseException) and items[place].document["_id"] in versions
                conflict = conflict_of_insert(items[place], why, id_taken=there)
            outcomes[place] = _from(conflict or translated(why, writing=True), why)
        return outcomes

    # -- updates -------------------------------------------------------------------------------------------

    async def _update(self, items: Sequence[Update]) -> Sequence[BaseException | None]:
        with self._collections.calls(writing=True):
            try:
                await self._collections.sagas.bulk_write([_statement(item) for item in items], ordered=False)
            except BulkWriteError as error:
                refused, rest = _refused(error), _rest(error)
            else:
                return [None] * len(items)
        outcomes: list[BaseException | None] = [rest] * len(items)
        lost = [place for place, why in refused.items() if why.code in NOT_MATCHED]
        versions = await self._versions([items[place].where["_id"] for place in lost])
        for place, why in refused.items():
            item = items[place]
            if why.code not in NOT_MATCHED:
                outcomes[place] = _from(translated(why, writing=True), why)
            elif isinstance(versions, BaseException):
                outcomes[place] = versions
            else:
                found = versions.get(item.where["_id"])
                conflict = conflict_of_write(item.row.saga_name, item.row.saga_id, item.expected_version, found)
                outcomes[place] = conflict or await self._again(item)
        return outcomes

    async def _again(self, item: Update) -> BaseException | None:
        """The saga was away and is back as it was expected, or a user's index refuses it: one more try tells."""
        try:
            await self._single.update(item)
        except SagaStoreError as error:
            return error
        return None

    async def _versions(self, keys: Sequence[str]) -> dict[str, int] | SagaStoreError:
        """The versions that are there now; what was written stays written when this question gets no answer."""
        if not keys:
            return {}
        try:
            with self._collections.calls(writing=False):
                found = await self._collections.latest.find({"_id": {"$in": keys}}, {"version": 1}).to_list()
        except SagaStoreError as error:
            return error
        return {document["_id"]: document["version"] for document in found}


def _key(item: Insert | Update) -> Pair:
    return item.row.saga_name, item.row.saga_id


def _statement(item: Update) -> UpdateOne:
    return UpdateOne(item.where, {**item.changes, "$setOnInsert": _ANOTHER_ID}, upsert=True)


def _outcome(states: dict[Any, Any], key: Any) -> bytes | BaseException | None:
    if key not in states:
        return None
    try:
        return json_of(states[key])
    except SagaStoreError as error:
        return error


def _refused(error: BulkWriteError) -> dict[int, WriteError]:
    return {found["index"]: error_of_write(found) for found in error.details["writeErrors"]}


def _rest(error: BulkWriteError) -> OutcomeUnknownError | None:
    """What the writes that were not refused end with: nothing, unless the write concern was not satisfied."""
    return unsatisfied(error.details) if error.details.get("writeConcernErrors") else None


def _from(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error

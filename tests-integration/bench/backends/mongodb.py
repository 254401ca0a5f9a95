"""The MongoDB store, beside raw pymongo, with the same durability.

On the server whose URL is in ``SAGA_TEST_MONGODB_URL``, each subject has a collection of its own. Without it, each has
a private server on its own copy of the data.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
from pymongo import AsyncMongoClient, MongoClient

from bench.subjects import StoreSubject, Subject, Target
from bench.workload import SAGA_NAME, OrderState, correlation_id_of, saga_id_of, state_of
from providers.mongodb import PrivateMongo
from saga_bus.store.checks import microseconds
from saga_bus.store_mongodb import MongoSagaStore

__all__ = ["BACKEND"]

_COLLECTION = "saga_instances"
_CHUNK = 1_000
# What the store asks for by itself.
_DURABLE: dict[str, Any] = {"w": "majority", "journal": True, "readConcernLevel": "majority"}

_builtins = msgspec.to_builtins


def _given_url() -> str | None:
    return os.environ.get("SAGA_TEST_MONGODB_URL")


def _inserted(correlation_id: str, state: OrderState) -> dict[str, Any]:
    metadata = state.metadata
    return {
        "_id": f"{SAGA_NAME}/{metadata.saga_id}",
        "saga_name": SAGA_NAME,
        "saga_id": metadata.saga_id,
        "correlation_id": correlation_id,
        **_changed(state),
    }


def _changed(state: OrderState) -> dict[str, Any]:
    metadata = state.metadata
    return {
        "version": metadata.version,
        "is_completed": metadata.is_completed,
        "outbox_pending": bool(metadata.outbox),
        "created_at": microseconds(metadata.created_at),
        "updated_at": microseconds(metadata.updated_at),
        "state": _builtins(state),
    }


class _Place:
    """Where the orders of one subject, or of the template, are."""

    def __init__(self, directory: Path) -> None:
        self._server: PrivateMongo | None = None
        url = _given_url()
        if url is None:
            directory.mkdir(parents=True, exist_ok=True)
            self._server = PrivateMongo(folder=directory)
            url = self._server.url
        self.url = url
        digest = blake2b(str(directory).encode(), digest_size=8).hexdigest()
        self.collection = _COLLECTION if self._server else f"bench_{digest}"

    def start(self) -> None:
        if self._server is not None:
            self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()

    def kill(self) -> None:
        if self._server is not None:  # which is quicker, and the copy is thrown away
            self._server.kill()


async def _fill(place: _Place, rows: int) -> None:
    """Store orders, and see that the store finds them."""
    store: MongoSagaStore[OrderState] = MongoSagaStore(
        place.url, collection=place.collection, state_types={SAGA_NAME: OrderState}
    )
    async with store:
        await store.drop_schema()
        await store.create_schema()
        async with AsyncMongoClient[dict[str, Any]](place.url) as client:
            sagas = client.get_default_database()[place.collection]
            for first in range(0, rows, _CHUNK):
                numbers = range(first, min(first + _CHUNK, rows))
                await sagas.insert_many(
                    [_inserted(correlation_id_of(n), state_of(n, 0)) for n in numbers], ordered=False
                )
        for number in {0, rows // 2, rows - 1}:
            for state in (
                await store.get_by_id(SAGA_NAME, saga_id_of(number)),
                await store.get_by_correlation_id(SAGA_NAME, correlation_id_of(number)),
            ):
                if state != state_of(number, 0):
                    raise LookupError(f"the store reads order {number} as {state}")


class _Sagas:
    """What all subjects share: a copy of the template, and the totals read through a connection of their own."""

    def __init__(self, directory: Path, template: str) -> None:
        self.place = _Place(directory)
        self.template = template

    async def open(self) -> None:
        self.place.start()
        if _given_url() is None:
            return
        async with MongoSagaStore[OrderState](self.place.url, collection=self.place.collection) as store:
            await store.drop_schema()
            await store.create_schema()
        with MongoClient[dict[str, Any]](self.place.url) as client:
            # Which leaves the indexes of the collection that it fills as they are.
            client.get_default_database()[self.template].aggregate([{"$out": self.place.collection}])

    async def close(self) -> None:
        if _given_url() is not None:
            async with MongoSagaStore[OrderState](self.place.url, collection=self.place.collection) as store:
                await store.drop_schema()
        self.place.kill()

    async def totals(self) -> tuple[int, int]:
        totals = {"$group": {"_id": None, "count": {"$sum": 1}, "versions": {"$sum": "$version"}}}
        with MongoClient[dict[str, Any]](self.place.url) as client:
            (found,) = client.get_default_database()[self.place.collection].aggregate([totals])
        return int(found["count"]), int(found["versions"])


class MongoSubject(StoreSubject, _Sagas):
    """The store."""

    def __init__(self, directory: Path, template: str) -> None:
        _Sagas.__init__(self, directory, template)
        StoreSubject.__init__(self, MongoSagaStore(self.place.url, collection=self.place.collection))

    async def open(self) -> None:
        await _Sagas.open(self)
        await StoreSubject.open(self)

    async def close(self) -> None:
        await StoreSubject.close(self)
        await _Sagas.close(self)
        if _given_url() is not None:  # all subjects were open before the first closes
            async with MongoSagaStore[OrderState](self.place.url, collection=self.template) as store:
                await store.drop_schema()


class PymongoSubject(_Sagas):
    """pymongo as its documentation shows it: a client, and a command for each operation."""

    async def open(self) -> None:
        await super().open()
        self.client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(self.place.url, **_DURABLE)
        self.sagas = self.client.get_default_database()[self.place.collection]

    async def close(self) -> None:
        await self.client.close()
        await super().close()

    async def insert(self, correlation_id: str, state: OrderState) -> None:
        await self.sagas.insert_one(_inserted(correlation_id, state))

    async def get_by_id(self, saga_id: str) -> OrderState | None:
        return _state(await self.sagas.find_one({"_id": f"{SAGA_NAME}/{saga_id}"}, {"_id": 0, "state": 1}))

    async def get_by_correlation_id(self, correlation_id: str) -> OrderState | None:
        where = {"saga_name": SAGA_NAME, "correlation_id": correlation_id}
        return _state(await self.sagas.find_one(where, {"_id": 0, "state": 1}))

    async def update(self, state: OrderState, expected_version: int) -> None:
        where = {"_id": f"{SAGA_NAME}/{state.metadata.saga_id}", "version": expected_version}
        done = await self.sagas.update_one(where, {"$set": _changed(state)})
        if done.matched_count != 1:
            raise LookupError(f"{state.metadata.saga_id} has another version")

    async def find(self, cursor: Any, limit: int) -> tuple[Sequence[OrderState], Any]:
        # One document more than the page tells whether there is a next one, as the store does it.
        where: dict[str, Any] = {"saga_name": SAGA_NAME}
        if cursor is not None:
            created_at, saga_id = cursor
            ties = [{"created_at": {"$lt": created_at}}, {"saga_id": {"$lt": saga_id}}]
            where |= {"created_at": {"$lte": created_at}, "$or": ties}
        fields = {"_id": 0, "saga_id": 1, "created_at": 1, "state": 1}
        pages = self.sagas.find(where, fields).sort([("created_at", -1), ("saga_id", -1)]).limit(limit + 1)
        found = await pages.to_list()
        states = [msgspec.convert(each["state"], OrderState) for each in found[:limit]]
        last = found[limit - 1] if len(found) > limit else None
        return states, last and (last["created_at"], last["saga_id"])


def _state(found: dict[str, Any] | None) -> OrderState | None:
    return None if found is None else msgspec.convert(found["state"], OrderState)


_GETS = ("get_by_id", "get_by_correlation_id")


class MongoBackend:
    """Sagas in MongoDB."""

    name = "mongodb"
    variants = ("default",)
    peers = ("pymongo",)
    packages = ("saga-bus-store-mongodb", "pymongo", "SecantusDB")
    targets = (
        *(Target("ratio", 0.90, each, "default", 1, "pymongo") for each in (*_GETS, "update", "cycle", "insert")),
        *(Target("ratio", 1.5, each, "default", 64, "pymongo") for each in _GETS),
        # Without "find": SecantusDB sorts all that a page could be taken from, for the store and for pymongo.
        *(
            Target("growth", 0.75, each, "default", callers, rows=1_000_000)
            for callers in (1, 64)
            for each in (*_GETS, "update", "cycle", "insert")
        ),
    )

    def versions(self) -> dict[str, str]:
        url = _given_url()
        if url is None:
            return {}
        with MongoClient[dict[str, Any]](url) as client:
            return {"MongoDB": client.admin.command("buildInfo")["version"]}

    async def prepare(self, directory: Path, rows: int) -> None:
        """Fill a template; what subjects get a copy of is its data folder, or else its name."""
        place = _Place(directory)
        place.start()
        try:
            await _fill(place, rows)
        finally:
            place.stop()
        (directory / "template").write_text(place.collection)

    def subject(self, name: str, variant: str, directory: Path, rows: int) -> Subject:  # noqa: ARG002
        template = (directory / "template").read_text()
        return MongoSubject(directory, template) if name == "store" else PymongoSubject(directory, template)


BACKEND = MongoBackend()

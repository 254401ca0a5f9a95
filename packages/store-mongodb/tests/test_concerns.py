"""What the store asks of the server: majority and journal, unless the client says otherwise, and then ping warns."""

from __future__ import annotations

import asyncio

import pytest
from pymongo import ReadPreference

from mongodb_helpers import SAGA, OrderState, client_of, follow, heard_store, store_on
from saga_bus.store_mongodb._collections import collections_of
from saga_bus.store_mongodb._health import warnings_about

SAFE = {"w": "majority", "j": True}


async def use(store):
    """Every kind of read and write, alone and in groups."""
    states = [OrderState() for _ in range(3)]
    await store.insert(SAGA, "order-0", states[0])
    await asyncio.gather(*(store.insert(SAGA, f"order-{n}", states[n]) for n in (1, 2)))
    await store.update(SAGA, follow(states[0]), 0)
    await asyncio.gather(*(store.update(SAGA, follow(states[n]), 0) for n in (1, 2)))
    await store.get_by_id(SAGA, "x")
    await asyncio.gather(*(store.get_by_correlation_id(SAGA, "x") for _ in range(2)))
    await store.delete(SAGA, states[0].metadata.saga_id)
    await store.delete_completed_before(SAGA, states[0].metadata.created_at)


def concerns(heard):
    writes = [
        command["writeConcern"] for command in heard.commands if command["name"] in ("insert", "update", "delete")
    ]
    reads = [command["readConcern"] for command in heard.commands if command["name"] == "find"]
    assert len(writes) >= 5
    assert len(reads) >= 3
    return writes, reads


def test_writes_are_majority_and_journaled_and_reads_majority(url):
    async def run():
        async with heard_store(url) as (heard, store):
            await use(store)
            writes, reads = concerns(heard)
            assert all(concern == SAFE for concern in writes)
            assert all(concern == {"level": "majority"} for concern in reads)
            assert (await store.ping()).warnings == ()

    asyncio.run(run())


def test_what_the_client_says_is_kept(url):
    async def run():
        async with heard_store(url, w=1, journal=False, readConcernLevel="local", retryWrites=False) as (heard, store):
            await use(store)
            writes, reads = concerns(heard)
            assert all(concern == {"w": 1, "j": False} for concern in writes)
            assert all(concern == {"level": "local"} for concern in reads)
            warnings = "\n".join((await store.ping()).warnings)
            for word in ("w=1", "j=False", "'local'", "retryWrites"):
                assert word in warnings

    asyncio.run(run())


def test_what_the_client_leaves_out_is_added(url):
    async def run():
        async with heard_store(url, wTimeoutMS=5000) as (heard, store):
            await store.insert(SAGA, "order-1", OrderState())
            assert heard.commands[-1]["writeConcern"] == {**SAFE, "wtimeout": 5000}

    asyncio.run(run())


def test_what_the_url_says_is_kept(url):
    async def run():
        weak = url + "&w=1&readPreference=secondaryPreferred&readConcernLevel=available"
        async with store_on(weak) as store:
            collections = store._engine.collections()
            assert collections.sagas.write_concern.document == {"w": 1, "j": True}
            assert collections.sagas.read_preference == ReadPreference.SECONDARY_PREFERRED
            warnings = "\n".join((await store.ping()).warnings)
            for word in ("w=1", "'available'", "primary"):
                assert word in warnings
            # Why a write found no match is asked on the primary all the same.
            assert collections.latest.read_preference == ReadPreference.PRIMARY

    asyncio.run(run())


@pytest.mark.parametrize(
    ("hello", "warns"),
    [({"setName": "rs0"}, False), ({"msg": "isdbgrid"}, False), ({"isWritablePrimary": True}, True)],
)
def test_a_single_server_is_warned_about(hello, warns):
    class Database:
        def __init__(self, client):
            self.client = client

        async def command(self, name):
            assert name == "hello"
            return hello

    async def run():
        async with client_of("mongodb://localhost/shop") as client:
            collections = collections_of(client, "shop", "sagas")
            warnings = await warnings_about(collections._replace(database=Database(client)))
            assert any("neither a replica set" in warning for warning in warnings) == warns

    asyncio.run(run())

"""The collection and its indexes."""

from __future__ import annotations

import asyncio

import pytest

from mongodb_helpers import SAGA, OrderState, client_of, new_collection
from saga_bus.store import DuplicateSagaError, SchemaError
from saga_bus.store_mongodb import MongoSagaStore, check_schema, create_schema, drop_schema, get_schema_commands
from saga_bus.store_mongodb._schema import INDEXES, SCHEMA_VERSION, VERSIONS


class Place:
    """A collection of a test's own, with the driver beside it."""

    def __init__(self, url, client):
        self.url = url
        self.name = new_collection()
        self.database = client.get_default_database()
        self.sagas = self.database[self.name]
        self.versions = self.database[VERSIONS]

    def store(self):
        return MongoSagaStore(self.url, collection=self.name, state_types={SAGA: OrderState})


def on_a_place(url, work):
    async def run():
        async with client_of(url) as client:
            place = Place(url, client)
            try:
                await work(place)
            finally:
                await drop_schema(url, collection=place.name)

    asyncio.run(run())


def test_the_helpers_take_a_url_or_a_client(url):
    async def work(place):
        client = place.database.client
        for server in (url, client):
            with pytest.raises(SchemaError, match=r"run create_schema\(\)"):
                await check_schema(server, collection=place.name)
            await create_schema(server, collection=place.name)
            await check_schema(server, collection=place.name)
            await drop_schema(server, collection=place.name)
            await drop_schema(server, collection=place.name)
        assert await place.versions.find_one({"_id": place.name}) is None
        await client.admin.command("ping")  # it was not closed

    on_a_place(url, work)


def test_what_the_commands_make_is_what_create_schema_makes(url):
    async def work(place):
        for command in get_schema_commands(collection=place.name):
            await place.database.command(command)
        await check_schema(url, collection=place.name)
        by_hand = await (await place.sagas.list_indexes()).to_list()
        await create_schema(url, collection=place.name)  # which finds nothing to do
        assert await (await place.sagas.list_indexes()).to_list() == by_hand
        await drop_schema(url, collection=place.name)
        await create_schema(url, collection=place.name)
        made = await (await place.sagas.list_indexes()).to_list()
        assert sorted(map(str, made)) == sorted(map(str, by_hand))

    on_a_place(url, work)


@pytest.mark.parametrize("index", [index["name"] for index in INDEXES])
def test_each_index_is_checked_and_made_again(url, index):
    async def work(place):
        await create_schema(url, collection=place.name)
        await place.sagas.drop_index(index)
        with pytest.raises(SchemaError, match=f"the index '{index}'"):
            await check_schema(url, collection=place.name)
        await create_schema(url, collection=place.name)
        await check_schema(url, collection=place.name)

    on_a_place(url, work)


def test_without_the_unique_index_nothing_is_written(url):
    async def work(place):
        await create_schema(url, collection=place.name)
        await place.sagas.drop_index("saga_correlation")
        async with place.store() as store:
            for _ in range(2):
                with pytest.raises(SchemaError, match="the unique index 'saga_correlation'"):
                    await store.insert(SAGA, "order-1", OrderState())
        assert await place.sagas.count_documents({}) == 0
        async with client_of(url) as client, client.start_session() as session:
            await session.start_transaction()
            async with place.store() as store:
                with pytest.raises(SchemaError, match="the unique index"):
                    await store.bind(session).insert(SAGA, "order-1", OrderState())

    on_a_place(url, work)


def test_an_index_of_the_name_that_is_not_unique_does_not_serve(url):
    async def work(place):
        await create_schema(url, collection=place.name)
        await place.sagas.drop_index("saga_correlation")
        await place.sagas.create_index([("saga_name", 1), ("correlation_id", 1)], name="saga_correlation")
        async with place.store() as store:
            with pytest.raises(SchemaError, match="the unique index"):
                await store.insert(SAGA, "order-1", OrderState())
            with pytest.raises(SchemaError, match="another index of the same name"):
                await store.create_schema()

    on_a_place(url, work)


def test_the_index_is_looked_for_once(url):
    async def work(place):
        await create_schema(url, collection=place.name)
        async with place.store() as store:
            await store.insert(SAGA, "order-1", OrderState())
            await place.sagas.drop_index("saga_newest")  # another one: the store is in use, and goes on
            await store.insert(SAGA, "order-2", OrderState())
            with pytest.raises(DuplicateSagaError):
                await store.insert(SAGA, "order-1", OrderState())

    on_a_place(url, work)


def test_a_store_that_dropped_its_schema_looks_again(url):
    async def work(place):
        async with place.store() as store:
            await store.create_schema()
            await store.insert(SAGA, "order-1", OrderState())
            await store.drop_schema()
            with pytest.raises(SchemaError):
                await store.insert(SAGA, "order-1", OrderState())

    on_a_place(url, work)


@pytest.mark.parametrize(
    ("version", "match"), [(SCHEMA_VERSION + 1, "upgrade saga-bus-store-mongodb"), (0, "version 0")]
)
def test_another_version(url, version, match):
    async def work(place):
        await create_schema(url, collection=place.name)
        await place.versions.update_one({"_id": place.name}, {"$set": {"version": version}})
        with pytest.raises(SchemaError, match=match):
            await check_schema(url, collection=place.name)
        if version > SCHEMA_VERSION:
            with pytest.raises(SchemaError, match=match):
                await create_schema(url, collection=place.name)

    on_a_place(url, work)


def test_a_collection_of_somebody_elses_is_left_alone(url):
    async def work(place):
        await place.sagas.insert_one({"_id": 1})
        with pytest.raises(SchemaError, match="did not make"):
            await create_schema(url, collection=place.name)
        assert len(await (await place.sagas.list_indexes()).to_list()) == 1

    on_a_place(url, work)


def test_a_collection_that_compares_in_another_way_is_refused(url):
    async def work(place):
        await place.database.create_collection(place.name, collation={"locale": "en", "strength": 1})
        with pytest.raises(SchemaError):
            await create_schema(url, collection=place.name)

    on_a_place(url, work)


def test_an_empty_collection_is_taken(url):
    async def work(place):
        await place.database.create_collection(place.name)
        await create_schema(url, collection=place.name)
        await check_schema(url, collection=place.name)

    on_a_place(url, work)

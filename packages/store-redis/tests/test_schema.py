"""The version of the key layout, and what dropping leaves."""

import asyncio

import pytest
from redis.asyncio import Redis

from redis_helpers import NAME, key, state, store_on
from saga_bus.store import InvalidSagaError, SagaFilter, SchemaError
from saga_bus.store_redis import RedisSagaStore, check_schema, create_schema, drop_schema
from saga_bus.store_redis._keys import LAYOUT


def test_dropping_leaves_no_key_and_touches_no_other_prefix(url, prefix, admin):
    async def run():
        other = f"{prefix}x"
        async with store_on(url, prefix) as store, store_on(url, other) as neighbour:
            for each in (store, neighbour):
                await each.create_schema()
                await asyncio.gather(*(each.insert(f"Saga{n % 3}", f"c{n}", state(f"id{n}")) for n in range(500)))
            await store.drop_schema()
            assert list(admin.scan_iter(f"{prefix}:*", count=10_000)) == []
            assert await neighbour.count(SagaFilter()) == 500
            await neighbour.drop_schema()
            assert list(admin.scan_iter(f"{prefix}*", count=10_000)) == []

    asyncio.run(run())


@pytest.mark.parametrize(
    ("found", "says"), [(str(LAYOUT + 1), "upgrade saga-bus-store-redis"), ("x", "another prefix")]
)
def test_refuses_another_layout(url, prefix, admin, found, says):
    async def run():
        admin.hset(f"{prefix}:schema", "layout", found)
        async with store_on(url, prefix) as store:
            for call in (
                store.check_schema,
                store.create_schema,
                lambda: store.insert(NAME, "order-1", state("a")),
                lambda: store.get_by_id(NAME, "a"),
            ):
                with pytest.raises(SchemaError, match=says):
                    await call()
        assert admin.hgetall(f"{prefix}:schema") == {b"layout": found.encode()}
        admin.delete(f"{prefix}:schema")

    asyncio.run(run())


def test_a_key_that_is_no_schema_is_left_alone(url, prefix, admin):
    async def run():
        admin.set(f"{prefix}:schema", "somebody's")
        async with store_on(url, prefix) as store:
            for call in (store.create_schema, store.check_schema):
                with pytest.raises(SchemaError, match="another prefix"):
                    await call()
        assert admin.getdel(f"{prefix}:schema") == b"somebody's"

    asyncio.run(run())


def test_nobody_inserts_into_what_was_dropped_by_another_process(url, prefix, admin):
    async def run():
        async with store_on(url, prefix) as store, store_on(url, prefix) as other:
            await store.create_schema()
            await store.insert(NAME, "order-1", state("a"))
            await other.drop_schema()
            for name in (NAME, "NewSaga"):
                with pytest.raises(SchemaError, match="create_schema"):
                    await store.insert(name, "order-1", state("a"))
            with pytest.raises(SchemaError, match="create_schema"):
                await store.find(SagaFilter())
            assert await store.get_by_id(NAME, "a") is None
            assert list(admin.scan_iter(f"{prefix}:*", count=10_000)) == []
            await other.create_schema()
            await store.insert(NAME, "order-1", state("a"))
            assert await other.count(SagaFilter()) == 1
            admin.delete(key(prefix, "i"))  # as an eviction does: the type is noted anew
            await store.insert(NAME, "order-2", state("b"))
            assert await store.count(SagaFilter()) == 1

    asyncio.run(run())


def test_the_functions_of_the_module_take_a_url_or_a_client(url, prefix):
    async def run():
        await create_schema(url, prefix=prefix)
        client = Redis.from_url(url)
        await check_schema(client, prefix=prefix)
        await drop_schema(client, prefix=prefix)
        with pytest.raises(SchemaError):
            await check_schema(url, prefix=prefix)
        assert await client.ping()
        await client.aclose()

    asyncio.run(run())


@pytest.mark.parametrize(
    "options",
    [
        {"client": object()},
        {"url": "redis://localhost", "client": Redis()},
        {"prefix": "{x}"},
        {"wait_replicas": -1},
        {"wait_timeout": 0},
        {"connect_timeout": float("inf")},
        {"command_timeout": True},
        {"max_connections": 0},
        {"max_state_bytes": 0},
    ],
)
def test_refuses_bad_options(options):
    arguments = {"url": "redis://localhost", **options}
    if "url" not in options and "client" in options:
        del arguments["url"]
    with pytest.raises(InvalidSagaError):
        RedisSagaStore(**arguments)

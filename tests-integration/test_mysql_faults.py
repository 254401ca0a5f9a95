"""Connections cut at every moment, and servers killed under load: nothing acknowledged is lost, nobody hangs."""

import asyncio
import functools
import time
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from faults.load import Load, verify
from faults.proxy import Proxy
from providers import UnavailableError
from providers.mysql import execute, private_server
from providers.skipping import skip_unless_required
from saga_bus.store import (
    DuplicateSagaError,
    OutcomeUnknownError,
    SagaMetadata,
    SagaState,
    StoreUnavailableError,
)
from saga_bus.store_mysql import MySqlSagaStore, create_schema

NAME = "FaultSaga"


@pytest.fixture
def url(databases):
    return databases.url("mysql")


@pytest.fixture
def table(url):
    name = f"faults_{uuid4().hex[:12]}"
    yield name
    execute(url, f"DROP TABLE IF EXISTS {name}")


@asynccontextmanager
async def through_a_proxy(url, table, **options):
    parts = urlsplit(url)
    async with Proxy(parts.hostname, parts.port or 3306) as proxy:
        credentials = parts.netloc.rpartition("@")[0]
        proxied = parts._replace(netloc=f"{credentials}@{proxy.host}:{proxy.port}").geturl()
        async with MySqlSagaStore(proxied, table=table, state_types={NAME: SagaState}, **options) as store:
            await store.create_schema()
            yield proxy, store


def state(saga_id, version=0):
    metadata = SagaMetadata.fresh(saga_id)
    for _ in range(version):
        metadata = metadata.next()
    return SagaState(metadata=metadata)


def test_a_write_that_never_arrived(url, table):
    async def run():
        async with through_a_proxy(url, table) as (proxy, store):
            proxy.cut_before_request(b"INSERT")
            with pytest.raises(StoreUnavailableError):
                await store.insert(NAME, "order-1", state("a"))
            await proxy.fired()
            assert await store.get_by_id(NAME, "a") is None
            await store.insert(NAME, "order-1", state("a"))

    asyncio.run(run())


@pytest.mark.parametrize("grouped", [False, True])
def test_a_write_whose_answer_was_lost(url, table, grouped):
    async def run():
        async with through_a_proxy(url, table) as (proxy, store):
            ids = [f"id-{number}" for number in range(5 if grouped else 1)]
            proxy.cut_after_request(b"INSERT")
            outcomes = await asyncio.gather(
                *(store.insert(NAME, f"order-{key}", state(key)) for key in ids), return_exceptions=True
            )
            await proxy.fired()
            assert type(outcomes[0]) is OutcomeUnknownError
            for key, outcome in zip(ids, outcomes, strict=True):
                there = await store.get_by_id(NAME, key)
                # One's own insert is recognised by its id and content, and so is no false duplicate.
                assert there is not None or isinstance(outcome, StoreUnavailableError)
                if there is None:
                    await store.insert(NAME, f"order-{key}", state(key))
                else:
                    with pytest.raises(DuplicateSagaError):
                        await store.insert(NAME, f"order-{key}", state(key))
            proxy.cut_after_request(b"UPDATE")
            outcomes = await asyncio.gather(
                *(store.update(NAME, state(key, 1), 0) for key in ids), return_exceptions=True
            )
            await proxy.fired()
            assert [type(outcome) for outcome in outcomes].count(OutcomeUnknownError) >= 1
            for key, outcome in zip(ids, outcomes, strict=True):
                version = (await store.get_by_id(NAME, key)).metadata.version
                assert version == 1 or (version == 0 and isinstance(outcome, StoreUnavailableError))

    asyncio.run(run())


def test_a_group_cut_off_before_anything_was_written(url, table):
    async def run():
        async with through_a_proxy(url, table) as (proxy, store):
            for number in range(4):
                await store.insert(NAME, f"order-{number}", state(f"id-{number}"))
            proxy.cut_after_request(b"SKIP LOCKED")
            outcomes = await asyncio.gather(
                *(store.update(NAME, state(f"id-{number}", 1), 0) for number in range(4)), return_exceptions=True
            )
            await proxy.fired()
            # The first one was alone, the others are the group behind it.
            assert [type(outcome) for outcome in outcomes] == [type(None), *[StoreUnavailableError] * 3]
            await asyncio.gather(*(store.update(NAME, state(f"id-{number}", 1), 0) for number in range(1, 4)))

    asyncio.run(run())


def test_reads_are_unavailable_and_lost_connections_replaced(url, table):
    async def run():
        async with through_a_proxy(url, table) as (proxy, store):
            await store.insert(NAME, "order-1", state("a"))
            proxy.cut_after_request(b"SELECT")
            with pytest.raises(StoreUnavailableError) as caught:
                await store.get_by_id(NAME, "a")
            assert type(caught.value) is StoreUnavailableError
            assert await store.get_by_id(NAME, "a") is not None
            proxy.cut()
            await asyncio.sleep(0.05)
            assert await store.get_by_id(NAME, "a") is not None
            proxy.cut()
            proxy.refuse()
            await asyncio.sleep(0.05)
            with pytest.raises(StoreUnavailableError):
                await store.get_by_id(NAME, "a")
            proxy.accept()
            assert await store.get_by_id(NAME, "a") is not None

    asyncio.run(run())


def test_a_network_that_drops_everything(url, table):
    async def run():
        async with through_a_proxy(url, table, command_timeout=0.3, connect_timeout=0.3) as (proxy, store):
            await store.insert(NAME, "order-1", state("a"))
            # Two connections that are there already.
            await asyncio.gather(store.get_by_id(NAME, "a"), store.get_by_correlation_id(NAME, "order-1"))
            proxy.hold()
            outcomes = await asyncio.gather(
                store.get_by_id(NAME, "a"), store.update(NAME, state("a", 1), 0), return_exceptions=True
            )
            assert [type(outcome) for outcome in outcomes] == [StoreUnavailableError, OutcomeUnknownError]
            proxy.cut()
            proxy.release()
            assert await store.get_by_id(NAME, "a") is not None

    asyncio.run(run())


def test_a_lost_connection_ends_a_bound_transaction(url, table):
    async def run():
        async with through_a_proxy(url, table) as (proxy, store):
            session = await store._engine._pool.acquire()
            connection = session.connection
            await connection.begin()
            bound = store.bind(connection)
            await bound.insert(NAME, "order-1", state("a"))
            proxy.cut_after_request(b"INSERT")
            with pytest.raises(StoreUnavailableError) as caught:
                await bound.insert(NAME, "order-2", state("b"))
            assert type(caught.value) is StoreUnavailableError  # nothing is committed without the caller
            with pytest.raises(StoreUnavailableError):
                await bound.insert(NAME, "order-3", state("c"))
            await store._engine._pool.release(session)
            assert await store.get_by_id(NAME, "a") is None

    asyncio.run(run())


@pytest.fixture
def server():
    try:
        with private_server() as started:
            yield started
    except UnavailableError as error:
        skip_unless_required("mysql", str(error))


def test_a_server_killed_under_load(server, tmp_path):
    opener = functools.partial(
        MySqlSagaStore, server.url, table="load", command_timeout=10.0, connect_timeout=5.0, acquire_timeout=10.0
    )
    asyncio.run(create_schema(server.url, table="load"))
    with Load(opener, tmp_path, workers=4) as load:
        load.wait_for(300)
        for _ in range(2):
            server.kill()
            time.sleep(0.3)  # the load meets a server that is not there
            server.start()
            load.wait_for(300)
        load.stop()

        async def judge():
            async with opener() as store:
                return await verify(load, store, cuts=2)

        verdict = asyncio.run(judge())
    assert verdict.acknowledged >= 900
    assert verdict.sagas == 4 * 8 * 2 + 2

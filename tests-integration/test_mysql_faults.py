"""Connections cut at every moment, and servers killed under load: nothing acknowledged is lost, nobody hangs."""

import asyncio
import functools
import time
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import aiomysql
import pytest

from faults.load import Load, verify
from faults.proxy import Proxy
from providers import UnavailableError
from providers.mysql import connection_options, execute, private_server
from providers.skipping import skip_unless_required
from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
    OutcomeUnknownError,
    SagaFilter,
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


def test_a_write_whose_answer_was_lost(url, table):
    async def run():
        async with through_a_proxy(url, table) as (proxy, store):
            proxy.cut_after_request(b"INSERT")
            with pytest.raises(OutcomeUnknownError):
                await store.insert(NAME, "order-1", state("a"))
            await proxy.fired()
            with pytest.raises(DuplicateSagaError):
                await store.insert(NAME, "order-1", state("a"))
            proxy.cut_after_request(b"UPDATE")
            with pytest.raises(OutcomeUnknownError):
                await store.update(NAME, state("a", 1), 0)
            await proxy.fired()
            assert (await store.get_by_id(NAME, "a")).metadata.version == 1

    asyncio.run(run())


CUTS = [
    # what is written, only in the request that is cut, whether that one writes
    pytest.param("insert", b"behind-", True, id="inserts"),
    pytest.param("update", b"SKIP LOCKED", False, id="updates, first request"),
    pytest.param("update", b"ON DUPLICATE KEY UPDATE", True, id="updates, second request"),
]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(("operation", "matching", "writes"), CUTS)
def test_a_group_that_is_cut_off(url, table, operation, matching, writes, moment):
    """The first call leaves alone and is acknowledged; what the others are told is what is stored."""
    ids = ["first", *(f"behind-{number}" for number in range(5))]

    async def run():
        async with through_a_proxy(url, table) as (proxy, store):

            def write(saga_id):
                if operation == "insert":
                    return store.insert(NAME, f"order-{saga_id}", state(saga_id))
                return store.update(NAME, state(saga_id, 1), 0)

            if operation == "update":
                for saga_id in ids:
                    await store.insert(NAME, f"order-{saga_id}", state(saga_id))
            (proxy.cut_before_request if moment == "before" else proxy.cut_after_request)(matching)
            outcomes = await asyncio.gather(*map(write, ids), return_exceptions=True)
            await proxy.fired()

            told = OutcomeUnknownError if writes else StoreUnavailableError
            assert [type(outcome) for outcome in outcomes] == [type(None), *[told] * 5]
            found = [await store.get_by_id(NAME, saga_id) for saga_id in ids]
            written = [saga is not None and (operation == "insert" or saga.metadata.version == 1) for saga in found]
            arrived = writes and moment == "after"
            assert written == [True, *[arrived] * 5]
            again = await asyncio.gather(*map(write, ids[1:]), return_exceptions=True)
            taken = DuplicateSagaError if operation == "insert" else ConcurrencyError
            assert [type(outcome) for outcome in again] == [taken if arrived else type(None)] * 5

    asyncio.run(run())


async def turns_of(proxy, *calls):
    """How many round trips calls take that are made at once, each of which must succeed."""
    before = proxy.turns
    await asyncio.gather(*calls)
    return proxy.turns - before


@asynccontextmanager
async def with_a_given_pool(url, table, **options):
    parts = urlsplit(url)
    async with Proxy(parts.hostname, parts.port or 3306) as proxy:
        address = {**connection_options(url), "host": proxy.host, "port": proxy.port}
        async with (
            aiomysql.create_pool(**address, minsize=1, maxsize=2, **options) as pool,
            MySqlSagaStore(pool=pool, table=table, state_types={NAME: SagaState}) as store,
        ):
            await store.create_schema()
            yield proxy, store


@pytest.mark.parametrize(
    ("opened", "turns"),
    [
        pytest.param(through_a_proxy, 1, id="own pool"),
        pytest.param(functools.partial(with_a_given_pool, autocommit=True), 1, id="given pool"),
        pytest.param(functools.partial(with_a_given_pool, autocommit=False), 3, id="given pool without autocommit"),
    ],
)
def test_round_trips_of_single_calls(url, table, opened, turns):
    async def run():
        async with opened(url, table) as (proxy, store):
            calls = {
                "insert": lambda: store.insert(NAME, "order-1", state("a")),
                "get_by_id": lambda: store.get_by_id(NAME, "a"),
                "get_by_correlation_id": lambda: store.get_by_correlation_id(NAME, "order-1"),
                "update": lambda: store.update(NAME, state("a", 1), 0),
                "find": lambda: store.find(SagaFilter(saga_name=NAME)),
                "count": lambda: store.count(SagaFilter(saga_name=NAME)),
                "ping": store.ping,
                "conditional delete": lambda: store.delete(NAME, "a", 1),
                "delete": lambda: store.delete(NAME, "a"),
            }
            taken = {name: await turns_of(proxy, call()) for name, call in calls.items()}
            assert taken == dict.fromkeys(calls, turns)

    asyncio.run(run())


def test_round_trips_of_groups(url, table):
    """Of five calls at once the first one leaves alone, in one, and the others as a group."""
    ids = [f"id-{number}" for number in range(5)]

    async def run():
        async with through_a_proxy(url, table) as (proxy, store):
            # Two connections, which connecting shall not count.
            await asyncio.gather(store.get_by_id(NAME, "a"), store.get_by_correlation_id(NAME, "a"))
            inserts = [store.insert(NAME, f"order-{key}", state(key)) for key in ids]
            assert await turns_of(proxy, *inserts) == 1 + 1
            assert await turns_of(proxy, *(store.get_by_id(NAME, key) for key in ids)) == 1 + 1
            assert await turns_of(proxy, *(store.get_by_correlation_id(NAME, f"order-{key}") for key in ids)) == 1 + 1
            assert await turns_of(proxy, *(store.update(NAME, state(key, 1), 0) for key in ids)) == 1 + 2

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

"""Connections cut at every moment, servers killed, failed over and moved under load: nothing acknowledged is lost."""

import asyncio
import functools
import time
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from faults.job import SAGA_NAME
from faults.load import Load, verify
from faults.proxy import Proxy
from providers import UnavailableError
from providers.redis import DURABLE, cluster, connected, private_redis, sentinel
from providers.skipping import skip_unless_required
from redis_helpers import NAME, following, state, store_on
from saga_bus.store import DuplicateSagaError, OutcomeUnknownError, SagaFilter, SagaState, StoreUnavailableError
from saga_bus.store_redis import RedisSagaStore, create_schema


@pytest.fixture
def url(databases):
    return databases.url("redis")


@pytest.fixture
def prefix():
    return f"faults_{uuid4().hex[:12]}"


@asynccontextmanager
async def through_a_proxy(url, prefix, **options):
    parts = urlsplit(url)
    async with Proxy(parts.hostname, parts.port or 6379) as proxy:
        proxied = f"redis://{proxy.host}:{proxy.port}/0"
        async with store_on(proxied, prefix, **options) as store:
            await store.create_schema()
            await store.insert(NAME, "first", state("first"))  # the scripts are known from now on
            await store.get_by_correlation_id(NAME, "first")
            yield proxy, store


def test_a_write_that_never_arrived(url, prefix):
    async def run():
        async with through_a_proxy(url, prefix) as (proxy, store):
            proxy.cut_before_request(b"EVALSHA")
            with pytest.raises(StoreUnavailableError):
                await store.insert(NAME, "order-1", state("a"))
            await proxy.fired()
            assert await store.get_by_id(NAME, "a") is None
            await store.insert(NAME, "order-1", state("a"))

    asyncio.run(run())


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_write_whose_answer_was_lost(url, prefix, grouped, moment):
    async def run():
        async with through_a_proxy(url, prefix) as (proxy, store):
            cut = proxy.cut_after_request if moment == "after" else proxy.cut_before_request
            ids = [f"id-{number}" for number in range(5 if grouped else 1)]
            cut(b"EVALSHA")
            outcomes = await asyncio.gather(
                *(store.insert(NAME, f"order-{key}", state(key)) for key in ids), return_exceptions=True
            )
            await proxy.fired()
            assert OutcomeUnknownError in {type(outcome) for outcome in outcomes}
            for key, outcome in zip(ids, outcomes, strict=True):
                found = await store.get_by_correlation_id(NAME, f"order-{key}")
                if found is None:
                    assert isinstance(outcome, StoreUnavailableError)
                    await store.insert(NAME, f"order-{key}", state(key))
                else:
                    # One's own insert is known by its id, and so is no false duplicate.
                    assert found.metadata.saga_id == key
                    with pytest.raises(DuplicateSagaError) as caught:
                        await store.insert(NAME, f"order-{key}", state(key))
                    assert caught.value.conflict == "saga_id"
                if type(outcome) is OutcomeUnknownError:
                    assert (found is not None) == (moment == "after")
            cut(b"EVALSHA")
            outcomes = await asyncio.gather(
                *(store.update(NAME, state(key, 1), 0) for key in ids), return_exceptions=True
            )
            await proxy.fired()
            assert OutcomeUnknownError in {type(outcome) for outcome in outcomes}
            for key, outcome in zip(ids, outcomes, strict=True):
                version = (await store.get_by_id(NAME, key)).metadata.version
                applied = outcome is None or (type(outcome) is OutcomeUnknownError and moment == "after")
                assert version == (1 if applied else 0)

    asyncio.run(run())


def test_a_given_client_that_sends_again_by_itself_makes_no_false_conflict(url, prefix):
    """redis-py retries a command whose connection broke; a write that was applied would conflict with itself."""

    async def run():
        parts = urlsplit(url)
        async with Proxy(parts.hostname, parts.port or 6379) as proxy:
            client = Redis(host=proxy.host, port=proxy.port)  # retries three times by default, in current versions
            store = RedisSagaStore(client=client, prefix=prefix, state_types={NAME: SagaState})
            await store.create_schema()
            await store.insert(NAME, "first", state("first"))
            proxy.cut_after_request(b"EVALSHA")
            with pytest.raises(OutcomeUnknownError):
                await store.insert(NAME, "order-1", state("a"))
            proxy.cut_after_request(b"EVALSHA")
            with pytest.raises(OutcomeUnknownError):
                await store.update(NAME, state("a", 1), 0)
            assert (await store.get_by_id(NAME, "a")).metadata.version == 1
            await store.close()
            await client.aclose()

    asyncio.run(run())


def test_reads_are_unavailable_and_lost_connections_replaced(url, prefix):
    async def run():
        async with through_a_proxy(url, prefix) as (proxy, store):
            for read in (
                lambda: store.get_by_id(NAME, "first"),
                lambda: store.get_by_correlation_id(NAME, "first"),
                lambda: store.count(SagaFilter()),
            ):
                proxy.cut_after_request(b"{OrderSaga}")
                with pytest.raises(StoreUnavailableError) as caught:
                    await read()
                await proxy.fired()
                assert type(caught.value) is StoreUnavailableError
                assert await read()
            proxy.cut()
            await asyncio.sleep(0.05)
            assert await store.get_by_id(NAME, "first") is not None
            proxy.cut()
            proxy.refuse()
            await asyncio.sleep(0.05)
            with pytest.raises(StoreUnavailableError) as caught:
                await store.update(NAME, state("first", 1), 0)
            assert type(caught.value) is StoreUnavailableError  # nothing was sent
            proxy.accept()
            assert (await store.get_by_id(NAME, "first")).metadata.version == 0

    asyncio.run(run())


def test_a_network_that_drops_everything(url, prefix):
    async def run():
        async with through_a_proxy(url, prefix, command_timeout=0.3, connect_timeout=0.3) as (proxy, store):
            await asyncio.gather(*(store.get_by_id(NAME, "first") for _ in range(3)))
            proxy.hold()
            outcomes = await asyncio.gather(
                store.get_by_id(NAME, "first"), store.update(NAME, state("first", 1), 0), return_exceptions=True
            )
            assert isinstance(outcomes[0], StoreUnavailableError)
            assert isinstance(outcomes[1], StoreUnavailableError)
            proxy.cut()
            proxy.release()
            saga = await store.get_by_id(NAME, "first")
            await store.update(NAME, following(saga), saga.metadata.version)

    asyncio.run(run())


def opener_of(url, **options):
    return functools.partial(RedisSagaStore, url, prefix="load", command_timeout=10.0, connect_timeout=3.0, **options)


async def judge(load, opener, cuts):
    async with opener() as store:
        verdict = await verify(load, store, cuts=cuts)
        # The index says what the sagas say, whatever happened.
        found, cursor = [], None
        while True:
            page = await store.find(SagaFilter(saga_name=SAGA_NAME, order="stalest"), limit=50, cursor=cursor)
            found += [record.correlation_id for record in page.items]
            cursor = page.cursor
            if cursor is None:
                break
        assert len(found) == len(set(found)) == verdict.sagas == await store.count(SagaFilter())
        return verdict


def test_a_server_killed_under_load(tmp_path):
    try:
        with private_redis(DURABLE) as server:
            opener = opener_of(server.url)
            asyncio.run(create_schema(server.url, prefix="load"))
            with Load(opener, tmp_path, workers=3) as load:
                load.wait_for(300)
                for _ in range(2):
                    server.kill()
                    time.sleep(0.2)  # the load meets a server that is not there
                    server.start()
                    load.wait_for(200)
                server.ask("SCRIPT", "FLUSH")
                load.wait_for(200)
                load.stop()
                verdict = asyncio.run(judge(load, opener, cuts=2))
    except UnavailableError as error:
        skip_unless_required("redis", str(error))
    assert verdict.acknowledged >= 900
    assert verdict.sagas == 3 * 8 * 2 + 2


def test_a_failover_under_load(tmp_path):
    """With ``wait_replicas`` an acknowledged write is on the replica that becomes the primary."""
    try:
        with sentinel() as servers:
            opener = opener_of(servers.url, wait_replicas=1, wait_timeout=0.5)
            asyncio.run(create_schema(servers.url, prefix="load"))
            with Load(opener, tmp_path, workers=2) as load:
                load.wait_for(200)
                servers.primary.kill()
                servers.wait_until_failed_over()
                servers.rejoin()
                load.wait_for(200)
                load.stop()
                verdict = asyncio.run(judge(load, opener, cuts=10_000))  # no replica: no write is certain meanwhile
    except UnavailableError as error:
        skip_unless_required("redis", str(error))
    assert verdict.acknowledged >= 400


def test_a_slot_that_moves_and_a_node_that_dies_under_load(tmp_path):
    try:
        with cluster(DURABLE) as nodes:
            opener = opener_of(nodes.url)
            asyncio.run(create_schema(nodes.url, prefix="load"))
            slot = nodes.slot_of(SAGA_NAME)
            with Load(opener, tmp_path, workers=2) as load:
                load.wait_for(200)
                for _ in range(2):
                    target = (nodes.owner_of(slot) + 1) % 3
                    source = nodes.begin_move(slot, target)
                    while nodes.move_keys(slot, source, target, most=3):
                        time.sleep(0.01)
                    nodes.end_move(slot, target)
                    load.wait_for(100)
                owner = nodes.nodes[nodes.owner_of(slot)]
                owner.kill()
                time.sleep(0.2)
                owner.start()
                nodes.wait_until_whole()
                load.wait_for(100)
                load.stop()
                verdict = asyncio.run(judge(load, opener, cuts=1))
    except UnavailableError as error:
        skip_unless_required("redis", str(error))
    assert verdict.acknowledged >= 500
    assert verdict.sagas == 2 * 8 * 2 + 2


def test_a_killed_server_keeps_what_was_acknowledged_even_if_nobody_writes_again():
    try:
        with private_redis(DURABLE) as server:

            async def write():
                async with store_on(server.url, "sagas") as store:
                    await store.create_schema()
                    await asyncio.gather(*(store.insert(NAME, f"c{n}", state(f"i{n}")) for n in range(200)))

            asyncio.run(write())
            server.kill()
            server.start()

            async def read():
                async with store_on(server.url, "sagas") as store:
                    return await store.count(SagaFilter())

            assert asyncio.run(read()) == 200
            with connected(server.url) as client:
                assert client.dbsize() == 402
    except UnavailableError as error:
        skip_unless_required("redis", str(error))

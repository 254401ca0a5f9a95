"""Connections cut at every moment, and a server killed under load: nothing acknowledged is lost, nobody hangs."""

import asyncio
import functools
import time
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import boto3
import pytest
from botocore.config import Config

from faults.load import Load, verify
from faults.proxy import Proxy
from providers import UnavailableError
from providers.dynamodb import connected, endpoint_of, private_dynamodb, url_of
from providers.skipping import skip_unless_required
from saga_bus.store import (
    DuplicateSagaError,
    OutcomeUnknownError,
    SagaMetadata,
    SagaState,
    StoreUnavailableError,
)
from saga_bus.store_dynamodb import DynamoDBSagaStore, create_schema

NAME = "FaultSaga"


@pytest.fixture
def url(databases):
    found = url_of(endpoint_of(databases.url("dynamodb")), f"faults_{uuid4().hex[:12]}")
    yield found
    asyncio.run(drop(found))


async def drop(url):
    async with DynamoDBSagaStore(url) as store:
        await store.drop_schema()


@asynccontextmanager
async def through_a_proxy(url, **options):
    async with (
        through_a_proxy_of_its_own(url) as (proxy, proxied),
        DynamoDBSagaStore(proxied, state_types={NAME: SagaState}, **options) as store,
    ):
        yield proxy, store


@asynccontextmanager
async def through_a_proxy_of_its_own(url):
    await create_schema(url)
    endpoint = urlsplit(endpoint_of(url))
    async with Proxy(endpoint.hostname, endpoint.port) as proxy:
        yield proxy, url_of(f"http://{proxy.host}:{proxy.port}", urlsplit(url).path[1:])


def state(saga_id, version=0):
    metadata = SagaMetadata.fresh(saga_id)
    for _ in range(version):
        metadata = metadata.next()
    return SagaState(metadata=metadata)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_write_is_done_once_whatever_is_cut(url, moment):
    async def run():
        async with through_a_proxy(url) as (proxy, store):
            cut = proxy.cut_before_request if moment == "before" else proxy.cut_after_request
            cut(b"TransactWriteItems")
            await store.insert(NAME, "order-1", state("a"))  # made again, and no false duplicate
            await proxy.fired()
            with pytest.raises(DuplicateSagaError):
                await store.insert(NAME, "order-1", state("a"))
            cut(b"UpdateItem")
            await store.update(NAME, state("a", 1), 0)  # made again, and no false conflict
            await proxy.fired()
            assert (await store.get_by_id(NAME, "a")).metadata.version == 1
            cut(b"TransactWriteItems")
            await store.delete(NAME, "a", expected_version=1)
            await proxy.fired()
            assert await store.get_by_correlation_id(NAME, "order-1") is None
            await store.insert(NAME, "order-1", state("a"))

    asyncio.run(run())


def test_without_a_second_try_an_outcome_is_unknown(url):
    async def run():
        async with through_a_proxy(url, attempts=1) as (proxy, store):
            await store.insert(NAME, "order-0", state("first"))
            proxy.cut_after_request(b"TransactWriteItems")
            with pytest.raises(OutcomeUnknownError):
                await store.insert(NAME, "order-1", state("a"))
            assert await store.get_by_correlation_id(NAME, "order-1") is not None
            proxy.cut_after_request(b"UpdateItem")
            with pytest.raises(OutcomeUnknownError):
                await store.update(NAME, state("a", 1), 0)
            assert (await store.get_by_id(NAME, "a")).metadata.version == 1
            proxy.cut_after_request(b"GetItem")
            with pytest.raises(StoreUnavailableError) as caught:
                await store.get_by_id(NAME, "a")
            assert type(caught.value) is StoreUnavailableError

    asyncio.run(run())


def test_reads_are_made_again_alone_and_in_groups(url):
    async def run():
        async with through_a_proxy(url) as (proxy, store):
            for number in range(6):
                await store.insert(NAME, f"order-{number}", state(f"id-{number}"))
            proxy.cut_after_request(b"GetItem")
            assert await store.get_by_id(NAME, "id-0") is not None
            await proxy.fired()
            proxy.cut_after_request(b"BatchGetItem")
            found = await asyncio.gather(*(store.get_by_correlation_id(NAME, f"order-{n}") for n in range(6)))
            await proxy.fired()
            assert [one.metadata.saga_id for one in found] == [f"id-{number}" for number in range(6)]
            proxy.cut()
            assert await store.get_by_id(NAME, "id-1") is not None

    asyncio.run(run())


def test_nobody_there_means_that_nothing_was_written(url):
    async def run():
        async with through_a_proxy_of_its_own(url) as (_, proxied):
            pass  # and now its port is free
        async with DynamoDBSagaStore(proxied, attempts=2) as store:
            for call in (store.get_by_id(NAME, "a"), store.insert(NAME, "order-1", state("a"))):
                with pytest.raises(StoreUnavailableError) as caught:
                    await call
                assert type(caught.value) is StoreUnavailableError

    asyncio.run(run())


def test_a_network_that_drops_everything(url):
    async def run():
        async with through_a_proxy(url, attempts=2, read_timeout=0.3, connect_timeout=0.3) as (proxy, store):
            await store.insert(NAME, "order-1", state("a"))
            proxy.hold()
            outcomes = await asyncio.gather(
                store.get_by_id(NAME, "a"), store.update(NAME, state("a", 1), 0), return_exceptions=True
            )
            assert [type(outcome) for outcome in outcomes] == [StoreUnavailableError, OutcomeUnknownError]
            proxy.cut()
            proxy.release()
            assert await store.get_by_id(NAME, "a") is not None

    asyncio.run(run())


def test_the_retries_of_a_given_client_make_no_false_conflict(url):
    async def run():
        async with through_a_proxy_of_its_own(url) as (proxy, proxied):
            client = boto3.client(
                "dynamodb",
                region_name="eu-west-1",
                endpoint_url=endpoint_of(proxied),
                aws_access_key_id="local",
                aws_secret_access_key="local",
                config=Config(retries={"total_max_attempts": 3}),
            )
            table = urlsplit(proxied).path[1:]
            async with DynamoDBSagaStore(client=client, table=table, attempts=1) as store:
                await store.insert(NAME, "order-0", state("first"))
                proxy.cut_after_request(b"TransactWriteItems")
                await store.insert(NAME, "order-1", state("a"))
                await proxy.fired()
                proxy.cut_after_request(b"UpdateItem")
                await store.update(NAME, state("a", 1), 0)
                await proxy.fired()
                assert (await store.get_by_id(NAME, "a")).metadata.version == 1
                proxy.refuse()
                proxy.cut()
                with pytest.raises(OutcomeUnknownError):  # the client does not tell what became of its tries
                    await store.update(NAME, state("a", 2), 1)
            client.close()

    asyncio.run(run())


@pytest.fixture
def server():
    try:
        with private_dynamodb(on_disk=True) as started:
            yield started
    except UnavailableError as error:
        skip_unless_required("dynamodb", str(error))


def test_a_server_killed_under_load(server, tmp_path):
    opener = functools.partial(DynamoDBSagaStore, server.url, attempts=3)
    asyncio.run(create_schema(server.url))
    with Load(opener, tmp_path, workers=2, callers=4) as load:
        load.wait_for(80)
        for _ in range(2):
            server.kill()
            time.sleep(0.3)  # the load meets a server that is not there
            server.start()
            load.wait_for(80)
        load.kill(0)
        load.start(0)
        load.wait_for(40)
        load.stop()

        async def judge():
            async with opener() as store:
                return await verify(load, store, cuts=3)

        verdict = asyncio.run(judge())
        with connected(server.url) as client:
            items = [
                item["pk"]["S"][0]
                for page in client.get_paginator("scan").paginate(TableName="saga_bus_tests", ConsistentRead=True)
                for item in page["Items"]
            ]
    assert verdict.acknowledged >= 280
    assert items.count("S") == items.count("C") == verdict.sagas  # no half-written saga

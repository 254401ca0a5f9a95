"""Connections cut at every moment, and a server killed under load: nothing acknowledged is lost, nobody hangs."""

import asyncio
import functools
import os
import shutil
import subprocess
import time
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from faults.load import Load, verify
from faults.proxy import Proxy
from providers.sqlserver import connected
from saga_bus.store import OutcomeUnknownError, SagaMetadata, SagaState, StoreUnavailableError
from saga_bus.store_sqlserver import SqlServerSagaStore, create_schema, drop_schema
from saga_bus.store_sqlserver._odbc import load as load_odbc
from sqlserver_helpers import NAME, NoteState, changeable, changed, opened, state

INSERT, UPDATE, SELECT, POISON = (
    word.encode("utf-16-le") for word in ("INSERT INTO", "UPDATE [", "SELECT state", "poison")
)
CALLERS = 20


@pytest.fixture
def url(databases):
    return changeable(databases.url("sqlserver"))


@pytest.fixture
def table(url):
    name = f"t_{uuid4().hex[:12]}"
    yield name
    asyncio.run(drop_schema(url, table=name))


def behind(proxy, url, **options):
    """The URL of the same database behind a proxy."""
    credentials = urlsplit(url).netloc.rpartition("@")[0]
    return changed(url, netloc=f"{credentials}@{proxy.host}:{proxy.port}", **options)


def in_front_of(url):
    parts = urlsplit(url)
    return Proxy(parts.hostname, parts.port or 1433)


@asynccontextmanager
async def through_a_proxy(url, table, **options):
    # Requests are looked at, so they must not be encrypted.
    async with (
        in_front_of(url) as proxy,
        opened(behind(proxy, url, encrypt="no"), table, **options) as store,
    ):
        yield proxy, store


def test_a_write_that_never_arrived(url, table):
    async def run():
        async with through_a_proxy(url, table) as (proxy, store):
            proxy.cut_before_request(INSERT)
            with pytest.raises(StoreUnavailableError):
                await store.insert(NAME, "order-a", state("a"))
            await proxy.fired()
            assert await store.get_by_id(NAME, "a") is None
            await store.insert(NAME, "order-a", state("a"))

    asyncio.run(run())


def test_a_write_whose_answer_was_lost(url, table):
    async def run():
        async with through_a_proxy(url, table) as (proxy, store):
            proxy.cut_after_request(INSERT)
            with pytest.raises(OutcomeUnknownError):
                await store.insert(NAME, "order-a", state("a"))
            await proxy.fired()
            found = await store.get_by_id(NAME, "a")
            following = SagaState(metadata=found.metadata.next())  # created when it was, or it takes two requests
            proxy.cut_after_request(UPDATE)
            with pytest.raises(OutcomeUnknownError):
                await store.update(NAME, following, 0)
            await proxy.fired()
            assert await store.get_by_id(NAME, "a") == following

    asyncio.run(run())


def test_a_read_whose_answer_was_lost_is_done_again(url, table):
    async def run():
        async with through_a_proxy(url, table) as (proxy, store):
            await store.insert(NAME, "order-a", state("a"))
            proxy.cut_after_request(SELECT)
            assert await store.get_by_id(NAME, "a") is not None
            await proxy.fired()

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["insert", "update"])
@pytest.mark.parametrize("arrives", [False, True])
def test_a_cut_group_leaves_each_of_its_writes_unknown_and_is_all_or_nothing(url, table, kind, arrives):
    async def run():
        async with through_a_proxy(url, table, state_type=NoteState, pool_size=4) as (proxy, store):
            states = [NoteState(metadata=SagaMetadata.fresh(f"id-{number}")) for number in range(CALLERS)]
            if kind == "update":
                await asyncio.gather(*(store.insert(NAME, f"order-{n}", each) for n, each in enumerate(states)))
                # Created when they were: only such updates go in groups.
                states = [NoteState(metadata=each.metadata.next()) for each in states]
            for each in states[1:]:  # the group behind the first call, which goes alone
                each.note = "poison"
            (proxy.cut_after_request if arrives else proxy.cut_before_request)(POISON)
            outcomes = await asyncio.gather(
                *(
                    store.insert(NAME, f"order-{n}", each) if kind == "insert" else store.update(NAME, each, 0)
                    for n, each in enumerate(states)
                ),
                return_exceptions=True,
            )
            await proxy.fired()
            assert outcomes[0] is None
            cut = [n for n, outcome in enumerate(outcomes) if type(outcome) is OutcomeUnknownError]
            assert len(cut) >= 2
            assert [n for n, outcome in enumerate(outcomes) if outcome is not None] == cut
            for n, each in enumerate(states):
                found = await store.get_by_correlation_id(NAME, f"order-{n}")
                assert (found == each) == (arrives or n not in cut)

    asyncio.run(run())


def test_connections_cut_under_load_lose_nothing(url, table, tmp_path):
    """Four processes, all their connections cut three times: no acknowledged write is lost, and nobody hangs."""

    async def run():
        async with in_front_of(url) as proxy, opened(url, table) as store:
            opener = functools.partial(SqlServerSagaStore, behind(proxy, url), table=table, pool_size=4)
            with Load(opener, tmp_path, workers=4) as load:
                for _ in range(3):
                    await asyncio.to_thread(load.wait_for, 200)
                    proxy.cut()
                await asyncio.to_thread(load.wait_for, 200)
                await asyncio.to_thread(load.stop)
            await verify(load, store, cuts=3)

    asyncio.run(run())


@pytest.fixture
def container():
    """The name of the server's container, whose port is published where it was before when it is started again."""
    name = os.environ.get("SAGA_TEST_SQLSERVER_CONTAINER")
    if not name:
        pytest.skip("SAGA_TEST_SQLSERVER_CONTAINER names no container that could be killed")
    if shutil.which("docker") is None:
        pytest.fail("SAGA_TEST_SQLSERVER_CONTAINER names a container, and there is no docker")
    return name


def test_a_container_that_is_named_needs_docker(request, monkeypatch):
    monkeypatch.setenv("SAGA_TEST_SQLSERVER_CONTAINER", "server")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(pytest.fail.Exception, match="there is no docker"):
        request.getfixturevalue("container")


def docker(*arguments):
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def wait_until_open(url, table):
    """Wait until the server has recovered the database: until then it refuses logins to it."""
    deadline = time.monotonic() + 120
    while True:
        try:
            with connected(url) as connection:
                connection.execute(f"SELECT COUNT(*) FROM {table}").fetchval()
        except load_odbc().Error:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def test_a_server_killed_under_load(url, table, tmp_path, container):
    """Four processes, and their server killed twice: it recovers every acknowledged write, and nobody hangs."""

    async def run():
        async with in_front_of(url) as proxy:
            opener = functools.partial(
                SqlServerSagaStore, behind(proxy, url), table=table, pool_size=4, command_timeout=15.0
            )
            with Load(opener, tmp_path, workers=4, patience=60.0) as load:
                for _ in range(2):
                    await asyncio.to_thread(load.wait_for, 200, 120.0)
                    await asyncio.to_thread(docker, "kill", "--signal", "KILL", container)
                    await asyncio.sleep(0.5)  # the load meets a server that is not there
                    proxy.refuse()
                    proxy.cut()
                    await asyncio.to_thread(docker, "start", container)
                    await asyncio.to_thread(wait_until_open, url, table)
                    proxy.accept()
                await asyncio.to_thread(load.wait_for, 200, 120.0)
                await asyncio.to_thread(load.stop)
            async with SqlServerSagaStore(url, table=table) as store:
                verdict = await verify(load, store, cuts=2)
            assert verdict.acknowledged >= 600
            assert verdict.sagas == 4 * 8 * 2 + 2

    asyncio.run(create_schema(url, table=table))
    asyncio.run(run())

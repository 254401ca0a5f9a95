"""The fault equipment itself: the proxy cuts when it says, and the proof of a load sees what is wrong."""

import asyncio
import functools
from contextlib import asynccontextmanager

import pytest

from faults.load import Load, LoadError, verify
from faults.proxy import Proxy
from saga_bus.store_inmemory import InMemorySagaStore
from saga_bus.store_sqlite import SqliteSagaStore


@asynccontextmanager
async def echo_through_a_proxy():
    """An upper-case echo behind a proxy; yields the proxy and the list of what the server has seen."""
    seen = []

    async def answer(reader, writer):
        while chunk := await reader.read(100):
            seen.append(chunk)
            writer.write(chunk.upper())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, Proxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        yield proxy, seen


@asynccontextmanager
async def connected(proxy):
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)

    async def ask(text):
        writer.write(text)
        return await asyncio.wait_for(reader.read(100), 10)

    try:
        yield ask
    finally:
        writer.transport.abort()


def test_the_proxy_forwards():
    async def run():
        async with echo_through_a_proxy() as (proxy, _), connected(proxy) as ask:
            assert await ask(b"one") == b"ONE"
            assert proxy.connections == 1

    asyncio.run(run())


def test_a_cut_before_the_request_keeps_it_from_the_server():
    async def run():
        async with echo_through_a_proxy() as (proxy, seen), connected(proxy) as ask:
            proxy.cut_before_request(b"poison")
            assert await ask(b"one") == b"ONE"
            with pytest.raises(ConnectionResetError):
                await ask(b"a poisoned one")
            await proxy.fired()
            assert seen == [b"one"]
        async with echo_through_a_proxy() as (proxy, _), connected(proxy) as ask:
            assert await ask(b"poison") == b"POISON"

    asyncio.run(run())


def test_a_cut_after_the_request_throws_the_answer_away():
    async def run():
        async with echo_through_a_proxy() as (proxy, seen):
            async with connected(proxy) as ask:
                proxy.cut_after_request()
                with pytest.raises(ConnectionResetError):
                    await ask(b"one")
                await proxy.fired()
            async with connected(proxy) as ask:
                assert await ask(b"two") == b"TWO"
            assert seen == [b"one", b"two"]

    asyncio.run(run())


def test_the_proxy_refuses_holds_and_cuts():
    async def run():
        async with echo_through_a_proxy() as (proxy, seen), connected(proxy) as ask:
            proxy.refuse()
            async with connected(proxy) as refused:
                with pytest.raises(ConnectionResetError):
                    await refused(b"x")
            proxy.accept()
            proxy.hold()
            asking = asyncio.ensure_future(ask(b"held"))
            await asyncio.sleep(0.05)
            assert not asking.done()
            assert seen == []
            proxy.release()
            assert await asking == b"HELD"
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                await ask(b"x")

    asyncio.run(run())


def opener(folder):
    return functools.partial(SqliteSagaStore, folder / "sagas.db")


def with_schema(folder):
    asyncio.run(opener(folder)().create_schema())
    return opener(folder)


def verdict(load, store, cuts=0):
    async def run():
        async with store:
            return await verify(load, store, cuts=cuts)

    return asyncio.run(run())


def test_a_load_with_a_killed_worker_is_proved(tmp_path):
    with Load(with_schema(tmp_path), tmp_path, workers=2, callers=2) as load:
        load.wait_for(40)
        load.kill(0)
        load.start(0)
        load.wait_for(40)
        load.stop()
        found = verdict(load, opener(tmp_path)(), cuts=1)
    assert found.acknowledged >= 80
    assert 2 * 2 + 2 <= found.sagas <= 2 * 2 * 2 + 2  # a worker that starts late has none of its own yet


def test_a_store_that_lost_everything_is_found_out(tmp_path):
    with Load(with_schema(tmp_path), tmp_path, workers=1, callers=1) as load:
        load.wait_for(5)
        load.stop()
        with pytest.raises(LoadError, match="is gone"):
            verdict(load, InMemorySagaStore())


def test_a_worker_that_fails_is_reported(tmp_path):
    with Load(opener(tmp_path), tmp_path, workers=1) as load, pytest.raises(LoadError, match="create_schema"):
        load.wait_for(1)

"""Pools: exhausted, cancelled, given, and handing over at the last moment."""

import asyncio

import aiomysql
import pytest

from providers.mysql import connection_options
from saga_bus.store import InvalidSagaError, StoreClosedError, StoreUnavailableError
from saga_bus.store_mysql import MySqlSagaStore, _pools
from saga_bus.store_mysql._pools import OwnPool


class FakeConnection:
    def __init__(self) -> None:
        self.closed = False

    async def ensure_closed(self) -> None:
        self.closed = True


class FakeSession:
    def __init__(self) -> None:
        self.connection = FakeConnection()

    def close(self) -> None:
        self.connection.closed = True


@pytest.fixture
def fake(monkeypatch):
    """A pool of two sessions that are none."""
    monkeypatch.setattr(_pools, "is_alive", lambda connection: not connection.closed)
    made = []

    async def connect():
        made.append(FakeSession())
        return made[-1]

    def make(size=2, timeout=5.0):
        return OwnPool(connect, size, timeout), made

    return make


def test_sessions_are_used_again(run, fake):
    async def test():
        pool, made = fake()
        one = await pool.acquire()
        two = await pool.acquire()
        await pool.release(one)
        await pool.release(two)
        assert await pool.acquire() is two  # the one used last
        assert await pool.acquire() is one
        assert len(made) == 2

    run(test())


def test_a_closed_session_is_replaced(run, fake):
    async def test():
        pool, made = fake(size=1)
        one = await pool.acquire()
        waiting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        one.close()
        await pool.release(one)
        two = await waiting
        await pool.release(two)
        two.close()  # while it is idle
        assert await pool.acquire() is made[2]

    run(test())


def test_an_exhausted_pool_is_unavailable_after_its_timeout(run, fake):
    async def test():
        pool, _ = fake(size=1, timeout=0.02)
        one = await pool.acquire()
        with pytest.raises(StoreUnavailableError, match=r"0\.02 s"):
            await pool.acquire()
        await pool.release(one)
        assert await pool.acquire() is one

    run(test())


@pytest.mark.parametrize("closed", [False, True])
def test_what_is_handed_to_a_cancelled_waiter_is_not_lost(run, fake, closed):
    async def test():
        pool, _ = fake(size=1, timeout=1)
        one = await pool.acquire()
        waiting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        if closed:
            one.close()
        await pool.release(one)  # it is the waiter's now
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await pool.acquire() is one) is not closed

    run(test())


def test_a_cancelled_waiter_leaves_the_queue(run, fake):
    async def test():
        pool, _ = fake(size=1, timeout=1)
        one = await pool.acquire()
        waiting = asyncio.create_task(pool.acquire())
        other = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await pool.release(one)
        assert await other is one

    run(test())


def test_a_connection_that_fails_gives_its_place_back(run, monkeypatch):
    async def test():
        tries = []

        async def connect():
            tries.append(None)
            raise StoreUnavailableError("no")

        pool = OwnPool(connect, 1, 0.1)
        for _ in range(3):
            with pytest.raises(StoreUnavailableError, match="no"):
                await pool.acquire()
        assert len(tries) == 3

    run(test())


def test_closing_waits_for_what_is_lent(run, fake):
    async def test():
        pool, _ = fake()
        one, two = await pool.acquire(), await pool.acquire()
        await pool.release(two)
        closing = asyncio.create_task(pool.close())
        await asyncio.sleep(0)
        assert not closing.done()
        with pytest.raises(StoreClosedError):
            await pool.acquire()
        await pool.release(one)
        await closing
        assert one.connection.closed
        assert two.connection.closed

    run(test())


def test_the_store_with_an_exhausted_pool(run, place):
    async def test():
        async with place.opened(pool_size=1, acquire_timeout=0.1) as store:
            session = await store._engine._pool.acquire()
            with pytest.raises(StoreUnavailableError, match="became free"):
                await store.get_by_id(place.name, "a")
            await store._engine._pool.release(session)
            assert await store.get_by_id(place.name, "a") is None

    run(test())


def test_a_cancelled_read_leaves_no_half_read_connection(run, place):
    async def test():
        async with place.opened(pool_size=1) as store:
            await place.insert(store, "a", "b")
            for _ in range(30):
                for waits in range(6):
                    task = asyncio.create_task(store.get_by_id(place.name, "a"))
                    for _ in range(waits):
                        await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                    assert (await store.get_by_id(place.name, "b")).metadata.saga_id == "b"

    run(test())


def test_a_given_pool_gets_its_connections_back_as_they_were(run, place):
    async def test():
        async with aiomysql.create_pool(**connection_options(place.url), minsize=0, maxsize=1) as pool:
            async with place.opened(url=None, pool=pool) as store:
                await place.insert(store, "a")
            async with pool.acquire() as connection:
                assert not connection.get_autocommit()
                await connection.query(f"DELETE FROM {place.table}")
                await connection.rollback()
            async with MySqlSagaStore(pool=pool, table=place.table, acquire_timeout=0.1) as store:
                assert await store.get_by_id(place.name, "a") is not None
                async with pool.acquire():
                    with pytest.raises(StoreUnavailableError, match="became free"):
                        await store.get_by_id(place.name, "a")
        with pytest.raises(InvalidSagaError, match="closing pool"):
            await MySqlSagaStore(pool=pool, table=place.table).get_by_id(place.name, "a")

    run(test())


def test_a_given_pool_must_speak_utf8(run, place):
    async def test():
        async with aiomysql.create_pool(**connection_options(place.url), minsize=0, charset="latin1") as pool:
            with pytest.raises(InvalidSagaError, match="utf8mb4"):
                await MySqlSagaStore(pool=pool, table=place.table).get_by_id(place.name, "a")
        async with place.connection(charset="latin1") as connection, place.opened() as store:
            with pytest.raises(InvalidSagaError, match="utf8mb4"):
                store.bind(connection)

    run(test())


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_killed_connection_of_a_given_pool_is_replaced(run, place, autocommit):
    async def test():
        options = {**connection_options(place.url), "autocommit": autocommit, "minsize": 0, "maxsize": 1}
        async with aiomysql.create_pool(**options) as pool, place.opened(url=None, pool=pool) as store:
            (state,) = await place.insert(store, "a")
            for write in (
                lambda: store.update(place.name, place.follow(state), 0),
                lambda: store.insert(place.name, "order-b", place.state("b")),
            ):
                (connection,) = pool._free
                place.execute(f"KILL {connection.thread_id()}")
                await asyncio.sleep(0.05)  # the news must arrive
                await write()
                assert pool._free[0] is not connection
                assert not pool._used
            found = await store.get_by_id(place.name, "a")
            assert found.metadata.version == 1

    run(test())

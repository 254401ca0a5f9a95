"""The threads and their connections, on SQLite's ODBC driver: the loop never waits, and nothing stays open."""

import asyncio
import gc
import threading
import time
import weakref
from contextlib import contextmanager

import pytest

from saga_bus.store import SagaStoreError, StoreClosedError, StoreUnavailableError
from saga_bus.store_sqlserver._driver import ConnectionPool
from saga_bus.store_sqlserver._odbc import load
from saga_bus.store_sqlserver._sessions import Session
from saga_bus.store_sqlserver._values import COUNT, Statement

pytestmark = pytest.mark.usefixtures("pyodbc")

ENDLESS = Statement("WITH RECURSIVE f(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM f) SELECT count(*) FROM f", ())
ADD = Statement("INSERT INTO numbers VALUES (?)", (COUNT,))
ALL = Statement("SELECT n FROM numbers ORDER BY n", ())


class Source:
    """Opens sessions on one SQLite file and remembers them."""

    def __init__(self, driver, path):
        self.text = f"Driver={driver};Database={path};Timeout=10000"
        self.sessions = []
        self.failure = None
        self.run("CREATE TABLE numbers (n INTEGER PRIMARY KEY)")

    def connect(self):
        return load().connect(self.text, autocommit=True)

    def run(self, sql):
        connection = self.connect()
        connection.execute(sql)
        connection.close()

    def open(self):
        if self.failure is not None:
            raise self.failure
        session = Session(self.connect())
        self.sessions.append(session)
        return session

    def numbers(self):
        connection = self.connect()
        try:
            return [n for (n,) in connection.execute("SELECT n FROM numbers ORDER BY n").fetchall()]
        finally:
            connection.close()


@pytest.fixture
def source(sqlite_driver, tmp_path):
    return Source(sqlite_driver, tmp_path / "numbers.db")


@contextmanager
def gate():
    """An event that is set in the end, whatever happens, so that no thread waits for ever."""
    event = threading.Event()
    try:
        yield event
    finally:
        event.set()


def using(source, act, *, size=2, acquire_timeout=10.0):
    async def use():
        pool = ConnectionPool(source.open, size=size, acquire_timeout=acquire_timeout, name="test-pool")
        try:
            return await act(pool)
        finally:
            await pool.close()

    return asyncio.run(use())


def pool_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("test-pool")]


def add(number):
    return lambda session: session.write(ADD, (number,))


async def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def test_work_is_done_in_threads_that_end_with_the_pool(source):
    async def act(pool):
        assert await pool.run(add(1)) == 1
        return await pool.run(lambda session: (session.read(ALL), threading.current_thread().name), repeatable=True)

    assert using(source, act) == ([(1,)], "test-pool-1")
    assert pool_threads() == []
    with pytest.raises(load().ProgrammingError):
        source.sessions[0].connection.execute("SELECT 1")


def test_a_lone_caller_needs_one_connection(source):
    async def act(pool):
        for number in range(20):
            await pool.run(add(number))

    using(source, act, size=8)
    assert len(source.sessions) == 1


def test_a_connection_is_used_by_one_thread_at_a_time(source):
    busy, overlaps, used = set(), [], {}

    def work(session):
        if session in busy:
            overlaps.append(session)
        busy.add(session)
        used.setdefault(session, set()).add(threading.get_ident())
        session.read(ALL)
        busy.discard(session)

    async def act(pool):
        await asyncio.gather(*(pool.run(work) for _ in range(300)))

    using(source, act, size=4)
    assert not overlaps
    assert 1 <= len(used) <= 4
    assert all(len(threads) == 1 for threads in used.values())


def test_the_loop_goes_on_while_a_statement_runs(source):
    async def act(pool):
        running = asyncio.ensure_future(pool.run(lambda session: session.read(ENDLESS)))
        await until(lambda: source.sessions and source.sessions[0]._running is not None)
        turns = 0
        for _ in range(50):
            await asyncio.sleep(0.001)
            turns += 1
        assert not running.done()
        await until(lambda: _cancelled(source, running))
        with pytest.raises(SagaStoreError):
            await running
        return turns

    assert using(source, act) == 50


def _cancelled(source, running):
    source.sessions[0].cancel()
    return running.done()


def test_an_exhausted_pool_gives_up_after_its_timeout(source):
    with gate() as open_gate:

        async def act(pool):
            holding = [asyncio.ensure_future(pool.run(lambda session: open_gate.wait(10))) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(StoreUnavailableError, match=r"none of the pool's 2 connections .* 0\.05 seconds"):
                await pool.run(add(7))
            open_gate.set()
            assert await asyncio.gather(*holding) == [True, True]
            await pool.run(add(8))

        using(source, act, acquire_timeout=0.05)
    assert source.numbers() == [8]  # what gave up was never sent


def test_what_may_wait_never_has_all_threads(source):
    with gate() as open_gate:

        async def act(pool):
            waits = lambda session: open_gate.wait(10)  # noqa: E731 - as for a row that is locked
            waiting = [asyncio.ensure_future(pool.run(waits, may_wait=True)) for _ in range(5)]
            await pool.run(add(1))  # a third thread is free for it
            assert not any(task.done() for task in waiting)
            waiting[3].cancel()  # one that was held back
            open_gate.set()
            assert await asyncio.gather(*waiting[:3], waiting[4]) == [True] * 4
            assert (pool._waiters, pool._unfinished, list(pool._held_back)) == (0, 0, [])

        using(source, act, size=3)
    assert len(source.sessions) <= 3
    assert source.numbers() == [1]


def test_what_may_wait_and_is_held_back_gives_up_after_the_timeout(source):
    with gate() as open_gate:

        async def act(pool):
            waiting = asyncio.ensure_future(pool.run(lambda session: open_gate.wait(10), may_wait=True))
            await asyncio.sleep(0)
            with pytest.raises(StoreUnavailableError, match="was free for"):
                await pool.run(add(7), may_wait=True)
            await pool.run(add(8))
            open_gate.set()
            assert await waiting
            await pool.run(add(9), may_wait=True)

        using(source, act, acquire_timeout=0.05)
    assert source.numbers() == [8, 9]


def test_one_thread_does_what_may_wait_too(source):
    async def act(pool):
        await asyncio.gather(*(pool.run(add(number), may_wait=True) for number in range(5)))

    using(source, act, size=1)
    assert source.numbers() == list(range(5))


def test_a_caller_that_is_cancelled_while_it_waits_leaves_nothing_behind(source):
    with gate() as open_gate:

        async def act(pool):
            holding = asyncio.ensure_future(pool.run(lambda session: open_gate.wait(10)))
            waiting = asyncio.ensure_future(pool.run(add(7)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            open_gate.set()
            await holding
            await pool.run(add(8))

        using(source, act, size=1)
    assert source.numbers() == [8]


def test_a_caller_that_is_cancelled_later_leaves_no_transaction_open(source):
    started = threading.Event()
    with gate() as open_gate:

        def work(session):
            with session.transaction():
                session.write(ADD, (7,))
                started.set()
                open_gate.wait(10)

        async def act(pool):
            running = asyncio.ensure_future(pool.run(work))
            await until(started.is_set)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            open_gate.set()
            await pool.run(add(8))  # on the same connection: the work before it went on to its end
            assert source.sessions[0].connection.autocommit

        using(source, act, size=1)
    assert source.numbers() == [7, 8]
    assert len(source.sessions) == 1


def test_cancelling_at_every_moment_keeps_the_pool_whole(source):
    async def act(pool):
        for pause in range(12):
            task = asyncio.ensure_future(pool.run(add(pause)))
            for _ in range(pause):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await pool.run(add(100))
        await until(lambda: pool._unfinished == 0)

    using(source, act)
    assert source.numbers()[-1] == 100


def test_a_failed_transaction_is_rolled_back(source):
    def work(session):
        with session.transaction():
            session.write(ADD, (7,))
            raise LookupError("the caller's own")

    async def act(pool):
        with pytest.raises(LookupError):
            await pool.run(work)
        await pool.run(add(8))

    using(source, act, size=1)
    assert source.numbers() == [8]


def test_a_statement_that_fails_leaves_the_connection_of_use(source):
    async def act(pool):
        await pool.run(add(1))
        with pytest.raises(SagaStoreError, match="UNIQUE"):
            await pool.run(add(1))
        await pool.run(add(2))

    using(source, act, size=1)
    assert len(source.sessions) == 1
    assert source.numbers() == [1, 2]


def test_a_lost_connection_is_closed_and_replaced(source):
    def lose(session):
        session.is_lost = session.is_cut = True
        raise StoreUnavailableError("the connection was lost")

    async def act(pool):
        await pool.run(add(1))
        with pytest.raises(StoreUnavailableError):
            await pool.run(lose)
        await pool.run(add(2))

    using(source, act, size=1)
    assert len(source.sessions) == 2
    with pytest.raises(load().ProgrammingError):
        source.sessions[0].connection.execute("SELECT 1")


def test_a_read_on_a_used_connection_is_done_once_more(source):
    tries = []

    def work(session):
        tries.append(session)
        if len(tries) == 1:
            session.is_lost = session.is_cut = True
            raise StoreUnavailableError("the connection was lost")
        return session.read(ALL)

    async def act(pool):
        await pool.run(add(1))
        return await pool.run(work, repeatable=True)

    assert using(source, act, size=1) == [(1,)]
    assert len(set(tries)) == 2


def test_a_connection_that_rested_is_asked_first(source, monkeypatch):
    async def act(pool):
        await pool.run(add(1))
        source.sessions[0].used_at -= 3600
        source.sessions[0].connection.close()
        await pool.run(add(2))

    using(source, act, size=1)
    assert len(source.sessions) == 2
    assert source.numbers() == [1, 2]


def test_a_refused_connection_is_tried_again_the_next_time(source):
    source.failure = StoreUnavailableError("refused")

    async def act(pool):
        with pytest.raises(StoreUnavailableError, match="refused"):
            await pool.run(add(1))
        source.failure = None
        await pool.run(add(2))

    using(source, act, size=1)
    assert source.numbers() == [2]


def test_closing_finishes_what_is_in_hand(source):
    async def use():
        pool = ConnectionPool(source.open, size=1, acquire_timeout=10, name="test-pool")
        running = [asyncio.ensure_future(pool.run(add(number), may_wait=number % 2 == 0)) for number in range(20)]
        await asyncio.sleep(0)
        await pool.close()
        await pool.close()
        assert await asyncio.gather(*running) == [1] * 20
        with pytest.raises(StoreClosedError):
            await pool.run(add(100))

    asyncio.run(use())
    assert source.numbers() == list(range(20))


def test_a_pool_that_nobody_closed_can_be_collected(source):
    async def use():
        pool = ConnectionPool(source.open, size=1, acquire_timeout=10, name="test-pool")
        await pool.run(add(1))
        return weakref.ref(pool)

    dead = asyncio.run(use())
    gc.collect()
    assert dead() is None
    deadline = time.monotonic() + 10
    while pool_threads() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert pool_threads() == []


def test_a_loop_that_ended_is_no_error(source):
    started = threading.Event()
    with gate() as open_gate:
        pool = ConnectionPool(source.open, size=1, acquire_timeout=10, name="test-pool")

        async def use():
            running = asyncio.ensure_future(pool.run(lambda session: (started.set(), open_gate.wait(10))))
            await until(started.is_set)
            running.cancel()

        asyncio.run(use())
        open_gate.set()
        asyncio.run(pool.close())
    assert pool_threads() == []


def test_few_cursors_are_kept(source):
    async def act(pool):
        for number in range(60):
            statement = Statement(f"SELECT {number} AS n", ())
            assert await pool.run(lambda session, statement=statement: session.read(statement)) == [(number,)]

    using(source, act, size=1)
    assert len(source.sessions[0]._cursors) <= 32

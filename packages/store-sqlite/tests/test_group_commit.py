"""Many callers, one transaction: each keeps its own result, and the event loop never waits."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from saga_bus.store import ConcurrencyError, DuplicateSagaError, SagaFilter, SagaNotFoundError, SagaState
from saga_bus.store_sqlite import SqliteSagaStore, create_schema

CALLERS = 32
STALL = 0.050  # seconds, what the event loop may at most stand still


class Note(SagaState, kw_only=True):
    text: str = ""


@pytest.fixture
def path(tmp_path):
    asyncio.run(create_schema(tmp_path / "x.db"))
    return tmp_path / "x.db"


def on_file(path, **options):
    return SqliteSagaStore(path, state_types={"NoteSaga": Note}, **options)


def following(state, text=""):
    return Note(metadata=state.metadata.next(), text=text)


async def statements(store, calls):
    """What the writer executes for calls that arrive at once, behind one that is in flight."""
    traced = []
    gate = threading.Event()
    await store._engine._writer.run(lambda connection: connection.set_trace_callback(traced.append))
    held = asyncio.create_task(store._engine.write(lambda _: gate.wait()))
    await asyncio.sleep(0)
    tasks = [asyncio.create_task(call) for call in calls]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(held, *tasks, return_exceptions=True)
    await store._engine._writer.run(lambda connection: connection.set_trace_callback(None))
    return [sql.split()[0] for sql in traced], tasks


def test_calls_that_wait_are_committed_together(path):
    async def run():
        async with on_file(path) as store:
            words, tasks = await statements(store, [store.insert("NoteSaga", f"n-{n}", Note()) for n in range(20)])
            assert words == ["BEGIN", "COMMIT", "BEGIN", *["INSERT"] * 20, "COMMIT"]
            assert [task.result() for task in tasks] == [None] * 20
            assert await store.count(SagaFilter()) == 20

    asyncio.run(run())


def test_a_bad_row_does_not_fail_its_neighbours(path):
    async def run():
        async with on_file(path) as store:
            one, two = Note(), Note()
            await store.insert("NoteSaga", "one", one)
            calls = [
                store.insert("NoteSaga", "two", two),
                store.insert("NoteSaga", "two", Note()),
                store.update("NoteSaga", following(one, "first"), 0),
                store.update("NoteSaga", following(one, "second"), 0),
                store.update("NoteSaga", following(Note()), 0),
                store.insert("NoteSaga", "three", one),
                store.delete("NoteSaga", two.metadata.saga_id, 7),
                store.insert("NoteSaga", "four", Note()),
            ]
            words, tasks = await statements(store, calls)
            assert words.count("COMMIT") == 2
            assert "ROLLBACK" not in words
            assert [type(task.exception()) for task in tasks] == [
                type(None),
                DuplicateSagaError,
                type(None),
                ConcurrencyError,
                SagaNotFoundError,
                DuplicateSagaError,
                ConcurrencyError,
                type(None),
            ]
            assert tasks[3].exception().actual_version == 1
            assert tasks[6].exception().actual_version == 0
            assert (await store.get_by_correlation_id("NoteSaga", "one")).text == "first"
            assert await store.count(SagaFilter()) == 3

    asyncio.run(run())


def test_cancelled_callers_do_not_stop_the_others(path):
    async def run():
        async with on_file(path) as store:
            gate = threading.Event()
            notes = [Note() for _ in range(30)]
            lone = asyncio.create_task(store._engine.write(lambda _: gate.wait()))
            await asyncio.sleep(0)
            tasks = [asyncio.create_task(store.insert("NoteSaga", str(n), note)) for n, note in enumerate(notes)]
            await asyncio.sleep(0)
            lone.cancel()  # in flight: its thread is still busy with it
            for task in tasks[::3]:
                task.cancel()  # waiting: it is never sent
            gate.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert lone.cancelled()
            for number, (note, result) in enumerate(zip(notes, results, strict=True)):
                assert isinstance(result, asyncio.CancelledError) is (number % 3 == 0)
                found = await store.get_by_id("NoteSaga", note.metadata.saga_id)
                assert (found is None) is (number % 3 == 0)
            await store.insert("NoteSaga", "later", Note())

    asyncio.run(run())


def test_a_caller_that_is_cancelled_in_flight_is_all_or_nothing(path):
    async def run():
        async with on_file(path) as store:
            for number in range(50):
                note = Note()
                task = asyncio.create_task(store.insert("NoteSaga", str(number), note))
                for _ in range(number % 5):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await store.insert("NoteSaga", f"behind-{number}", Note())
                by_id = await store.get_by_id("NoteSaga", note.metadata.saga_id)
                assert by_id == await store.get_by_correlation_id("NoteSaga", str(number))

    asyncio.run(run())


def test_closing_finishes_what_is_waiting(path):
    async def run():
        store = on_file(path)
        async with store:
            tasks = [asyncio.create_task(store.insert("NoteSaga", str(n), Note())) for n in range(200)]
            await asyncio.sleep(0)
        assert await asyncio.gather(*tasks) == [None] * 200
        async with on_file(path) as other:
            assert await other.count(SagaFilter()) == 200

    asyncio.run(run())


def test_a_cancelled_close_goes_on(path):
    async def run():
        store = on_file(path)
        await asyncio.gather(*(store.insert("NoteSaga", str(n), Note()) for n in range(5)))
        before = threading.active_count()
        closing_store = asyncio.create_task(store.close())
        await asyncio.sleep(0)
        closing_store.cancel()
        await asyncio.gather(closing_store, return_exceptions=True)
        assert closing_store.cancelled()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
        assert threading.active_count() == before - 1

    asyncio.run(run())
    assert not path.with_name("x.db-wal").exists()


def test_no_thread_and_no_connection_is_left_behind(path):
    async def run():
        before = threading.active_count()
        async with on_file(path) as store:
            await asyncio.gather(*(store.insert("NoteSaga", str(n), Note()) for n in range(5)))
            await asyncio.gather(store.find(SagaFilter()), store.get_by_id("NoteSaga", "1"))
            assert threading.active_count() == before + 3
        assert threading.active_count() == before

    asyncio.run(run())
    assert not path.with_name("x.db-wal").exists()


def test_a_long_query_does_not_hold_up_reads_and_writes(path):
    async def run():
        async with on_file(path) as store:
            gate = threading.Event()
            query = asyncio.create_task(store._engine.query(lambda _: gate.wait()))
            note = Note()
            await store.insert("NoteSaga", "n", note)
            assert await store.get_by_id("NoteSaga", note.metadata.saga_id) == note
            assert not query.done()
            gate.set()
            await query

    asyncio.run(run())


def test_a_store_that_nobody_closed_does_not_keep_the_process(path):
    script = (
        "import asyncio, sys\n"
        "from saga_bus.store import SagaState\n"
        "from saga_bus.store_sqlite import SqliteSagaStore\n"
        "store = SqliteSagaStore(sys.argv[1])\n"
        "asyncio.run(store.insert('OrderSaga', 'order-1', SagaState()))\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, timeout=60, check=False
    )
    assert (child.returncode, child.stderr) == (0, "")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT correlation_id FROM saga_instances").fetchall() == [("order-1",)]


def test_two_event_loops_one_after_the_other(path):
    store = on_file(path)
    note = Note()
    asyncio.run(store.insert("NoteSaga", "n", note))
    assert asyncio.run(store.get_by_id("NoteSaga", note.metadata.saga_id)) == note
    asyncio.run(store.close())


INCREMENT = """
import asyncio, sys
from saga_bus.store import SagaState
from saga_bus.store_sqlite import SqliteSagaStore

class Counter(SagaState, kw_only=True):
    count: int = 0

def one_more(counter):
    return Counter(metadata=counter.metadata.next(), count=counter.count + 1)

async def work(counters, number):
    for turn in range(25):
        await counters.mutate(f"counter-{(number + turn) % 4}", one_more, attempts=100)

async def run():
    async with SqliteSagaStore(sys.argv[1], busy_timeout=60) as store:
        counters = store.repository("CounterSaga", Counter)
        await asyncio.gather(*(work(counters, number) for number in range(4)))

asyncio.run(run())
"""


def test_several_processes_on_one_file(path):
    """Four processes of four workers each add up to 400 increments of four shared sagas."""

    async def start():
        async with SqliteSagaStore(path) as store:
            for number in range(4):
                await store.insert("CounterSaga", f"counter-{number}", SagaState())

    asyncio.run(start())
    # The documents lack the count, whose default is 0.
    processes = [subprocess.Popen([sys.executable, "-c", INCREMENT, path], stderr=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate()[1] for process in processes] == [b""] * 4
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        total = connection.execute("SELECT sum(version), sum(json_extract(state, '$.count')) FROM saga_instances")
        assert total.fetchone() == (400, 400)


def test_a_busy_process_does_not_starve_another(path):
    """A writer gets its turn within the busy timeout while another connection commits without a pause."""
    stop = threading.Event()

    def hog():
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS business (x)")
            while not stop.is_set():
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("INSERT INTO business VALUES (1)")
                time.sleep(0.004)
                connection.execute("COMMIT")
                time.sleep(0.0005)

    async def run():
        async with on_file(path, busy_timeout=10) as store:
            for number in range(10):
                await store.insert("NoteSaga", str(number), Note())

    thread = threading.Thread(target=hog)
    thread.start()
    try:
        asyncio.run(run())
    finally:
        stop.set()
        thread.join()


async def longest_stall(work):
    """The longest time, in seconds, that the event loop stood still while work was done."""
    worst = 0.0

    async def tick():
        nonlocal worst
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            worst = max(worst, now - last - 0.001)
            last = now

    ticking = asyncio.create_task(tick())
    await work
    ticking.cancel()
    return worst


async def write(store, rounds):
    async def caller(number):
        note = Note(text="x" * 1000)
        await store.insert("NoteSaga", f"{number}", note)
        for _ in range(rounds):
            changed = following(note, note.text)
            await store.update("NoteSaga", changed, note.metadata.version)
            note = changed
        await store.delete("NoteSaga", note.metadata.saga_id, note.metadata.version)

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_the_event_loop_never_stalls(path, durability):
    """Best of five rounds, because the machine may be busy with other things; a store that blocks never passes."""

    async def run():
        stalls = []
        for _ in range(5):
            async with on_file(path, durability=durability) as store:
                stalls.append(await longest_stall(write(store, 30)))
            if stalls[-1] < STALL:
                break
        assert min(stalls) < STALL

    asyncio.run(run())


def test_the_event_loop_goes_on_while_another_process_holds_the_lock(path):
    """One second of waiting for a lock is one second of a running event loop."""

    async def run():
        async with on_file(path, busy_timeout=30) as store:
            await store.count(SagaFilter())
            for attempt in range(5):
                with closing(sqlite3.connect(path, isolation_level=None)) as other:
                    other.execute("BEGIN IMMEDIATE")
                    insert = asyncio.create_task(store.insert("NoteSaga", str(attempt), Note()))
                    stall = await longest_stall(asyncio.wait([insert], timeout=0.5))
                    assert not insert.done()
                    other.execute("ROLLBACK")
                    await insert
                if stall < STALL:
                    return
            pytest.fail(f"the event loop stood still for {stall:.3f} s")

    asyncio.run(run())


def test_created_at_may_change(path):
    async def run():
        async with on_file(path) as store:
            note, other = Note(), Note()
            await store.insert("NoteSaga", "one", note)
            await store.insert("NoteSaga", "two", other)
            earlier = datetime(2001, 2, 3, tzinfo=UTC)
            metadata = note.metadata.next()
            moved = Note(metadata=type(metadata)(**{**fields(metadata), "created_at": earlier}), text="moved")
            await store.update("NoteSaga", moved, 0)
            assert await store.get_by_correlation_id("NoteSaga", "one") == moved
            page = await store.find(SagaFilter(created_before=earlier + timedelta(days=1)))
            assert [record.state for record in page.items] == [moved]
            with pytest.raises(ConcurrencyError):
                await store.update("NoteSaga", moved, 0)

    asyncio.run(run())


def fields(struct):
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def test_a_purge_goes_on_in_batches(path):
    async def run():
        async with on_file(path) as store:
            notes = [Note() for _ in range(25)]
            await asyncio.gather(*(store.insert("NoteSaga", str(n), note) for n, note in enumerate(notes)))
            done = [Note(metadata=note.metadata.next(is_completed=True)) for note in notes[:23]]
            await asyncio.gather(*(store.update("NoteSaga", note, 0) for note in done))
            later = datetime.now(UTC) + timedelta(hours=1)
            purge = partial(store.delete_completed_before, "NoteSaga", later, batch_size=10)
            assert await purge(dry_run=True) == 23
            assert await purge() == 23
            assert await purge() == 0
            assert await store.count(SagaFilter()) == 2

    asyncio.run(run())

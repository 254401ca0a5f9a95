"""The threads by themselves: as many as are needed, and none that is kept for nothing."""

import asyncio
import gc
import threading
import time
import weakref
from functools import partial

import pytest

from saga_bus.store import StoreClosedError
from saga_bus.store_dynamodb._threads import Threads


def names():
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("tested_")}


@pytest.fixture
def threads():
    made = Threads(3, "tested")
    yield made
    made.stop()
    made.join()
    assert not names()


def test_work_that_comes_one_by_one_needs_one_thread(threads):
    async def check():
        found = [await threads.run(lambda n=n: (n, threading.current_thread().name)) for n in range(20)]
        assert found == [(n, "tested_0") for n in range(20)]

    asyncio.run(check())
    assert names() == {"tested_0"}


def test_work_that_comes_at_once_runs_at_once(threads):
    async def check():
        for _ in range(3):
            await threads.run(lambda: None)
        meeting = threading.Barrier(3, timeout=30)
        for _ in range(3):  # also with threads that were there before
            await asyncio.gather(*(threads.run(meeting.wait) for _ in range(3)))

    asyncio.run(check())
    assert names() == {"tested_0", "tested_1", "tested_2"}


def test_what_finds_all_threads_busy_waits_its_turn(threads):
    async def check():
        release, begun, full = threading.Event(), [], threading.Barrier(4, timeout=30)

        def busy(number):
            begun.append(number)
            if number < 3:
                full.wait()
            assert release.wait(30)
            return number

        all_of_them = asyncio.gather(*(threads.run(lambda n=n: busy(n)) for n in range(8)))
        await asyncio.to_thread(full.wait)
        release.set()
        assert await all_of_them == list(range(8))
        assert sorted(begun[3:]) == [3, 4, 5, 6, 7]
        meeting = threading.Barrier(3, timeout=30)
        await asyncio.gather(*(threads.run(meeting.wait) for _ in range(3)))

    asyncio.run(check())
    assert len(names()) <= 3


def test_an_idle_thread_keeps_nothing_of_what_it_did(threads):
    class Thing:
        pass

    def fail(thing):
        raise LookupError(thing)

    def makes(_):
        return Thing()

    async def work():
        with pytest.raises(LookupError):
            await threads.run(partial(fail, Thing()))
        argument = Thing()
        result = await threads.run(partial(makes, argument))
        return weakref.ref(argument), weakref.ref(result)

    kept = asyncio.run(work())
    deadline = time.monotonic() + 10
    while any(reference() is not None for reference in kept):  # the thread is on its way back to its queue
        assert time.monotonic() < deadline
        gc.collect()
        time.sleep(0.001)


def test_threads_end_with_the_object_that_nobody_stopped():
    async def use():
        threads = Threads(3, "tested")
        meeting = threading.Barrier(3, timeout=30)
        await asyncio.gather(*(threads.run(meeting.wait) for _ in range(3)))
        return threads._threads

    started = asyncio.run(use())
    gc.collect()
    for thread in started:
        thread.join(30)
    assert len(started) == 3
    assert not names()


def test_an_error_is_its_callers(threads):
    async def check():
        def fail():
            raise LookupError("no")

        outcomes = await asyncio.gather(threads.run(fail), threads.run(lambda: "yes"), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [LookupError, str]

    asyncio.run(check())


def test_a_loop_that_ends_while_work_is_done_for_it_harms_nothing(threads):
    begun, release = threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert release.wait(30)
        return "too late"

    async def leave():
        waiting = asyncio.ensure_future(threads.run(slow))
        await asyncio.to_thread(begun.wait, 30)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(leave())
    release.set()  # the loop is closed by now

    async def go_on():
        return await asyncio.gather(*(threads.run(threading.current_thread) for _ in range(3)))

    assert {thread.name for thread in asyncio.run(go_on())} <= names()


def test_threads_that_were_told_to_end_do_what_they_have_and_take_no_more(threads):
    async def check():
        done = []
        begun = [asyncio.ensure_future(threads.run(lambda n=n: done.append(n))) for n in range(5)]
        await asyncio.sleep(0)
        threads.stop()
        with pytest.raises(StoreClosedError):
            await threads.run(lambda: done.append("late"))
        await asyncio.gather(*begun)
        assert sorted(done) == [0, 1, 2, 3, 4]

    asyncio.run(check())

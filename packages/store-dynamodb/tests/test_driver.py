"""Threads: the store's own, never the event loop's, and safe to cancel."""

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import weakref

import pytest

from saga_bus.store import StoreClosedError


def test_requests_run_in_threads_of_the_store_and_no_more_than_it_may_have(place, run, recorder):
    async def check():
        async with place.opened(threads=3) as store:
            await place.insert(store, "a")
            seen, lock = set(), threading.Lock()
            running = most = 0

            def watched(method, request):
                nonlocal running, most
                with lock:
                    seen.add(threading.current_thread().name)
                    running += 1
                    most = max(most, running)
                try:
                    return method(**request)
                finally:
                    with lock:
                        running -= 1

            recorder(store).instead["update_item"] = [watched] * 30
            await asyncio.gather(
                *(store.update(place.name, place.state("a", version=1), 0) for _ in range(20)), return_exceptions=True
            )
            assert all(name.startswith("saga-bus-dynamodb") for name in seen)
            assert most <= 3
            loop = asyncio.get_running_loop()
            assert loop._default_executor is None
        assert loop._default_executor is None
        assert not [one for one in threading.enumerate() if one.name.startswith("saga-bus-dynamodb_")]

    run(check())


def test_the_event_loop_never_waits(place, run, recorder):
    async def check():
        async with place.opened() as store:
            release = threading.Event()

            def stuck(method, request):
                release.wait(30)
                return method(**request)

            recorder(store).instead["get_item"] = [stuck]
            reading = asyncio.ensure_future(store.get_by_id(place.name, "a"))
            for _ in range(10):
                await asyncio.sleep(0.001)
            assert not reading.done()
            release.set()
            assert await reading is None

    run(check())


def test_a_cancelled_caller_leaves_its_request_to_end_and_takes_back_what_was_not_sent(place, run, recorder):
    async def check():
        async with place.opened(threads=1) as store:
            await place.insert(store, "first")
            release, started = threading.Event(), threading.Event()

            def slow(method, request):
                started.set()
                release.wait(30)
                return method(**request)

            recorded = recorder(store)
            recorded.instead["transact_write_items"] = [slow]
            sent = asyncio.ensure_future(store.insert(place.name, "order-a", place.state("a")))
            await asyncio.to_thread(started.wait, 30)
            waiting = asyncio.ensure_future(store.insert(place.name, "order-b", place.state("b")))
            await asyncio.sleep(0.01)
            for task in (sent, waiting):
                task.cancel()
            for task in (sent, waiting):
                with pytest.raises(asyncio.CancelledError):
                    await task
            release.set()
            assert await store.get_by_id(place.name, "a") is not None  # the one thread does it after the insert
            assert await store.get_by_id(place.name, "b") is None
            assert recorded.names.count("transact_write_items") == 1

    run(check())


def test_closing_waits_for_what_was_sent(place, run, recorder):
    async def check():
        async with place.opened() as store:
            await place.insert(store, "first")
        store = place.store()
        await place.insert(store, "second")
        release = threading.Event()

        def slow(method, request):
            release.wait(30)
            return method(**request)

        recorder(store).instead["transact_write_items"] = [slow]
        insert = asyncio.ensure_future(store.insert(place.name, "order-a", place.state("a")))
        await asyncio.sleep(0.01)
        closing = asyncio.ensure_future(store.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        release.set()
        await closing
        assert await insert is None
        with pytest.raises(StoreClosedError):
            await store.get_by_id(place.name, "a")

    run(check())


def test_a_client_of_ones_own_is_closed_and_a_given_one_is_not(place, run, monkeypatch):
    async def check():
        closed = []
        with place.client() as client:
            monkeypatch.setattr(client, "close", lambda: closed.append("given"))
            async with place.opened(client=client) as store:
                await place.insert(store, "a")
            assert closed == []
            monkeypatch.undo()
        async with place.store() as store:
            own = store._driver._client
            close = own.close
            monkeypatch.setattr(own, "close", lambda: closed.append("own") or close())
        assert closed == ["own"]

    run(check())


def ended(program):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_store_that_nobody_closed_is_collected_and_lets_the_process_end(place):
    program = f"""
        import asyncio, gc, weakref
        from saga_bus.store_dynamodb import DynamoDBSagaStore

        async def main():
            store = DynamoDBSagaStore({place.url!r})
            await store.create_schema()
            return weakref.ref(store)

        found = asyncio.run(main())
        gc.collect()
        print("collected" if found() is None else "kept")
    """
    assert ended(program) == "collected\n"


def test_a_store_that_is_there_until_the_end_lets_the_process_end(place):
    program = f"""
        import asyncio
        from saga_bus.store_dynamodb import DynamoDBSagaStore

        store = DynamoDBSagaStore({place.url!r})
        asyncio.run(store.create_schema())
        print("used")
    """
    assert ended(program) == "used\n"


def test_a_store_can_be_used_from_one_loop_after_another(place):
    store = place.store()

    async def use(number):
        await store.create_schema()
        await asyncio.gather(*(place.insert(store, f"id-{number}-{n}") for n in range(5)))
        found = await asyncio.gather(*(store.get_by_id(place.name, f"id-{number}-{n}") for n in range(5)))
        assert None not in found

    for number in range(2):
        asyncio.run(use(number))
    asyncio.run(store.close())
    gone = weakref.ref(store)
    store = None
    gc.collect()
    assert gone() is None

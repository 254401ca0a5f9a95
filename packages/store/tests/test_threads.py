"""From a thread of a store's own back to the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import Thread

import pytest

from saga_bus.store.threads import fail, report, succeed


def in_a_thread(function: Callable[..., object], *args: object) -> None:
    thread = Thread(target=function, args=args)
    thread.start()
    thread.join()


def test_the_outcome_comes_in_the_loop_of_the_caller() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        good: asyncio.Future[str] = loop.create_future()
        bad: asyncio.Future[str] = loop.create_future()
        in_a_thread(report, loop, succeed, good, "done")
        in_a_thread(report, loop, fail, bad, KeyError("gone"))
        assert not good.done()
        assert await good == "done"
        with pytest.raises(KeyError, match="gone"):
            await bad

    asyncio.run(scenario())


@pytest.mark.parametrize("outcome", ["result", KeyError("late")])
def test_a_caller_that_is_gone_is_told_nothing(outcome: object) -> None:
    async def scenario() -> None:
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        future.cancel()
        in_a_thread(
            report, asyncio.get_running_loop(), fail if isinstance(outcome, Exception) else succeed, future, outcome
        )
        await asyncio.sleep(0)
        assert future.cancelled()

    asyncio.run(scenario())


def test_a_closed_loop_is_told_nothing() -> None:
    loop = asyncio.new_event_loop()
    future: asyncio.Future[str] = loop.create_future()
    loop.close()
    report(loop, succeed, future, "done")
    assert not future.done()


def test_any_other_error_of_the_loop_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("odd")

    loop = asyncio.new_event_loop()
    monkeypatch.setattr(loop, "call_soon_threadsafe", refuse)
    try:
        with pytest.raises(RuntimeError, match="odd"):
            report(loop, print)
    finally:
        loop.close()

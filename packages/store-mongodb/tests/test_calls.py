"""Calls of the driver: what happens to one that takes too long, and to its caller."""

from __future__ import annotations

import asyncio

import pytest

from mongodb_helpers import new_collection
from saga_bus.store import OutcomeUnknownError, StoreUnavailableError
from saga_bus.store_mongodb import MongoSagaStore
from saga_bus.store_mongodb._calls import Calls

PATIENCE = 60.0


class Clock:
    """The clock of the running loop, which can be put forward."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._real, self._ahead = loop.time, 0.0
        loop.time = lambda: self._real() + self._ahead

    async def pass_by(self, seconds: float) -> None:
        """Let time pass, and all that is due then happen."""
        self._ahead += seconds
        for _ in range(5):
            await asyncio.sleep(0)


async def never_answered():
    await asyncio.Event().wait()


async def calling(calls, work, *, writing=True):
    with calls(writing=writing):
        await work
    return "done"


async def begun(work):
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0)
    return task


@pytest.mark.parametrize(("writing", "kind"), [(True, OutcomeUnknownError), (False, StoreUnavailableError)])
def test_a_call_that_takes_too_long_is_given_up(writing, kind):
    async def run():
        clock, calls = Clock(), Calls(PATIENCE)

        async def caller():
            for _ in range(2):
                with pytest.raises(kind, match="no answer in time") as caught:
                    await calling(calls, never_answered(), writing=writing)
                assert type(caught.value) is kind
                assert isinstance(caught.value.__cause__, TimeoutError)
            # The caller goes on as if nobody had ever cancelled it.
            assert asyncio.current_task().cancelling() == 0
            await asyncio.sleep(0)
            return "done"

        waiting = await begun(caller())
        for _ in range(2):
            await clock.pass_by(0.9 * PATIENCE)
            assert not waiting.done()
            await clock.pass_by(0.2 * PATIENCE)
        assert await waiting == "done"

    asyncio.run(run())


def test_a_call_that_is_quick_is_left_alone_and_so_is_what_comes_after_it():
    async def run():
        clock, calls = Clock(), Calls(PATIENCE)

        async def caller():
            for _ in range(3):
                await calling(calls, asyncio.sleep(0))
            await asyncio.sleep(10 * PATIENCE)
            return await calling(calls, asyncio.sleep(0))

        waiting = await begun(caller())
        for _ in range(22):
            await clock.pass_by(PATIENCE / 2)
        assert await waiting == "done"
        assert not calls.deadlines._running
        await clock.pass_by(PATIENCE)
        late = await begun(calling(calls, never_answered()))  # and is looked after, after nothing was for a while
        await clock.pass_by(1.1 * PATIENCE)
        assert type(late.exception()) is OutcomeUnknownError

    asyncio.run(run())


def test_there_is_one_timer_for_all_calls(monkeypatch):
    async def run():
        loop, timers = asyncio.get_running_loop(), []
        call_at = loop.call_at
        monkeypatch.setattr(loop, "call_at", lambda *given: timers.append(1) or call_at(*given))
        calls = Calls(PATIENCE)
        for _ in range(10):
            assert await asyncio.gather(*(calling(calls, asyncio.sleep(0)) for _ in range(10))) == ["done"] * 10
        assert len(timers) == 1

    asyncio.run(run())


def test_only_the_late_one_of_many_is_given_up():
    async def run():
        clock, calls, answer = Clock(), Calls(PATIENCE), asyncio.Event()
        late = await begun(calling(calls, never_answered()))
        others = []
        for _ in range(5):
            await clock.pass_by(0.15 * PATIENCE)
            others.append(await begun(calling(calls, answer.wait())))
        await clock.pass_by(0.3 * PATIENCE)
        assert type(late.exception()) is OutcomeUnknownError
        answer.set()
        assert await asyncio.gather(*others) == ["done"] * 5
        assert not calls.deadlines._running

    asyncio.run(run())


def test_a_caller_that_is_cancelled_is_cancelled():
    async def run():
        clock, calls, closed = Clock(), Calls(PATIENCE), asyncio.Event()

        async def slow_to_let_go():
            try:
                await never_answered()
            finally:  # as the driver does, which closes its connection
                await closed.wait()

        waiting = await begun(calling(calls, never_answered()))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        for _ in range(2):
            waiting, other = [await begun(calling(calls, slow_to_let_go())) for _ in range(2)]
            for _ in range(3):
                await clock.pass_by(2 * PATIENCE)  # they are late by now, and on their way out
            assert not waiting.done()
            waiting.cancel()
            closed.set()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(OutcomeUnknownError):
                await other
            closed.clear()

    asyncio.run(run())


def test_an_error_of_the_drivers_that_comes_late_is_what_it_says():
    async def run():
        clock, calls = Clock(), Calls(PATIENCE)

        async def cut_when_given_up():
            try:
                await never_answered()
            except asyncio.CancelledError:
                raise ConnectionResetError("reset") from None

        async def caller():
            with pytest.raises(StoreUnavailableError, match="connection was lost"):
                await calling(calls, cut_when_given_up(), writing=False)
            return asyncio.current_task().cancelling()

        waiting = await begun(caller())
        await clock.pass_by(2 * PATIENCE)
        assert await waiting == 0

    asyncio.run(run())


def test_without_patience_the_clients_own_settings_hold():
    async def run():
        clock, calls, answer = Clock(), Calls(), asyncio.Event()
        waiting = await begun(calling(calls, answer.wait()))
        await clock.pass_by(100 * PATIENCE)
        answer.set()
        assert await waiting == "done"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("chosen", "selection", "socket", "whole", "patience"),
    [
        ("", 30, None, None, 60),
        ("&serverSelectionTimeoutMS=567", 0.567, None, None, 60),
        ("&socketTimeoutMS=5000", 30, 5, None, None),
        ("&timeoutMS=1234", 30, None, 1.234, None),
    ],
)
def test_an_own_client_does_not_wait_for_ever(url, chosen, selection, socket, whole, patience):
    async def run():
        async with MongoSagaStore(url + chosen, collection=new_collection()) as store:
            options = store._engine._client.options
            assert options.server_selection_timeout == selection
            assert options.pool_options.socket_timeout == socket
            assert options.timeout == whole
            assert store._engine.collections().calls.deadlines.limit == patience

    asyncio.run(run())

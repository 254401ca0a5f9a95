"""Deadlines: what takes too long ends, and nothing else does."""

import asyncio

import pytest

from saga_bus.store.deadlines import Deadlines

SOON, NEVER = 0.02, 3600.0


async def for_ever(deadlines):
    with deadlines.start():
        await asyncio.Event().wait()


def test_what_takes_too_long_is_a_timeout_and_the_task_goes_on():
    async def run():
        deadlines = Deadlines(SOON)
        for _ in range(2):  # the timer comes back
            with pytest.raises(TimeoutError):
                await for_ever(deadlines)
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0)
        deadlines.close()

    asyncio.run(run())


def test_each_has_a_deadline_of_its_own():
    async def run():
        deadlines = Deadlines(SOON)
        with deadlines.start():
            first = [asyncio.create_task(for_ever(deadlines)) for _ in range(3)]
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*first, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [TimeoutError] * 3
        for _ in range(20):
            with deadlines.start():
                await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await for_ever(deadlines)

    asyncio.run(run())


def test_a_cancellation_is_none_of_it():
    async def run():
        deadlines = Deadlines(NEVER)
        task = asyncio.create_task(for_ever(deadlines))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        deadlines.close()

    asyncio.run(run())


def test_a_cancellation_in_the_same_moment_wins():
    async def run():
        deadlines = Deadlines(NEVER)

        async def cancelled_as_it_ends():
            try:
                with deadlines.start():
                    await asyncio.Event().wait()
            except TimeoutError:
                pytest.fail("somebody wanted the task to end")

        task = asyncio.create_task(cancelled_as_it_ends())
        await asyncio.sleep(0)
        (deadline,) = deadlines._running
        deadline.expire()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        deadlines.close()

    asyncio.run(run())


@pytest.mark.parametrize("limit", [None, NEVER])
def test_what_ends_in_time_leaves_no_timer_behind(limit):
    async def run():
        deadlines = Deadlines(limit)
        with deadlines.start():
            await asyncio.sleep(0)
        with pytest.raises(KeyError), deadlines.start():
            raise KeyError
        deadlines.close()
        loop = asyncio.get_running_loop()
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []

    asyncio.run(run())

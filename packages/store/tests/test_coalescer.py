"""The coalescer: order, isolation, cancellation, and no wait for a lone caller."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from saga_bus.store import Activity, Coalescer, InvalidSagaError, OutcomeUnknownError, StoreUnavailableError


class Gate:
    """A run() that records its groups and holds each back until it is let through."""

    def __init__(self, outcome: Callable[[Any], Any] = lambda item: ("done", item)) -> None:
        self.groups: list[list[Any]] = []
        self.turns = asyncio.Semaphore(0)
        self.outcome = outcome

    async def __call__(self, items: Sequence[Any]) -> list[Any]:
        self.groups.append(list(items))
        await self.turns.acquire()
        return [self.outcome(item) for item in items]

    def let(self, groups: int = 1000) -> None:
        for _ in range(groups):
            self.turns.release()

    async def entered(self, groups: int) -> None:
        while len(self.groups) < groups:  # noqa: ASYNC110 - turns of the loop, not time
            await asyncio.sleep(0)


async def started(*coroutines: Any) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    await asyncio.sleep(0)
    return tasks


async def behind_a_leader(gate: Any, *items: Any, **options: Any) -> tuple[asyncio.Task[Any], list[asyncio.Task[Any]]]:
    """A leader held in flight, and the calls that wait behind it."""
    coalescer: Coalescer[Any, Any] = Coalescer(gate, **options)
    (leader,) = await started(coalescer.call("leader"))
    return leader, await started(*(coalescer.call(item) for item in items))


def test_a_lone_caller_runs_before_any_other_ready_callback() -> None:
    async def scenario() -> list[str]:
        seen: list[str] = []

        async def run(items: Sequence[str]) -> Sequence[str]:
            seen.append("run")
            return items

        asyncio.get_running_loop().call_soon(seen.append, "another callback")
        assert await Coalescer[str, str](run).call("x") == "x"
        return list(seen)

    assert asyncio.run(scenario()) == ["run"]


def test_a_caller_after_a_finished_group_is_lone_again() -> None:
    async def scenario() -> None:
        gate = Gate()
        coalescer: Coalescer[Any, Any] = Coalescer(gate)
        gate.let()
        await asyncio.gather(*(coalescer.call(item) for item in range(5)))
        await coalescer.join()
        groups_before = len(gate.groups)
        ticked: list[int] = []
        asyncio.get_running_loop().call_soon(ticked.append, groups_before)
        await coalescer.call("lone")
        assert ticked == []
        assert gate.groups[groups_before:] == [["lone"]]

    asyncio.run(scenario())


@pytest.mark.parametrize(("max_size", "groups"), [(128, [1, 99]), (50, [1, 50, 49]), (1, [1] * 100)])
def test_concurrent_calls_leave_in_order_in_groups_of_at_most_max_size(max_size: int, groups: list[int]) -> None:
    async def scenario() -> None:
        gate = Gate()
        coalescer: Coalescer[int, Any] = Coalescer(gate, max_size=max_size)
        calls = await started(*(coalescer.call(item) for item in range(100)))
        gate.let()
        assert await asyncio.gather(*calls) == [("done", item) for item in range(100)]
        assert [len(group) for group in gate.groups] == groups
        assert [item for group in gate.groups for item in group] == list(range(100))

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["max_size", "max_in_flight", "share"])
@pytest.mark.parametrize("value", [0, -1])
def test_no_group_no_size_and_no_share_is_refused(name: str, value: int) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(InvalidSagaError, match=name):
        Coalescer(Gate(), **options)


def test_a_group_holds_each_key_once_is_sorted_by_key_and_keeps_the_order_of_one_key() -> None:
    async def scenario() -> None:
        gate = Gate()
        items = [("b", 1), ("a", 1), ("b", 2), ("c", 1), ("b", 3), ("a", 2)]
        leader, calls = await behind_a_leader(gate, *items, key=lambda item: item[0], max_size=2)
        gate.let()
        await asyncio.gather(leader, *calls)
        assert gate.groups == [
            ["leader"],
            [("a", 1), ("b", 1)],
            [("b", 2), ("c", 1)],
            [("a", 2), ("b", 3)],
        ]

    asyncio.run(scenario())


def test_calls_of_one_key_never_run_at_the_same_time() -> None:
    async def scenario() -> None:
        gate = Gate()
        leader, calls = await behind_a_leader(gate, *["k"] * 5, key=str)
        gate.let()
        await asyncio.gather(leader, *calls)
        assert gate.groups == [["leader"], *[["k"]] * 5]

    asyncio.run(scenario())


def test_an_outcome_that_is_an_exception_is_raised_to_its_caller_alone() -> None:
    async def scenario() -> None:
        gate = Gate(lambda item: KeyError(item) if item in ("leader", "bad") else item)
        leader, calls = await behind_a_leader(gate, "a", "bad", "c")
        gate.let()
        results = await asyncio.gather(leader, *calls, return_exceptions=True)
        assert [repr(result) for result in results] == ["KeyError('leader')", "'a'", "KeyError('bad')", "'c'"]
        assert gate.groups == [["leader"], ["a", "bad", "c"]]

    asyncio.run(scenario())


def test_a_group_that_raises_runs_again_one_by_one_so_that_only_the_bad_item_fails() -> None:
    async def scenario() -> None:
        gate = Gate()

        async def run(items: Sequence[str]) -> Sequence[Any]:
            outcomes = await gate(items)
            if "bad" in items:
                raise ValueError(f"{len(items)} items")
            return outcomes

        leader, calls = await behind_a_leader(run, "a", "bad", "c")
        gate.let()
        results = await asyncio.gather(leader, *calls, return_exceptions=True)
        assert results[::2] == [("done", "leader"), results[2]]
        assert repr(results[2]) == "ValueError('1 items')"
        assert [results[1], results[3]] == [("done", "a"), ("done", "c")]
        assert gate.groups == [["leader"], ["a", "bad", "c"], ["a"], ["bad"], ["c"]]

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [StoreUnavailableError("down"), OutcomeUnknownError("cut")])
def test_an_unavailable_store_is_told_to_the_whole_group_and_nothing_runs_again(error: Exception) -> None:
    async def scenario() -> None:
        gate = Gate()

        async def run(items: Sequence[str]) -> Sequence[Any]:
            outcomes = await gate(items)
            if items[0] == "a":
                raise error
            return outcomes

        leader, calls = await behind_a_leader(run, "a", "b", "c", max_size=2)
        gate.let()
        results = await asyncio.gather(leader, *calls, return_exceptions=True)
        assert results == [("done", "leader"), error, error, ("done", "c")]
        assert gate.groups == [["leader"], ["a", "b"], ["c"]]

    asyncio.run(scenario())


def test_a_lone_caller_gets_what_run_raised_and_hands_over() -> None:
    async def scenario() -> None:
        gate = Gate()

        async def run(items: Sequence[str]) -> Sequence[Any]:
            outcomes = await gate(items)
            if items[0] == "leader":
                raise ZeroDivisionError
            return outcomes

        leader, calls = await behind_a_leader(run, "a")
        gate.let()
        with pytest.raises(ZeroDivisionError):
            await leader
        assert await calls[0] == ("done", "a")

    asyncio.run(scenario())


@pytest.mark.parametrize("outcomes", [[], [1], [1, 2, 3]], ids=["none", "too few", "too many"])
def test_a_wrong_number_of_outcomes_is_an_error_of_that_group_which_is_not_run_again(outcomes: list[int]) -> None:
    async def scenario() -> None:
        gate = Gate()

        async def run(items: Sequence[str]) -> Sequence[Any]:
            answers = await gate(items)
            return outcomes if "a" in items else answers

        leader, calls = await behind_a_leader(run, "a", "b", "c", max_size=2)
        gate.let()
        results = await asyncio.gather(leader, *calls, return_exceptions=True)
        assert [results[0], results[3]] == [("done", "leader"), ("done", "c")]
        for result in results[1:3]:
            assert isinstance(result, RuntimeError)
            assert str(result) == f"run() returned {len(outcomes)} outcomes for 2 items"
        assert gate.groups == [["leader"], ["a", "b"], ["c"]]

    asyncio.run(scenario())


@pytest.mark.parametrize("outcomes", [[], [1, 2]])
def test_a_wrong_number_of_outcomes_is_a_clear_error_for_a_lone_caller(outcomes: list[int]) -> None:
    async def run(items: Sequence[str]) -> Sequence[int]:
        return outcomes

    with pytest.raises(RuntimeError, match=r"run\(\) returned . outcomes for 1 items"):
        asyncio.run(Coalescer(run).call("x"))


def test_keys_that_cannot_be_compared_are_told_to_the_callers_who_do_not_hang() -> None:
    async def scenario() -> None:
        gate = Gate()
        leader, calls = await behind_a_leader(gate, 1, "a", key=lambda item: item)
        gate.let()
        results = await asyncio.gather(leader, *calls, return_exceptions=True)
        assert [type(result) for result in results] == [tuple, TypeError, TypeError]

    asyncio.run(scenario())


def test_a_driver_that_cancels_itself_fails_its_own_group_only() -> None:
    async def scenario() -> None:
        gate = Gate()

        async def run(items: Sequence[str]) -> Sequence[Any]:
            outcomes = await gate(items)
            if items[0] == "a":
                raise asyncio.CancelledError
            return outcomes

        leader, calls = await behind_a_leader(run, "a", "b", "c", max_size=2)
        gate.let()
        results = await asyncio.gather(leader, *calls, return_exceptions=True)
        assert [type(result) for result in results] == [tuple, asyncio.CancelledError, asyncio.CancelledError, tuple]

    asyncio.run(scenario())


def test_a_waiting_caller_that_is_cancelled_is_never_sent() -> None:
    async def scenario() -> None:
        gate = Gate()
        leader, calls = await behind_a_leader(gate, "a", "b", "c")
        calls[1].cancel()
        gate.let()
        results = await asyncio.gather(leader, *calls, return_exceptions=True)
        assert [results[0], results[1], results[3]] == [("done", item) for item in ("leader", "a", "c")]
        assert isinstance(results[2], asyncio.CancelledError)
        assert gate.groups == [["leader"], ["a", "c"]]

    asyncio.run(scenario())


@pytest.mark.parametrize("cancelled", [{0}, {1, 2}, {0, 1, 2}])
def test_cancelling_callers_in_flight_never_cancels_the_group(cancelled: set[int]) -> None:
    async def scenario() -> None:
        gate, completed = Gate(), []

        async def run(items: Sequence[str]) -> Sequence[Any]:
            outcomes = await gate(items)
            completed.append(list(items))
            return outcomes

        leader, calls = await behind_a_leader(run, "a", "b", "c")
        gate.let(1)
        await leader
        await gate.entered(2)
        for index in cancelled:
            calls[index].cancel()
        await asyncio.sleep(0)
        gate.let()
        results = await asyncio.gather(*calls, return_exceptions=True)
        for index, result in enumerate(results):
            assert isinstance(result, asyncio.CancelledError) == (index in cancelled)
        for _ in range(3):
            await asyncio.sleep(0)
        assert completed == [["leader"], ["a", "b", "c"]]

    asyncio.run(scenario())


def test_an_error_for_a_caller_that_is_gone_disturbs_nobody() -> None:
    async def scenario() -> None:
        gate = Gate(lambda item: KeyError(item) if item == "a" else item)
        leader, calls = await behind_a_leader(gate, "a", "b")
        gate.let(1)
        await leader
        await gate.entered(2)
        calls[0].cancel()
        gate.let()
        assert await calls[1] == "b"

    asyncio.run(scenario())


def test_cancelling_the_lone_leader_stops_its_own_run_and_the_others_go_on() -> None:
    async def scenario() -> None:
        gate = Gate()
        leader, calls = await behind_a_leader(gate, "a", "b")
        leader.cancel()
        gate.let()
        with pytest.raises(asyncio.CancelledError):
            await leader
        assert await asyncio.gather(*calls) == [("done", "a"), ("done", "b")]
        assert gate.groups == [["leader"], ["a", "b"]]

    asyncio.run(scenario())


def test_after_everyone_was_cancelled_the_next_call_is_served() -> None:
    async def scenario() -> None:
        gate = Gate()
        coalescer: Coalescer[str, Any] = Coalescer(gate)
        tasks = await started(*(coalescer.call(item) for item in "abcd"))
        for task in tasks:
            task.cancel()
        assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*tasks, return_exceptions=True))
        gate.let()
        assert await coalescer.call("next") == ("done", "next")
        assert gate.groups == [["a"], ["next"]]

    asyncio.run(scenario())


def test_join_waits_for_what_is_in_flight_and_waiting_and_for_nothing_else() -> None:
    async def scenario() -> None:
        gate = Gate()
        coalescer: Coalescer[str, Any] = Coalescer(gate)
        await coalescer.join()
        calls = await started(*(coalescer.call(item) for item in "abc"))
        joining = await started(coalescer.join(), coalescer.join(), coalescer.join())
        joining[0].cancel()
        await asyncio.sleep(0)
        assert [task.done() for task in joining] == [True, False, False]
        gate.let()
        await asyncio.gather(*joining[1:])
        assert all(call.done() for call in calls)
        await coalescer.join()

    asyncio.run(scenario())


@pytest.mark.parametrize("leader_is_done", [False, True], ids=["leader in flight", "group in flight"])
def test_a_stopped_loop_leaves_no_hung_call_and_no_warning(
    leader_is_done: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def scenario() -> None:
        gate = Gate()
        coalescer: Coalescer[str, Any] = Coalescer(gate, max_size=2)
        tasks.extend(await started(*(coalescer.call(item) for item in "abcdef"), coalescer.join()))
        if leader_is_done:
            gate.let(1)
            await tasks[0]
            await gate.entered(2)

    with caplog.at_level(logging.DEBUG, logger="asyncio"):
        asyncio.run(scenario())
        assert all(task.done() for task in tasks)
        assert [task.cancelled() for task in tasks[1:]] == [True] * 6
        tasks.clear()
        gc.collect()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_callers_who_call_again_as_soon_as_they_are_answered_join_the_next_group() -> None:
    async def scenario() -> None:
        gate = Gate()
        coalescer: Coalescer[str, Any] = Coalescer(gate)

        async def twice(item: str) -> None:
            await coalescer.call(item)
            await coalescer.call(item * 2)

        calls = await started(coalescer.call("leader"), twice("a"), twice("b"))
        gate.let(1)
        await gate.entered(2)
        calls += await started(coalescer.call("c"))
        gate.let()
        await asyncio.gather(*calls)
        assert gate.groups == [["leader"], ["a", "b"], ["c", "aa", "bb"]]

    asyncio.run(scenario())


# -- several groups in flight ------------------------------------------------------------------------------


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_as_many_groups_are_in_flight_as_may_be_and_the_calls_of_one_turn_are_in_one() -> None:
    async def scenario() -> None:
        gate = Gate()
        coalescer: Coalescer[str, Any] = Coalescer(gate, max_in_flight=3)
        calls: list[asyncio.Task[Any]] = []
        for items in ("a", "bc", "de", "f", "gh"):
            calls += await started(*(coalescer.call(item) for item in items))
            await turns()
        assert gate.groups == [["a"], ["b", "c"], ["d", "e"]]
        gate.let(1)
        await gate.entered(4)
        assert gate.groups[3:] == [["f", "g", "h"]]
        gate.let()
        assert await asyncio.gather(*calls) == [("done", item) for item in "abcdefgh"]

    asyncio.run(scenario())


def test_what_exceeds_a_group_leaves_at_once_in_the_next_one() -> None:
    async def scenario() -> None:
        gate = Gate()
        coalescer: Coalescer[str, Any] = Coalescer(gate, max_size=2, max_in_flight=3)
        calls = await started(*(coalescer.call(item) for item in "abcdef"))
        await turns()
        assert gate.groups == [["a"], ["b", "c"], ["d", "e"]]
        gate.let()
        await asyncio.gather(*calls)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("calls", "groups"),
    [
        (8, [7]),  # too few for two groups
        (9, [4, 4]),
        (14, [7, 6]),
        (25, [10, 10, 4]),
    ],
)
def test_two_groups_that_may_leave_take_half_each_of_what_waits(calls: int, groups: list[int]) -> None:
    async def scenario() -> None:
        gate = Gate()
        coalescer: Coalescer[int, Any] = Coalescer(gate, max_size=10, max_in_flight=4, share=4)
        tasks = await started(*(coalescer.call(item) for item in range(calls)))
        await turns()
        gate.groups.pop(0)  # the first call went by itself
        assert [len(group) for group in gate.groups] == groups
        gate.let()
        assert await asyncio.gather(*tasks) == [("done", item) for item in range(calls)]

    asyncio.run(scenario())


@pytest.mark.parametrize(("others", "groups"), [(3, [4, 4]), (4, [8])])
def test_nothing_is_halved_while_enough_others_are_at_work(others: int, groups: list[int]) -> None:
    async def scenario() -> None:
        gate, other_gate, activity = Gate(), Gate(), Activity()
        other: Coalescer[int, Any] = Coalescer(other_gate, activity=activity)
        coalescer: Coalescer[int, Any] = Coalescer(gate, max_in_flight=3, share=2, activity=activity)
        tasks = await started(*(other.call(item) for item in range(others)))
        tasks += await started(*(coalescer.call(item) for item in range(8)))
        await turns()
        assert [len(group) for group in gate.groups] == groups
        gate.let()
        other_gate.let()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_the_only_group_that_may_leave_takes_all_that_waits() -> None:
    async def scenario() -> None:
        gate = Gate()
        coalescer: Coalescer[int, Any] = Coalescer(gate, max_in_flight=2, share=1)
        calls = await started(*(coalescer.call(item) for item in range(2)))
        await turns()
        calls += await started(*(coalescer.call(item) for item in range(2, 9)))
        await turns()
        assert gate.groups == [[0], [1]]
        gate.let(1)
        await turns()
        assert gate.groups == [[0], [1], [*range(2, 9)]]
        gate.let()
        await asyncio.gather(*calls)

    asyncio.run(scenario())


def test_callers_who_were_answered_and_call_again_are_taken_by_the_group_that_answered_them() -> None:
    async def scenario() -> None:
        gate = Gate()
        coalescer: Coalescer[str, Any] = Coalescer(gate, max_in_flight=3)

        async def twice(item: str) -> None:
            await coalescer.call(item)
            await coalescer.call(item * 2)

        calls = await started(coalescer.call("a"), twice("b"), twice("c"))
        await turns()
        drainers = set(coalescer._drainers)
        gate.let(2)
        await gate.entered(3)
        assert gate.groups == [["a"], ["b", "c"], ["bb", "cc"]]
        assert coalescer._drainers <= drainers
        gate.let()
        await asyncio.gather(*calls)

    asyncio.run(scenario())


def test_no_two_groups_in_flight_share_a_key_and_what_waits_for_one_leaves_when_it_lands() -> None:
    async def scenario() -> None:
        gate = Gate()
        coalescer: Coalescer[Any, Any] = Coalescer(gate, key=lambda item: item[0], max_in_flight=3)
        calls: list[asyncio.Task[Any]] = []
        for items in (["k1"], ["k2", "a1"], ["k3", "a2", "b1"]):
            calls += await started(*(coalescer.call(item) for item in items))
            await turns()
        assert gate.groups == [["k1"], ["a1"], ["b1"]]
        gate.let(1)
        await gate.entered(4)
        assert gate.groups[3:] == [["k2"]]
        gate.let(1)
        await gate.entered(5)
        assert gate.groups[4:] == [["a2"]]
        gate.let()
        await asyncio.gather(*calls)
        assert gate.groups[5:] == [["k3"]]
        await coalescer.join()

    asyncio.run(scenario())


@pytest.mark.parametrize("has_own_way", [False, True])
def test_a_call_after_a_cancelled_one_waits_for_the_group_that_is_still_in_flight(has_own_way: bool) -> None:
    async def scenario() -> None:
        gate, own_way = Gate(), Gate()

        async def run_alone(item: str) -> Any:
            return (await own_way((item,)))[0]

        coalescer: Coalescer[str, Any] = Coalescer(gate, alone=run_alone if has_own_way else None)
        calls = await started(*(coalescer.call(item) for item in "abc"))
        (own_way if has_own_way else gate).let(1)
        await calls[0]
        await turns()
        assert gate.groups[-1] == ["b", "c"]
        for call in calls[1:]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        (late,) = await started(coalescer.call("late"))
        await turns()
        assert gate.groups[-1] == ["b", "c"]
        assert own_way.groups == ([["a"]] if has_own_way else [])
        gate.let()
        assert await late == ("done", "late")
        assert gate.groups[-1] == ["late"]

    asyncio.run(scenario())


# -- a lone caller's own way -------------------------------------------------------------------------------


def test_a_lone_caller_goes_its_own_way_and_groups_pass_it_by() -> None:
    async def scenario() -> None:
        gate, alone = Gate(), asyncio.Event()

        async def run_alone(item: str) -> Any:
            await alone.wait()
            return "alone", item

        coalescer: Coalescer[str, Any] = Coalescer(gate, key=str, alone=run_alone)
        (lone,) = await started(coalescer.call("x"))
        calls = await started(*(coalescer.call(item) for item in "axb"))
        gate.let()
        assert await calls[0] == ("done", "a")
        assert await calls[2] == ("done", "b")
        joining = (await started(coalescer.join()))[0]
        assert gate.groups == [["a", "b"]]
        assert [task.done() for task in (lone, calls[1], joining)] == [False] * 3
        alone.set()
        assert await asyncio.gather(lone, calls[1]) == [("alone", "x"), ("done", "x")]
        await joining
        assert await coalescer.call("y") == ("alone", "y")

    asyncio.run(scenario())


@pytest.mark.parametrize("ends", ["error", "cancel"])
def test_a_lone_caller_that_fails_or_is_cancelled_leaves_its_key_to_the_next_one(ends: str) -> None:
    async def scenario() -> None:
        alone = asyncio.Event()

        async def run_alone(item: str) -> Any:
            await alone.wait()
            raise KeyError(item)

        gate = Gate()
        coalescer: Coalescer[str, Any] = Coalescer(gate, key=str, alone=run_alone)
        lone, waiting = await started(coalescer.call("x"), coalescer.call("x"))
        gate.let()
        if ends == "error":
            alone.set()
        else:
            lone.cancel()
        with pytest.raises(KeyError if ends == "error" else asyncio.CancelledError):
            await lone
        assert await waiting == ("done", "x")
        await coalescer.join()

    asyncio.run(scenario())


@pytest.mark.parametrize("shared", [False, True])
def test_coalescers_that_share_their_activity_know_of_one_another_who_is_alone(shared: bool) -> None:
    async def scenario() -> None:
        gate, own_way, activity = Gate(), Gate(), Activity()

        async def run_alone(item: str) -> Any:
            return (await own_way((item,)))[0]

        one, other = (
            Coalescer[str, Any](gate, alone=run_alone, activity=activity if shared else None) for _ in range(2)
        )
        calls = await started(one.call("a"), *(other.call(item) for item in "bcd"))
        await turns()
        assert own_way.groups == ([["a"]] if shared else [["a"], ["b"]])
        assert gate.groups == ([["b", "c", "d"]] if shared else [["c", "d"]])
        own_way.let()
        gate.let()
        await asyncio.gather(*calls)
        assert activity.calls == 0
        assert await one.call("e") == ("done", "e")
        assert own_way.groups[-1] == ["e"]

    asyncio.run(scenario())

"""The differential machine: one script on two stores, results and types of errors compared after each step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

from hypothesis import given

from saga_bus.store.conformance.lag import settled
from saga_bus.store.conformance.machine import declared_by, machine_settings
from saga_bus.store.conformance.model import STATE_TYPES
from saga_bus.store.conformance.script import Call, Outcome, Player, Progress, Step, agree, scripts_for
from saga_bus.store.protocol import StoreCapabilities

__all__ = ["run_differential"]

OpenStore = Callable[[], Awaitable[Any]]
CloseStore = Callable[[Any], Awaitable[None]]


def run_differential(
    open_left: OpenStore, open_right: OpenStore, close: CloseStore, *, examples: int, steps: int
) -> None:
    """Compare two stores; for a thread that runs no event loop.

    Abilities beyond the five operations are used where both stores declare them. Where one declares an
    ``index_lag``, a search or a purge that differs is repeated until then.

    Args:
        open_left: Opens one store on a fresh place.
        open_right: Opens the other one on a fresh place.
        close: Closes either.
        examples: How many scripts.
        steps: The most steps of a script.

    Raises:
        AssertionError: The stores differ; the message shows the shortest script found and both outcomes of
            its last step.
    """
    declared = [asyncio.run(declared_by(open_store, close)) for open_store in (open_left, open_right)]
    lag = max(one.index_lag for one in declared)

    @machine_settings(examples, lag=lag)
    @given(scripts_for(_common_abilities(*declared), steps))
    def compare(script: list[Step]) -> None:
        asyncio.run(_play(script, open_left, open_right, close, lag))

    compare()


def _common_abilities(left: StoreCapabilities, right: StoreCapabilities) -> frozenset[str]:
    names = ("conditional_delete", "query", "retention")
    return frozenset(name for name in names if getattr(left, name) and getattr(right, name))


async def _play(
    script: list[Step], open_left: OpenStore, open_right: OpenStore, close: CloseStore, lag: timedelta
) -> None:
    left = await open_left()
    try:
        right = await open_right()
        try:
            await _compare_steps(script, left, right, lag)
        finally:
            await close(right)
    finally:
        await close(left)


async def _compare_steps(script: list[Step], left: Any, right: Any, lag: timedelta) -> None:
    for store in (left, right):
        for saga_name, state_type in STATE_TYPES.items():
            if hasattr(store, "register"):
                store.register(saga_name, state_type)
    progress, on_left, on_right = Progress(), Player(left), Player(right)
    done: list[str] = []

    async def play(call: Call) -> Outcome:
        outcomes = await on_left.play(call), await on_right.play(call)
        if not agree(*outcomes, either_conflict=progress.both_taken(call)):
            raise AssertionError(_difference(left, right, done, *outcomes))
        return outcomes[0]

    for step in script:
        call = progress.resolve(step)
        done.append(str(call))
        reads_an_index = step.kind in ("find", "find_next", "count", "purge")
        outcome = await settled(partial(play, call), lag if reads_an_index else timedelta(0))
        progress.follow(call, outcome)


def _difference(left: Any, right: Any, done: list[str], on_left: Outcome, on_right: Outcome) -> str:
    first, second = type(left).__name__, type(right).__name__
    if first == second:
        first, second = f"left {first}", f"right {second}"
    lines = [f"the stores differ in: {done[-1]}", f"  {first}: {on_left}", f"  {second}: {on_right}", "the script:"]
    return "\n".join([*lines, *(f"  {number}. {call}" for number, call in enumerate(done, 1))])

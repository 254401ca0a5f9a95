"""Which calls leave together, and on which connection.

The core's coalescer has one group in flight, and sends the first call of a burst alone. Where a commit takes
milliseconds, both cost a whole commit: here several groups may be in flight, each on a lane of its own, and calls
that are made in the same turn of the event loop leave together. A caller that is alone is served without delay.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from saga_bus.store import StoreUnavailableError

__all__ = ["Activity", "Dispatcher"]

ItemT = TypeVar("ItemT")
LaneT = TypeVar("LaneT")
ResultT = TypeVar("ResultT")

_MAX_GROUP = 128


class Activity(Generic[LaneT]):
    """How many calls are in progress on all dispatchers of a store: with more than one, a burst is likely.

    Args:
        lane: For a call that is alone. It is never busy then, and one connection for reads and writes keeps one
            process of the server at work instead of two.
    """

    def __init__(self, lane: LaneT) -> None:
        self.lane = lane
        self.calls = 0


class _Call(NamedTuple, Generic[ItemT, ResultT]):
    item: ItemT
    key: Any
    future: asyncio.Future[ResultT]


class Dispatcher(Generic[LaneT, ItemT, ResultT]):
    """Groups the calls that are made at the same time, and those that wait for a lane.

    Each call keeps its own result or error, and none is stopped by another one's cancellation.

    Args:
        run: Runs a group on a lane and returns one outcome for each item, in order; an outcome that is an
            exception is raised to its caller alone. If it raises, a group of several is run again one by one, so
            that one bad item does not fail its neighbours, except after a `StoreUnavailableError`, which every
            caller gets.
        lanes: What groups run on, one at a time each; at least one.
        activity: Shared by the dispatchers of a store.
        alone: Runs the item of a caller that is alone. It may wait for locks where a group must not.
        key: What a group is sorted by, and what no two items may share that are in flight at the same time; None
            where a group may hold anything.
    """

    def __init__(
        self,
        run: Callable[[LaneT, Sequence[ItemT]], Awaitable[Sequence[ResultT | BaseException]]],
        lanes: Sequence[LaneT],
        activity: Activity[LaneT],
        *,
        alone: Callable[[LaneT, ItemT], Awaitable[ResultT]],
        key: Callable[[ItemT], Any] | None = None,
    ) -> None:
        self._run = run
        self._alone = alone
        self._idle = list(lanes)
        self._lanes = len(lanes)
        self._activity = activity
        self._key = key
        self._waiting: deque[_Call[ItemT, ResultT]] = deque()
        self._in_flight: set[Any] = set()
        self._launching = False
        self._lone = False
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly
        self._joining: list[asyncio.Future[None]] = []

    async def call(self, item: ItemT) -> ResultT:
        """Run one item, alone or in a group.

        Args:
            item: The item.

        Returns:
            The item's own result.
        """
        self._activity.calls += 1
        try:
            if self._activity.calls == 1:
                return await self._call_alone(item)
            future: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
            self._waiting.append(_Call(item, None if self._key is None else self._key(item), future))
            self._launch_soon()
            return await future
        finally:
            self._activity.calls -= 1

    async def join(self) -> None:
        """Wait until nothing is in flight or waiting; for use while closing, when no new call arrives."""
        if not self._is_quiet():
            idle = asyncio.get_running_loop().create_future()
            self._joining.append(idle)
            await idle

    async def _call_alone(self, item: ItemT) -> ResultT:
        # The same saga may be in a group meanwhile: one of the two then finds the other's version.
        self._lone = True
        try:
            return await self._alone(self._activity.lane, item)
        finally:
            self._lone = False
            self._tell_joining()

    def _launch_soon(self) -> None:
        if self._idle and not self._launching:
            self._launching = True
            asyncio.get_running_loop().call_soon(self._launch)

    def _launch(self) -> None:
        self._launching = False
        if self._idle and (group := self._next_group()):
            lane = self._idle.pop()
            task = asyncio.get_running_loop().create_task(self._fly(lane, group))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            if self._waiting:
                self._launch_soon()
        self._tell_joining()

    def _next_group(self) -> list[_Call[ItemT, ResultT]]:
        group: list[_Call[ItemT, ResultT]] = []
        later: list[_Call[ItemT, ResultT]] = []
        while self._waiting and len(group) < _MAX_GROUP:
            call = self._waiting.popleft()
            if call.future.done():  # its caller was cancelled before it was sent
                continue
            if self._key is not None and call.key in self._in_flight:
                later.append(call)
                continue
            if self._key is not None:
                self._in_flight.add(call.key)
            group.append(call)
        self._waiting.extendleft(reversed(later))
        if self._key is not None:
            group.sort(key=lambda call: call.key)
        return group

    async def _fly(self, lane: LaneT, group: list[_Call[ItemT, ResultT]]) -> None:
        try:
            outcomes = await self._outcomes(lane, [call.item for call in group])
            for call, outcome in zip(group, outcomes, strict=True):
                _settle(call.future, outcome)
        finally:
            for call in group:  # only a stopped event loop leaves any
                call.future.cancel()
            self._landed(lane, [call.key for call in group])

    async def _outcomes(self, lane: LaneT, items: list[ItemT]) -> Sequence[ResultT | BaseException]:
        try:
            return await self._run(lane, items)
        except StoreUnavailableError as error:
            return [error] * len(items)
        except Exception as error:  # noqa: BLE001 - each caller gets its own outcome, whatever it is
            if len(items) == 1:
                return [error]
            return [(await self._outcomes(lane, [item]))[0] for item in items]

    def _landed(self, lane: LaneT, keys: Sequence[Any]) -> None:
        self._in_flight.difference_update(keys)
        self._idle.append(lane)
        if self._waiting:
            # In the turn after the next one: the callers that were just answered may call again, and join.
            asyncio.get_running_loop().call_soon(self._launch_soon)
        self._tell_joining()

    def _is_quiet(self) -> bool:
        return not (self._lone or self._waiting) and len(self._idle) == self._lanes

    def _tell_joining(self) -> None:
        if self._joining and self._is_quiet():
            for idle in self._joining:
                if not idle.done():
                    idle.set_result(None)
            self._joining.clear()


def _settle(future: asyncio.Future[ResultT], outcome: ResultT | BaseException) -> None:
    if future.done():  # its caller was cancelled
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)

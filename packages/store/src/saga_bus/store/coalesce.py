"""The coalescer: calls that arrive while others are in progress leave together in groups."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from saga_bus.store.errors import InvalidSagaError, StoreUnavailableError

__all__ = ["Activity", "Coalescer"]

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Activity:
    """How many calls are in progress on the coalescers that share it.

    A store that has a coalescer for each kind of operation shares one among them: a caller is then alone when no
    other one does anything, and the first call of a burst of one kind leaves with the others of that burst.
    """

    def __init__(self) -> None:
        self.calls = 0


class _Call(NamedTuple, Generic[ItemT, ResultT]):
    item: ItemT
    key: Any
    future: asyncio.Future[ResultT]


class Coalescer(Generic[ItemT, ResultT]):
    """Groups concurrent calls into one statement, pipeline or transaction; there is no timer.

    A call that finds no other one in progress runs at once and alone. Other calls leave together: those of one turn
    of the event loop, and those that arrive while as many groups are in flight as may be. Each keeps its own result
    or error, and none is stopped by another one's cancellation.

    Args:
        run: Runs a group and returns one outcome for each item, in order; an outcome that is an exception
            is raised to its caller alone. If it raises, a group of several is run again one by one, so that
            one bad item does not fail its neighbours, except after a `StoreUnavailableError`, which every
            caller gets.
        max_size: The most items in a group.
        key: What no two items may share that are in flight at the same time, and what a group is sorted by:
            groups that lock rows in one order cannot deadlock. Calls of the same key run in the order of their
            arrival. Without it a group is in the order of arrival and may hold anything.
        max_in_flight: The most groups in flight. With more than one, ``run`` is called while it runs.
        share: The fewest items that are worth a group of their own. Where most of the calls in progress wait and two
            groups may leave, each takes half of them, if that is so many: from then on the callers of one go on while
            the database is at work on the other. Without it a group takes all that waits.
        alone: Runs the item of a lone caller, instead of a group of one. It does not count as a group in flight, so
            groups pass it by: it may wait for a lock that a group must not wait for.
        activity: Shared by the coalescers of a store; without it only this one's calls tell who is alone.

    Raises:
        InvalidSagaError: ``max_size``, ``max_in_flight`` or ``share`` is less than 1.
    """

    def __init__(
        self,
        run: Callable[[Sequence[ItemT]], Awaitable[Sequence[ResultT | BaseException]]],
        *,
        max_size: int = 128,
        key: Callable[[ItemT], Any] | None = None,
        max_in_flight: int = 1,
        share: int | None = None,
        alone: Callable[[ItemT], Awaitable[ResultT]] | None = None,
        activity: Activity | None = None,
    ) -> None:
        share = max_size if share is None else share
        for name, value in (("max_size", max_size), ("max_in_flight", max_in_flight), ("share", share)):
            if value < 1:
                raise InvalidSagaError(f"{name} must be at least 1, not {value}")
        self._run = run
        self._max_size = max_size
        self._share = share
        self._key = key
        self._alone = alone
        self._max_in_flight = self._free = max_in_flight
        self._activity = Activity() if activity is None else activity
        self._waiting: deque[_Call[ItemT, ResultT]] = deque()
        self._keys: set[Any] = set()  # of what is in flight
        self._lone = False
        self._looking = 0  # drainers that look in the next turn at what waits
        self._drainers: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly
        self._joining: list[asyncio.Future[None]] = []

    async def call(self, item: ItemT) -> ResultT:
        """Run one item, alone or in a group.

        Args:
            item: The item.

        Returns:
            The item's own result.
        """
        key = None if self._key is None else self._key(item)
        activity = self._activity
        activity.calls += 1
        try:
            if activity.calls == 1 and self._free == self._max_in_flight:  # a cancelled caller's group flies on
                # All of it right here: each call in between costs a lone caller time.
                self._keys.add(key)
                self._lone = True
                try:
                    if self._alone is not None:
                        return await self._alone(item)
                    return await self._run_alone(item)
                finally:
                    self._lone = False
                    self._keys.discard(key)
                    if self._waiting or self._joining:
                        self._go_on()
            future: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
            self._waiting.append(_Call(item, key, future))
            self._start()
            return await future
        finally:
            activity.calls -= 1

    async def join(self) -> None:
        """Wait until nothing is in flight or waiting; for use while closing, when no new call arrives."""
        if not self._is_idle():
            idle = asyncio.get_running_loop().create_future()
            self._joining.append(idle)
            await idle

    # -- a lone call ---------------------------------------------------------------------------------------

    async def _run_alone(self, item: ItemT) -> ResultT:
        self._free -= 1
        try:
            (outcome,) = _counted(await self._run((item,)), 1)
        finally:
            self._free += 1
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _go_on(self) -> None:
        while self._waiting and self._waiting[0].future.done():  # cancelled, as all are at a loop's end
            self._waiting.popleft()
        if self._waiting:
            self._start()
        if self._joining:
            self._tell_joining()

    # -- groups --------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Have a drainer look in the next turn, so that the other calls of this turn are there, too."""
        if self._free and not self._looking:
            self._free -= 1
            self._looking += 1
            drainer = asyncio.get_running_loop().create_task(self._drain())
            self._drainers.add(drainer)
            drainer.add_done_callback(self._drainers.discard)

    async def _drain(self) -> None:
        self._looking -= 1
        group: list[_Call[ItemT, ResultT]] = []
        try:
            while self._waiting:
                size = self._next_size()
                self._fill(group, size)
                if not group:
                    break  # what waits goes on when the calls of its keys have landed
                if self._waiting and len(group) == size:
                    self._start()
                outcomes = await self._outcomes([call.item for call in group])
                for call, outcome in zip(group, outcomes, strict=True):
                    _settle(call.future, outcome)
                self._land(group)
                # The callers that were just answered get a turn, so that their next calls join the next group.
                self._looking += 1
                try:
                    await asyncio.sleep(0)
                finally:
                    self._looking -= 1
        except Exception as error:  # noqa: BLE001 - keys that cannot be compared, say; else the callers would hang
            for call in self._given_up(group):
                _settle(call.future, error)
        except BaseException:  # only a stopped event loop
            for call in self._given_up(group):
                call.future.cancel()
            raise
        finally:
            self._land(group)
            self._free += 1
            self._tell_joining()

    def _next_size(self) -> int:
        waiting = len(self._waiting)
        others = self._activity.calls - waiting  # once they are at work meanwhile, halves would only be more groups
        halves = self._free and waiting >= 2 * self._share and waiting > 2 * others
        return min(self._max_size, math.ceil(waiting / 2) if halves else waiting)

    def _fill(self, group: list[_Call[ItemT, ResultT]], size: int) -> None:
        later: list[_Call[ItemT, ResultT]] = []
        try:
            while self._waiting and len(group) < size:
                call = self._waiting[0]
                taken = self._key is not None and call.key in self._keys
                self._waiting.popleft()
                if call.future.done():  # its caller was cancelled before it was sent
                    continue
                if taken:
                    later.append(call)
                else:
                    self._keys.add(call.key)
                    group.append(call)
        finally:
            self._waiting.extendleft(reversed(later))
        if self._key is not None:
            group.sort(key=lambda call: call.key)

    def _land(self, group: list[_Call[ItemT, ResultT]]) -> None:
        self._keys.difference_update([call.key for call in group])
        group.clear()

    def _given_up(self, group: list[_Call[ItemT, ResultT]]) -> list[_Call[ItemT, ResultT]]:
        calls = [*group, *self._waiting]
        self._waiting.clear()
        return calls

    async def _outcomes(self, items: list[ItemT]) -> Sequence[ResultT | BaseException]:
        try:
            return _counted(await self._run(items), len(items))
        except StoreUnavailableError as error:
            return [error] * len(items)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return [error] * len(items)  # the driver gave up on this group alone
        except _WrongCountError as error:  # what was written is not known, so nothing is run again
            return [error] * len(items)
        except Exception as error:  # noqa: BLE001 - each caller gets its own outcome, whatever it is
            if len(items) == 1:
                return [error]
            return [(await self._outcomes([item]))[0] for item in items]

    # -- the end -------------------------------------------------------------------------------------------

    def _is_idle(self) -> bool:
        return self._free == self._max_in_flight and not (self._lone or self._waiting)

    def _tell_joining(self) -> None:
        if self._joining and self._is_idle():
            for idle in self._joining:
                if not idle.done():
                    idle.set_result(None)
            self._joining.clear()


class _WrongCountError(RuntimeError):
    """A group's run returned more or fewer outcomes than it got items, so none can be told from another."""


def _counted(outcomes: Sequence[ResultT | BaseException], count: int) -> Sequence[ResultT | BaseException]:
    if len(outcomes) != count:
        raise _WrongCountError(f"run() returned {len(outcomes)} outcomes for {count} items")
    return outcomes


def _settle(future: asyncio.Future[ResultT], outcome: ResultT | BaseException) -> None:
    if future.done():  # its caller was cancelled
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)

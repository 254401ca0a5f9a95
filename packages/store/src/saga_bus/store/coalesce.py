"""The coalescer: calls that arrive while an earlier group is in flight leave together as the next group."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from saga_bus.store.errors import InvalidSagaError, StoreUnavailableError

__all__ = ["Coalescer"]

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class _Call(NamedTuple, Generic[ItemT, ResultT]):
    item: ItemT
    key: Any
    future: asyncio.Future[ResultT]


class Coalescer(Generic[ItemT, ResultT]):
    """Groups concurrent calls into one statement, pipeline or transaction; there is no timer.

    A call that finds nothing in flight runs at once and alone. Calls that arrive meanwhile wait and leave
    together. Each keeps its own result or error, and none is stopped by another one's cancellation.

    Args:
        run: Runs a group and returns one outcome for each item, in order; an outcome that is an exception
            is raised to its caller alone. If it raises, a group of several is run again one by one, so that
            one bad item does not fail its neighbours, except after a `StoreUnavailableError`, which every
            caller gets.
        max_size: The most items in a group.
        key: What two items of one group may not share, and what a group is sorted by: groups that lock
            rows in one order cannot deadlock. Calls of the same key run in the order of their arrival.
            Without it a group is in the order of arrival and may hold anything.

    Raises:
        InvalidSagaError: ``max_size`` is less than 1.
    """

    def __init__(
        self,
        run: Callable[[Sequence[ItemT]], Awaitable[Sequence[ResultT | BaseException]]],
        *,
        max_size: int = 128,
        key: Callable[[ItemT], Any] | None = None,
    ) -> None:
        if max_size < 1:
            raise InvalidSagaError(f"max_size must be at least 1, not {max_size}")
        self._run = run
        self._max_size = max_size
        self._key = key
        self._waiting: deque[_Call[ItemT, ResultT]] = deque()
        self._busy = False
        self._drainer: asyncio.Task[None] | None = None  # the loop itself holds tasks weakly
        self._joining: list[asyncio.Future[None]] = []

    async def call(self, item: ItemT) -> ResultT:
        """Run one item, alone or in a group.

        Args:
            item: The item.

        Returns:
            The item's own result.
        """
        if self._busy:
            key = None if self._key is None else self._key(item)
            future: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
            self._waiting.append(_Call(item, key, future))
            return await future
        self._busy = True
        try:
            (outcome,) = _counted(await self._run((item,)), 1)
        finally:
            self._hand_over()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def join(self) -> None:
        """Wait until nothing is in flight or waiting; for use while closing, when no new call arrives."""
        if self._busy:
            idle = asyncio.get_running_loop().create_future()
            self._joining.append(idle)
            await idle

    def _hand_over(self) -> None:
        while self._waiting and self._waiting[0].future.done():  # its caller was cancelled, as all are at a loop's end
            self._waiting.popleft()
        if self._waiting:
            self._drainer = asyncio.get_running_loop().create_task(self._drain())
        else:
            self._become_idle()

    def _become_idle(self) -> None:
        self._busy = False
        self._drainer = None
        for idle in self._joining:
            if not idle.done():
                idle.set_result(None)
        self._joining.clear()

    async def _drain(self) -> None:
        group: list[_Call[ItemT, ResultT]] = []
        try:
            while self._waiting:
                self._fill(group)
                if group:
                    outcomes = await self._outcomes([call.item for call in group])
                    for call, outcome in zip(group, outcomes, strict=True):
                        _settle(call.future, outcome)
                    group.clear()
                # The callers that were just answered get a turn, so that their next calls join the next group.
                await asyncio.sleep(0)
        except Exception as error:  # noqa: BLE001 - keys that cannot be compared, say; else the callers would hang
            for call in (*group, *self._waiting):
                _settle(call.future, error)
        finally:
            for call in (*group, *self._waiting):  # only a stopped event loop leaves any
                call.future.cancel()
            self._waiting.clear()
            self._become_idle()

    def _fill(self, group: list[_Call[ItemT, ResultT]]) -> None:
        taken: set[Any] = set()
        later: list[_Call[ItemT, ResultT]] = []
        try:
            while self._waiting and len(group) < self._max_size:
                call = self._waiting[0]
                repeated = self._key is not None and call.key in taken
                self._waiting.popleft()
                if call.future.done():  # its caller was cancelled before it was sent
                    continue
                if repeated:
                    later.append(call)
                else:
                    taken.add(call.key)
                    group.append(call)
        finally:
            self._waiting.extendleft(reversed(later))
        if self._key is not None:
            group.sort(key=lambda call: call.key)

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

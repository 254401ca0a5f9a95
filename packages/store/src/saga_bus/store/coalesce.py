"""The coalescer: calls that arrive while an earlier group is in flight leave together as the next group."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

from saga_bus.store.errors import StoreUnavailableError

__all__ = ["Coalescer"]

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


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
    """

    def __init__(
        self,
        run: Callable[[Sequence[ItemT]], Awaitable[Sequence[ResultT | BaseException]]],
        *,
        max_size: int = 128,
        key: Callable[[ItemT], Any] | None = None,
    ) -> None:
        self._run = run
        self._max_size = max_size
        self._key = key
        self._waiting: deque[tuple[ItemT, asyncio.Future[ResultT]]] = deque()
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
            future: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
            self._waiting.append((item, future))
            return await future
        self._busy = True
        try:
            (outcome,) = await self._run((item,))
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
        group: list[tuple[ItemT, asyncio.Future[ResultT]]] = []
        try:
            while self._waiting:
                group = self._next_group()
                if group:
                    outcomes = await self._outcomes([item for item, _ in group])
                    for (_, future), outcome in zip(group, outcomes, strict=True):
                        _settle(future, outcome)
                # The callers that were just answered get a turn, so that their next calls join the next group.
                await asyncio.sleep(0)
        finally:
            for _, future in (*group, *self._waiting):  # only a stopped event loop leaves any
                future.cancel()
            self._waiting.clear()
            self._become_idle()

    def _next_group(self) -> list[tuple[ItemT, asyncio.Future[ResultT]]]:
        group: list[tuple[ItemT, asyncio.Future[ResultT]]] = []
        if self._key is None:
            while self._waiting and len(group) < self._max_size:
                call = self._waiting.popleft()
                if not call[1].done():  # else its caller was cancelled before it was sent
                    group.append(call)
            return group
        key, taken, later = self._key, set[Hashable](), deque[tuple[ItemT, asyncio.Future[ResultT]]]()
        for call in self._waiting:
            if call[1].done():
                continue
            if len(group) < self._max_size and key(call[0]) not in taken:
                group.append(call)
            else:
                later.append(call)
            taken.add(key(call[0]))
        self._waiting = later
        group.sort(key=lambda call: key(call[0]))
        return group

    async def _outcomes(self, items: list[ItemT]) -> Sequence[ResultT | BaseException]:
        try:
            return await self._run(items)
        except StoreUnavailableError as error:
            return [error] * len(items)
        except Exception as error:  # noqa: BLE001 - each caller gets its own outcome, whatever it is
            if len(items) == 1:
                return [error]
            return [(await self._outcomes([item]))[0] for item in items]


def _settle(future: asyncio.Future[ResultT], outcome: ResultT | BaseException) -> None:
    if future.done():  # its caller was cancelled
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)

"""Deadlines: one timer for all exchanges with a server, as a timer for each would cost more than the rest of it."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

__all__ = ["Deadlines"]


class Deadlines:
    """Ends what takes too long, as `asyncio.timeout` does.

    Args:
        limit: How long each may take, in seconds; None for ever.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._running: dict[_Deadline, None] = {}  # the earliest first, as all may take as long
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> _Deadline:
        """A deadline for what is done in a ``with``, which raises `TimeoutError` then."""
        return _Deadline(self)

    def close(self) -> None:
        """Take the timer back; nothing may be running."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def begin(self, deadline: _Deadline, limit: float, loop: asyncio.AbstractEventLoop) -> None:
        """Let a deadline count from now on."""
        deadline.moment = loop.time() + limit
        self._running[deadline] = None
        if self._timer is None:
            self._timer = loop.call_at(deadline.moment, self._look, loop)

    def end(self, deadline: _Deadline) -> None:
        """Forget a deadline."""
        self._running.pop(deadline, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for deadline in list(self._running):
            if deadline.moment > loop.time():
                self._timer = loop.call_at(deadline.moment, self._look, loop)
                return
            del self._running[deadline]
            deadline.expire()


class _Deadline:
    """One deadline.

    Attributes:
        moment: When it is, by the loop's clock.
    """

    __slots__ = ("_cancelling", "_deadlines", "_is_over", "_task", "moment")

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._is_over = False
        self.moment = 0.0

    def __enter__(self) -> None:
        limit = self._deadlines.limit
        if limit is None:
            return
        loop = asyncio.get_running_loop()
        task: asyncio.Task[Any] | None = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a store is used inside a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._deadlines.begin(self, limit, loop)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deadlines.end(self)
        if self._is_over and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError(f"in {self._deadlines.limit:g} seconds") from error

    def expire(self) -> None:
        """Stop what is done."""
        self._is_over = True
        self._task.cancel()

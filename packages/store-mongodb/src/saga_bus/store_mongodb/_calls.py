"""Calls of the driver: no error of its own leaves them, and none of them takes for ever."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from bson.errors import BSONError
from pymongo.errors import PyMongoError

from saga_bus.store_mongodb._errors import translated

__all__ = ["Calls"]

_LOOKS = 12  # that are taken at what is under way, in the time that a call may take


class Calls:
    """Wraps calls of the driver: ``with calls(writing=...): await collection.find_one(...)``.

    One timer looks after all of them. (What pymongo's socketTimeoutMS does for each, a task and two timers, takes a
    tenth of the processor time of a lone get.)

    Args:
        patience: How long a call may take, in seconds; None for as long as the client's own settings let it.
    """

    def __init__(self, patience: float | None = None) -> None:
        self.patience = patience
        self._running: set[_Call] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, *, writing: bool) -> _Call:
        """A call.

        Args:
            writing: Whether a write is sent that commits by itself.

        Raises:
            SagaStoreError: Ours, from the driver's error; also when the time is over.
        """
        return _Call(self, writing=writing)

    def begin(self, call: _Call, patience: float) -> None:
        """Look after a call."""
        loop = call.task.get_loop()
        call.ends_at = loop.time() + patience
        self._running.add(call)
        if self._timer is None:
            self._timer = loop.call_later(patience / _LOOKS, self._look, loop, patience)

    def end(self, call: _Call) -> None:
        """It has come to its end."""
        self._running.discard(call)

    def _look(self, loop: asyncio.AbstractEventLoop, patience: float) -> None:
        self._timer = None
        for call in self._running:
            if not call.is_late and call.ends_at <= loop.time():
                call.is_late = True
                call.task.cancel()
        if self._running:
            self._timer = loop.call_later(patience / _LOOKS, self._look, loop, patience)


class _Call:
    """One call, or several that share the time."""

    __slots__ = ("_calls", "_cancelling", "_writing", "ends_at", "is_late", "task")

    def __init__(self, calls: Calls, *, writing: bool) -> None:
        self._calls = calls
        self._writing = writing
        self.task: asyncio.Task[Any]
        self.ends_at: float
        self.is_late = False

    def __enter__(self) -> None:
        patience = self._calls.patience
        if patience is not None and (task := asyncio.current_task()) is not None:
            self.task = task
            self._cancelling = task.cancelling()
            self._calls.begin(self, patience)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls.end(self)
        if self.is_late:
            is_ours = self.task.uncancel() <= self._cancelling  # and nobody else has cancelled the caller
            if is_ours and isinstance(error, asyncio.CancelledError):
                late = TimeoutError(f"in {self._calls.patience:g} seconds")
                late.__cause__ = error
                raise translated(late, writing=self._writing) from late
        if isinstance(error, (PyMongoError, BSONError, OSError)):
            raise translated(error, writing=self._writing) from error

"""Calls of the driver: no error of its own leaves them, and none of them takes for ever."""

from __future__ import annotations

from types import TracebackType

from bson.errors import BSONError
from pymongo.errors import PyMongoError

from saga_bus.store.deadlines import Deadlines
from saga_bus.store_mongodb._errors import translated

__all__ = ["Calls"]


class Calls:
    """Wraps calls of the driver: ``with calls(writing=...): await collection.find_one(...)``.

    One timer looks after all of them. (What pymongo's socketTimeoutMS does for each, a task and two timers, takes a
    tenth of the processor time of a lone get.)

    Args:
        patience: How long a call may take, in seconds; None for as long as the client's own settings let it.
    """

    def __init__(self, patience: float | None = None) -> None:
        self.deadlines = Deadlines(patience)

    def __call__(self, *, writing: bool) -> _Call:
        """A call.

        Args:
            writing: Whether a write is sent that commits by itself.

        Raises:
            SagaStoreError: Ours, from the driver's error; also when the time is over.
        """
        return _Call(self.deadlines, writing=writing)

    def close(self) -> None:
        """Take the timer back; no call may be under way."""
        self.deadlines.close()


class _Call:
    """One call, or several that share the time."""

    __slots__ = ("_deadline", "_writing")

    def __init__(self, deadlines: Deadlines, *, writing: bool) -> None:
        self._deadline = deadlines.start()
        self._writing = writing

    def __enter__(self) -> None:
        self._deadline.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._deadline.__exit__(kind, error, trace)
        except TimeoutError as late:
            raise translated(late, writing=self._writing) from late
        if isinstance(error, (PyMongoError, BSONError, OSError)):
            raise translated(error, writing=self._writing) from error

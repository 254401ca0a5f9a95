"""What both kinds of saga have in common: a state that remembers its events, and patience."""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

import msgspec

from saga_bus.core import RetryPolicy, SagaContext
from saga_bus.store import SagaState

__all__ = ["PATIENT", "DemoState", "Event", "note"]

# Four processes race on the same sagas of one file on purpose; nothing may end among the dead letters for that.
PATIENT = RetryPolicy(
    conflicts=200,
    unavailable=200,
    first_pause=timedelta(milliseconds=2),
    longest_pause=timedelta(milliseconds=100),
)


class DemoState(SagaState, kw_only=True):
    """What the states of both kinds of saga have in common.

    Args:
        applied: The ids of the events that made this state, in the order in which they were applied. The bus
            knows by itself which it has handled; this is for the check at the end, which trusts nobody.
    """

    applied: list[str] = msgspec.field(default_factory=list)

    def is_finished(self) -> bool:
        """Whether the saga has reached its end."""
        raise NotImplementedError

    def ending(self) -> str:
        """The outcome in words; the same for every order in which racing events may be applied."""
        raise NotImplementedError


class Event(Protocol):
    """A message that starts a saga or continues it."""

    @property
    def event_id(self) -> str:
        """Unique among all events; the id of the message."""
        ...

    @property
    def correlation_id(self) -> str:
        """Says which saga the event belongs to: the order's or the case's id."""
        ...


def note(state: DemoState, ctx: SagaContext) -> None:
    """Write down that the event in hand was applied, and end the saga if it was the last one.

    Args:
        state: The state, changed already.
        ctx: The event's context.
    """
    state.applied.append(ctx.message_id)
    if state.is_finished():
        ctx.complete()

"""A saga that remembers all that was ever applied to it, and tells the outside of each step.

Six messages make a saga, and any of them may come first, or twice. With the first it sets a timeout and schedules a
reminder of itself. It ends when all six messages, the reminder and the timeout are in; for each of these eight it
publishes an event, whose content says which one of the sagas' events it is.
"""

from __future__ import annotations

from datetime import timedelta

import msgspec

from saga_bus.core import RetryPolicy, SagaContext, SagaDefinition
from saga_bus.store import SagaState

__all__ = ["EVENTS", "SAGA_NAME", "STEPS", "CrashState", "Happened", "Step", "definition"]

SAGA_NAME = "CrashSaga"
STEPS = 6
EVENTS = frozenset({*(f"step-{number}" for number in range(STEPS)), "reminder", "timeout"})

_TIMEOUT = timedelta(seconds=1)
_REMINDER = timedelta(seconds=0.5)


class Step(msgspec.Struct, frozen=True):
    """One of the messages that make a saga."""

    saga: str
    number: int


class Reminder(msgspec.Struct, frozen=True):
    """What a saga schedules for itself."""

    saga: str


class Happened(msgspec.Struct, frozen=True):
    """What a saga tells the outside: ``what`` is one of `EVENTS`, each once a saga."""

    saga: str
    what: str


class CrashState(SagaState, kw_only=True):
    """All that was applied, in order."""

    saga: str
    log: list[str] = msgspec.field(default_factory=list)


def definition() -> SagaDefinition[CrashState]:
    """The saga, new, since a definition belongs to one bus."""
    crash = SagaDefinition(
        SAGA_NAME,
        CrashState,
        correlate="saga",
        # A broker or a store that is killed, too, is away for a while; a message must outlast that.
        retry=RetryPolicy(attempts=20, conflicts=200, unavailable=200, longest_pause=timedelta(seconds=1)),
        on_missing="retry",
        on_completed="dead-letter",
    )

    def note(state: CrashState, ctx: SagaContext, what: str) -> None:
        state.log.append(what)
        ctx.publish(Happened(saga=state.saga, what=what))
        if set(state.log) >= EVENTS:
            ctx.complete()

    @crash.starts(Step, new=lambda step: CrashState(saga=step.saga))
    async def step(message: Step, state: CrashState, ctx: SagaContext) -> None:
        if ctx.is_new:
            ctx.set_timeout(_TIMEOUT)
            ctx.schedule(Reminder(saga=message.saga), _REMINDER)
        note(state, ctx, f"step-{message.number}")

    @crash.continues(Reminder)
    async def reminder(_message: Reminder, state: CrashState, ctx: SagaContext) -> None:
        note(state, ctx, "reminder")

    @crash.on_timeout
    async def timeout(state: CrashState, ctx: SagaContext) -> None:
        note(state, ctx, "timeout")

    return crash

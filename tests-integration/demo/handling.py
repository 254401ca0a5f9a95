"""The heart of the demo: how one event changes one saga, safely beside other workers."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Protocol

import msgspec

from saga_bus.store import BaseSagaStore, ConcurrencyError, SagaState, StoreUnavailableError

__all__ = ["DemoState", "Event", "Handled", "handle"]

_MOST_ATTEMPTS = 200
_FIRST_PAUSE = 0.002  # seconds
_LONGEST_PAUSE = 0.1


class DemoState(SagaState, kw_only=True):
    """What the states of both kinds of saga have in common.

    Args:
        applied: The ids of the events that made this state, in the order in which they were applied. An
            event that is delivered a second time is recognised by it.
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
        """Unique among all events."""
        ...

    @property
    def correlation_id(self) -> str:
        """Says which saga the event belongs to: the order's or the case's id."""
        ...

    def begin(self) -> Any:
        """Make the state of the saga that this event starts."""
        ...

    def change(self, state: Any) -> None:
        """Apply the event to the state of its saga."""
        ...


class Handled(msgspec.Struct, frozen=True, tag=True):
    """A worker's acknowledgement: the event is in the stored state.

    Args:
        event_id: The event.
        conflicts: How often somebody else was faster and the event was tried again.
        unavailable: How often the store was too busy and the event was tried again.
        repeated: Whether the state had the event already, so that nothing was written.
    """

    event_id: str
    conflicts: int
    unavailable: int
    repeated: bool


async def handle(store: BaseSagaStore[Any], saga_name: str, event: Event) -> Handled:
    """Load the saga, change it, save it with the expected version; on a conflict, begin again.

    Args:
        store: The store that all workers share.
        saga_name: The name of the event's saga.
        event: The event; it may have been delivered before.

    Raises:
        SagaStoreError: The store failed in a way that trying again does not heal.
    """
    conflicts = unavailable = 0
    while True:
        try:
            # 1. Load by correlation id.
            state: DemoState | None = await store.get_by_correlation_id(saga_name, event.correlation_id)

            if state is None:
                # Nobody has heard of this saga: the event starts it. If another worker starts it at this
                # very moment, one of the two inserts fails with DuplicateSagaError, a ConcurrencyError.
                state = event.begin()
                state.applied.append(event.event_id)
                state.metadata = msgspec.structs.replace(state.metadata, is_completed=state.is_finished())
                await store.insert(saga_name, event.correlation_id, state)
            elif event.event_id in state.applied:
                # Delivered again, because the worker that applied it died before it could say so.
                return Handled(event.event_id, conflicts, unavailable, repeated=True)
            else:
                # 2. Change.
                expected_version = state.metadata.version
                event.change(state)
                state.applied.append(event.event_id)
                state.metadata = state.metadata.next(is_completed=state.is_finished())
                # 3. Save, if the stored version is still the one that was loaded.
                await store.update(saga_name, state, expected_version)
            return Handled(event.event_id, conflicts, unavailable, repeated=False)
        except ConcurrencyError:
            # 4. Somebody else was faster: forget this state and load again.
            conflicts += 1
            if conflicts + unavailable >= _MOST_ATTEMPTS:
                raise
        except StoreUnavailableError:
            unavailable += 1
            if conflicts + unavailable >= _MOST_ATTEMPTS:
                raise
        # A short random pause, so that the same two do not meet again.
        longest = min(_FIRST_PAUSE * 2 ** min(conflicts + unavailable, 10), _LONGEST_PAUSE)
        await asyncio.sleep(random.uniform(0, longest))

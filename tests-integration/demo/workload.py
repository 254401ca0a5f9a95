"""What is to be done: sagas, the events of each in stages, and how each has to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from demo.states import Event

__all__ = ["SagaPlan", "Workload"]

EventT = TypeVar("EventT", bound=Event)


@dataclass(frozen=True, slots=True)
class SagaPlan(Generic[EventT]):
    """One saga's events.

    Args:
        correlation_id: The saga's correlation id.
        stages: The events of one stage go to different workers at the same time; a stage begins when every
            event of the stage before is acknowledged, as an order is shipped only after it was paid.
        ending: What the final state's ``ending()`` must be.
    """

    correlation_id: str
    stages: tuple[tuple[EventT, ...], ...]
    ending: str

    def event_ids(self) -> list[str]:
        """The ids of all events."""
        return [event.event_id for stage in self.stages for event in stage]


@dataclass(frozen=True, slots=True)
class Workload(Generic[EventT]):
    """Everything that one run sends.

    Args:
        saga_name: The name of the sagas.
        telling_field: A field of their states that is worth counting by.
        plans: The sagas.
    """

    saga_name: str
    telling_field: str
    plans: Sequence[SagaPlan[EventT]]

    def event_count(self) -> int:
        """How many events there are."""
        return sum(len(stage) for plan in self.plans for stage in plan.stages)

"""A plain model of a saga store, written independently of every store, and what the machines write into stores."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain, combinations, product
from typing import Any

import msgspec

from saga_bus.store.query import SagaFilter
from saga_bus.store.state import SagaMetadata, SagaState

__all__ = [
    "CONTENTS",
    "FILTERS",
    "KEYS",
    "MOMENTS",
    "SAGA_NAMES",
    "STATE_TYPES",
    "Content",
    "MachineState",
    "Model",
    "descends",
    "place_in",
    "selects",
    "shown_fields",
]

_BASE = datetime(2024, 2, 29, 23, 59, 59, 999_998, tzinfo=UTC)
# Microseconds apart, so that a store which cuts them off sorts and selects wrongly.
MOMENTS = tuple(_BASE + timedelta(microseconds=step) for step in (0, 1, 2, 1_000, 86_400_000_000))
SAGA_NAMES = ("MachineSaga", "OtherMachineSaga")
# One pool for saga ids and correlation ids, so that a store which mixes them up is caught.
KEYS = ("k1", "k2", "k3")


class MachineState(SagaState, kw_only=True):
    """The state that the machines write.

    Args:
        note: A text.
        count: A number.
        weight: A float, NaN where a store must refuse the state.
    """

    note: str = ""
    count: int = 0
    weight: float = 0.0


STATE_TYPES: dict[str, type] = dict.fromkeys(SAGA_NAMES, MachineState)


class Content(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a script writes into a saga.

    Args:
        at: When this version is made, and the saga too when it is new.
        completed: Whether the saga has ended.
        archived: When it was archived.
        timeout: When its timeout is due.
        outbox: Whether a message waits in its outbox.
        note: A text.
        count: A number.
        weight: A float.
    """

    at: datetime = MOMENTS[0]
    completed: bool = False
    archived: datetime | None = None
    timeout: datetime | None = None
    outbox: bool = False
    note: str = ""
    count: int = 0
    weight: float = 0.0

    def __repr__(self) -> str:
        return f"Content({shown_fields(self)})"

    def state(self, saga_id: str, version: int, *, created: datetime | None = None) -> MachineState:
        """Make a state of it.

        Args:
            saga_id: Its id.
            version: Its version.
            created: When the saga started; ``at`` when left out.
        """
        metadata = SagaMetadata(
            saga_id=saga_id,
            version=version,
            created_at=created or self.at,
            updated_at=self.at,
            is_completed=self.completed,
            archived_at=self.archived,
            timeout_expires_at=self.timeout,
            outbox=({"message": "waits"},) if self.outbox else (),
        )
        return MachineState(metadata=metadata, note=self.note, count=self.count, weight=self.weight)


def shown_fields(struct: msgspec.Struct) -> str:
    """The fields of a struct that differ from their defaults, as in a call of its class.

    Args:
        struct: The struct, all of whose fields have defaults.
    """
    usual = msgspec.structs.asdict(type(struct)())
    fields = msgspec.structs.asdict(struct).items()
    return ", ".join(
        f"{name}={value.isoformat() if isinstance(value, datetime) else repr(value)}"
        for name, value in fields
        if value is not usual[name] and value != usual[name]
    )


# Contents and filters are chosen whole: hypothesis removes a step from a script only when the step took few
# choices, so a short script depends on it. The simplest come first, for what it shrinks towards.
CONTENTS = tuple(
    Content(at=at, completed=completed, archived=archived, timeout=timeout, outbox=outbox, note=note, count=count)
    for (note, count), outbox, timeout, archived, completed, at in product(
        (("", 0), ("n\N{CRAB}", 7)), (False, True), (None, *MOMENTS[:3]), (None, MOMENTS[1]), (False, True), MOMENTS
    )
)


def _some_filters() -> Iterator[SagaFilter]:
    fields: dict[str, tuple[Any, ...]] = {
        "saga_name": SAGA_NAMES,
        "completed": (True, False),
        "archived": (True, False),
        "outbox_pending": (True, False),
        "created_after": MOMENTS[:3],
        "created_before": MOMENTS[1:4],
        "updated_after": MOMENTS[:3],
        "updated_before": MOMENTS[1:4],
        "timeout_due_before": MOMENTS[1:4],
    }
    for names in chain.from_iterable(combinations(fields, number) for number in (0, 1, 2)):
        for values in product(*(fields[name] for name in names)):
            for order in (None, "newest", "stalest", "due") if "timeout_due_before" in names else (None, "stalest"):
                yield SagaFilter(**dict(zip(names, values, strict=True)), order=order)


FILTERS = tuple(_some_filters())


class Model:
    """What a right store holds: each saga by its name and id, with its correlation id and its state."""

    def __init__(self) -> None:
        self.sagas: dict[tuple[str, str], tuple[str, MachineState]] = {}

    def by_id(self, saga_name: str, saga_id: str) -> MachineState | None:
        """The saga of an id.

        Args:
            saga_name: Its name.
            saga_id: Its id.
        """
        found = self.sagas.get((saga_name, saga_id))
        return None if found is None else found[1]

    def by_correlation(self, saga_name: str, correlation_id: str) -> MachineState | None:
        """The saga of a correlation id.

        Args:
            saga_name: Its name.
            correlation_id: Its correlation id.
        """
        for (name, _), (correlation, state) in self.sagas.items():
            if (name, correlation) == (saga_name, correlation_id):
                return state
        return None

    def put(self, saga_name: str, correlation_id: str, state: MachineState) -> None:
        """Hold a state.

        Args:
            saga_name: Its saga name.
            correlation_id: Its correlation id.
            state: The state.
        """
        self.sagas[saga_name, state.metadata.saga_id] = (correlation_id, state)

    def replace(self, saga_name: str, state: MachineState) -> None:
        """Hold the next version of a saga that is there.

        Args:
            saga_name: Its saga name.
            state: The state.
        """
        correlation_id, _ = self.sagas[saga_name, state.metadata.saga_id]
        self.put(saga_name, correlation_id, state)

    def remove(self, saga_name: str, saga_id: str) -> None:
        """Hold a saga no more.

        Args:
            saga_name: Its name.
            saga_id: Its id.
        """
        self.sagas.pop((saga_name, saga_id), None)

    def find(self, where: SagaFilter) -> list[tuple[str, str, MachineState]]:
        """The sagas that a filter selects, in its order.

        Args:
            where: The filter.

        Returns:
            Saga name, correlation id and state of each.
        """
        found = [
            (saga_name, correlation_id, state)
            for (saga_name, _), (correlation_id, state) in self.sagas.items()
            if selects(where, saga_name, state.metadata)
        ]
        found.sort(key=lambda one: place_in(where, one[0], one[2].metadata), reverse=descends(where))
        return found


def _order(where: SagaFilter) -> str:
    return where.order or ("due" if where.timeout_due_before else "newest")


def descends(where: SagaFilter) -> bool:
    """Whether the last place of a filter's order comes first.

    Args:
        where: The filter.
    """
    return _order(where) == "newest"


def place_in(where: SagaFilter, saga_name: str, metadata: SagaMetadata) -> tuple[datetime, str, str]:
    """The place of a saga in the order of a filter that selects it.

    Args:
        where: The filter.
        saga_name: The saga's name.
        metadata: The metadata of its state.
    """
    moments = {
        "due": metadata.timeout_expires_at or metadata.created_at,
        "newest": metadata.created_at,
        "stalest": metadata.updated_at,
    }
    return moments[_order(where)], saga_name, metadata.saga_id


def selects(where: SagaFilter, saga_name: str, metadata: SagaMetadata) -> bool:
    """Whether a saga is what a filter asks for.

    Args:
        where: The filter.
        saga_name: The saga's name.
        metadata: The metadata of its state.
    """
    wanted: list[tuple[object, object]] = [
        (where.saga_name, saga_name),
        (where.completed, metadata.is_completed),
        (where.archived, metadata.archived_at is not None),
        (where.outbox_pending, len(metadata.outbox) > 0),
    ]
    if any(asked is not None and asked != actual for asked, actual in wanted):
        return False
    earlier = [
        (where.created_after, metadata.created_at),
        (metadata.created_at, where.created_before),
        (where.updated_after, metadata.updated_at),
        (metadata.updated_at, where.updated_before),
    ]
    if any(first is not None and second is not None and not first < second for first, second in earlier):
        return False
    if where.timeout_due_before is None:
        return True
    due = metadata.timeout_expires_at
    return not metadata.is_completed and due is not None and due < where.timeout_due_before

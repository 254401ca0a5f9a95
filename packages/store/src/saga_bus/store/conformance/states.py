"""The saga names and state types that the kit writes, so that a store can be told of them."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal
from uuid import UUID

import msgspec

from saga_bus.store.conformance import machine
from saga_bus.store.state import SagaMetadata, SagaState

__all__ = ["MAIN", "ODD_NAMES", "OTHER", "STATE_TYPES", "TYPED", "KitState", "TypedState", "follow", "new_state"]

MAIN = "ConformanceSaga"
OTHER = "OtherConformanceSaga"
TYPED = "TypedConformanceSaga"

# Names that differ only in what a careless comparison ignores, or that collide when joined with an id.
ODD_NAMES = (
    "conformancesaga",
    "CONFORMANCESAGA",
    "ConformanceSaga ",
    " ConformanceSaga",
    "Conformance\u0301Saga",
    "Conformanc\u00e9Saga",
    "Conformance%",
    "Conformance_aga",
    "a",
    "a:b",
    "a/b",
    "a|b",
    "a#b",
    "a\x1fb",
    "a\\b",
    "a.b",
    "a b",
    "meta",
    "idx",
    "__proto__",
    "'; DROP TABLE sagas; --",
    '"quoted"',
    "`quoted`",
    "[quoted]",
    "{quoted}",
    "$quoted",
    "n" * 128,
    "\N{CRAB}" * 128,
)


class KitState(SagaState, kw_only=True):
    """The state of most cases: a little of everything that JSON knows."""

    note: str = ""
    count: int = 0
    share: float = 0.0
    tags: list[str] = msgspec.field(default_factory=list)
    data: dict[str, Any] = msgspec.field(default_factory=dict)


class Colour(Enum):
    """An enumeration with values that are no names."""

    RED = "r"
    BLUE = "b"


class Line(msgspec.Struct):
    """A part of a state."""

    sku: str
    amount: Decimal


class TypedState(SagaState, kw_only=True):
    """A state with every type that the typed codec keeps."""

    at: datetime
    span: timedelta
    price: Decimal
    reference: UUID
    blob: bytes
    colour: Colour
    labels: set[str]
    pair: tuple[int, str]
    stage: Literal["open", "shut"]
    lines: list[Line]
    by_key: dict[str, Line]
    maybe: int | None = None


STATE_TYPES: dict[str, type] = {
    **dict.fromkeys((MAIN, OTHER, *ODD_NAMES), KitState),
    TYPED: TypedState,
    **machine.STATE_TYPES,
}
"""The state type of every saga name that the kit writes: ``MyStore(state_types=STATE_TYPES)``."""


def new_state(note: str = "", *, metadata: SagaMetadata | None = None, **fields: Any) -> KitState:
    """Make the state of a new saga.

    Args:
        note: A text to know the state by.
        metadata: Its metadata; fresh when left out.
        **fields: The state's other fields.
    """
    return KitState(metadata=metadata or SagaMetadata.fresh(), note=note, **fields)


def follow(state: KitState, note: str | None = None, *, count: int | None = None, **changes: Any) -> KitState:
    """Make the next version of a state, as a copy.

    Args:
        state: The version before.
        note: The new note; the old one when left out.
        count: The new count; the old one when left out.
        **changes: Metadata to change.
    """
    return msgspec.structs.replace(
        state,
        metadata=state.metadata.next(**changes),
        note=state.note if note is None else note,
        count=state.count if count is None else count,
    )

"""Finding sagas: the filter, the page and the opaque keyset cursor between two pages."""

from __future__ import annotations

import base64
from datetime import datetime
from hashlib import blake2b
from typing import Any, Generic, Literal, TypeVar

import msgspec

from saga_bus.store.errors import InvalidSagaError

__all__ = [
    "CursorPosition",
    "Page",
    "SagaFilter",
    "SagaOrder",
    "SagaRecord",
    "decode_cursor",
    "encode_cursor",
    "order_of",
]

T_co = TypeVar("T_co", covariant=True)

SagaOrder = Literal["newest", "stalest", "due"]

_DIGEST_BYTES = 8


class SagaFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which sagas to find; every field that is set must hold.

    Args:
        saga_name: Only sagas of this name.
        completed: Only completed ones, or only running ones.
        archived: Only archived ones, or only those that are not.
        created_after: Created strictly later than this (aware).
        created_before: Created strictly earlier than this (aware).
        updated_after: Last updated strictly later than this (aware).
        updated_before: Last updated strictly earlier than this (aware).
        timeout_due_before: Running, with a timeout that is due strictly earlier than this (aware).
        outbox_pending: Only sagas with messages not yet confirmed sent, or only those without.
        order: "newest" created first, "stalest" (least recently updated) first, or "due": earliest timeout
            first, which needs ``timeout_due_before`` and is the default with it. The default is "newest"
            otherwise. Every order is total: sagas of one moment follow in the order of their names and ids, in
            the same direction.
    """

    saga_name: str | None = None
    completed: bool | None = None
    archived: bool | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    updated_after: datetime | None = None
    updated_before: datetime | None = None
    timeout_due_before: datetime | None = None
    outbox_pending: bool | None = None
    order: SagaOrder | None = None


class SagaRecord(msgspec.Struct, Generic[T_co], frozen=True):
    """One saga that was found.

    Args:
        saga_name: The saga's name.
        correlation_id: The saga's correlation id.
        state: The saga's state.
    """

    saga_name: str
    correlation_id: str
    state: T_co


class Page(msgspec.Struct, Generic[T_co], frozen=True):
    """Some of the sagas that were found.

    Args:
        items: The records, in the filter's order.
        cursor: What to give to the next ``find`` for the records that follow, None when there are none.
    """

    items: tuple[SagaRecord[T_co], ...]
    cursor: str | None = None


class CursorPosition(msgspec.Struct, frozen=True, array_like=True):
    """The place of the last record of a page in the total order.

    Args:
        moment: The timestamp that is ordered by, in microseconds since 1970 (UTC).
        saga_name: The record's saga name.
        saga_id: The record's saga id.
    """

    moment: int
    saga_name: str
    saga_id: str


def order_of(saga_filter: SagaFilter) -> SagaOrder:
    """The order that a filter asks for.

    Args:
        saga_filter: The filter.

    Raises:
        InvalidSagaError: An unknown order, or "due" without ``timeout_due_before``.
    """
    order = saga_filter.order
    if order is None:
        return "newest" if saga_filter.timeout_due_before is None else "due"
    if order not in ("newest", "stalest", "due"):
        raise InvalidSagaError(f"unknown order {order!r}: 'newest', 'stalest' or 'due'")
    if order == "due" and saga_filter.timeout_due_before is None:
        raise InvalidSagaError("the order 'due' needs timeout_due_before")
    return order


def encode_cursor(saga_filter: SagaFilter, position: CursorPosition) -> str:
    """Make the opaque cursor that continues after a position.

    Args:
        saga_filter: The filter that the cursor belongs to.
        position: The place of the last record of the page.
    """
    payload = msgspec.msgpack.encode(position)
    return base64.urlsafe_b64encode(_digest(saga_filter, payload) + payload).decode().rstrip("=")


def decode_cursor(saga_filter: SagaFilter, cursor: str) -> CursorPosition:
    """Read a cursor back.

    Args:
        saga_filter: The filter of the same search.
        cursor: The cursor of its last page.

    Raises:
        InvalidSagaError: The cursor was changed, or it belongs to another filter.
    """
    refused = InvalidSagaError("the cursor was changed, or it belongs to another filter")
    if not isinstance(cursor, str):
        raise refused
    try:
        raw = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        digest, payload = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
        position = msgspec.msgpack.decode(payload, type=CursorPosition)
    except (ValueError, msgspec.MsgspecError) as error:  # base64 and UTF-8 have errors of their own, all ValueErrors
        raise refused from error
    if digest != _digest(saga_filter, payload) or encode_cursor(saga_filter, position) != cursor:
        raise refused
    return position


def _digest(saga_filter: SagaFilter, payload: bytes) -> bytes:
    # A checksum, not a signature: a cursor carries no rights, and its parts are only ever bound as parameters.
    fields: tuple[Any, ...] = msgspec.structs.astuple(saga_filter)
    return blake2b(msgspec.json.encode(fields) + payload, digest_size=_DIGEST_BYTES).digest()

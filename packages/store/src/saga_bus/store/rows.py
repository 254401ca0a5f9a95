"""What passes between a store and its backend: flat rows and checked queries."""

from __future__ import annotations

from datetime import datetime

import msgspec

from saga_bus.store.query import CursorPosition, SagaFilter, SagaOrder

__all__ = ["FoundRow", "SagaQuery", "SagaRow"]


class SagaRow(msgspec.Struct, frozen=True, gc=False):
    """One version of a saga, flat: the document is the truth, the rest is an index over its metadata.

    Args:
        saga_name: The saga's name.
        saga_id: The saga's id.
        version: The version.
        document: The encoded state, metadata included.
        is_completed: Whether the saga has ended.
        created_at: When it started, aware, in UTC.
        updated_at: When this version was made, aware, in UTC.
        archived_at: When it was archived, aware, in UTC.
        timeout_expires_at: When its timeout is due, aware, in UTC.
        outbox_pending: Whether messages are saved but not yet confirmed sent.
    """

    saga_name: str
    saga_id: str
    version: int
    document: bytes
    is_completed: bool
    created_at: datetime
    updated_at: datetime
    archived_at: datetime | None
    timeout_expires_at: datetime | None
    outbox_pending: bool


class SagaQuery(msgspec.Struct, frozen=True):
    """A page to fetch.

    Args:
        where: Which sagas; checked.
        order: The total order: "newest" is (created_at, saga_name, saga_id) descending, "stalest" is
            (updated_at, saga_name, saga_id) ascending, "due" is (timeout_expires_at, saga_name, saga_id)
            ascending.
        limit: The most rows, at least 1.
        after: Only rows strictly behind this place in the order.
    """

    where: SagaFilter
    order: SagaOrder
    limit: int
    after: CursorPosition | None


class FoundRow(msgspec.Struct, frozen=True, gc=False):
    """One row that a query found.

    Args:
        saga_name: The saga's name.
        saga_id: The saga's id.
        correlation_id: The saga's correlation id.
        moment: The timestamp that the query orders by, in microseconds since 1970 (UTC).
        document: The encoded state.
    """

    saga_name: str
    saga_id: str
    correlation_id: str
    moment: int
    document: bytes

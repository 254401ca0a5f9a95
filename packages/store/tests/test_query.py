"""Cursors that cannot be bent, and the orders of a filter."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga_bus.store import CursorPosition, InvalidSagaError, SagaFilter
from saga_bus.store.query import decode_cursor, encode_cursor, order_of

NOW = datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128)
POSITIONS = st.builds(CursorPosition, st.integers(-(2**62), 2**62), KEYS, KEYS)
FILTER = SagaFilter(saga_name="Order", updated_before=NOW)
FILTERS = [
    SagaFilter(),
    SagaFilter(saga_name="Order"),
    SagaFilter(saga_name="order"),
    SagaFilter(completed=True),
    SagaFilter(completed=False),
    SagaFilter(archived=True),
    SagaFilter(outbox_pending=True),
    SagaFilter(created_after=NOW),
    SagaFilter(created_before=NOW),
    SagaFilter(updated_after=NOW),
    SagaFilter(updated_before=NOW),
    SagaFilter(timeout_due_before=NOW),
    SagaFilter(timeout_due_before=NOW.replace(microsecond=7)),
    SagaFilter(order="stalest"),
]


@given(position=POSITIONS)
def test_a_cursor_gives_its_position_back(position: CursorPosition) -> None:
    cursor = encode_cursor(FILTER, position)
    assert set(cursor) <= set(ALPHABET)
    assert decode_cursor(FILTER, cursor) == position


@given(position=POSITIONS, data=st.data())
def test_a_cursor_with_one_character_changed_removed_or_added_is_refused(
    position: CursorPosition, data: st.DataObject
) -> None:
    cursor = encode_cursor(FILTER, position)
    at = data.draw(st.integers(0, len(cursor) - 1))
    char = data.draw(st.sampled_from(ALPHABET + "=+/ \n\x00é").filter(lambda char: char != cursor[at]))
    for changed in (cursor[:at] + char + cursor[at + 1 :], cursor[:at] + char + cursor[at:]):
        with pytest.raises(InvalidSagaError, match="the cursor was changed"):
            decode_cursor(FILTER, changed)
    with pytest.raises(InvalidSagaError):
        decode_cursor(FILTER, cursor[:at])


@pytest.mark.parametrize("own", FILTERS, ids=repr)
def test_a_cursor_belongs_to_one_filter(own: SagaFilter) -> None:
    cursor = encode_cursor(own, CursorPosition(1, "Order", "1"))
    for other in FILTERS:
        if other is own:
            assert decode_cursor(other, cursor) == CursorPosition(1, "Order", "1")
        else:
            with pytest.raises(InvalidSagaError, match="another filter"):
                decode_cursor(other, cursor)


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "A",
        "AAAA",
        "=" * 8,
        "A" * 1001,
        "\x00",
        "üüüü",
        "\ud800",
        "\U0001f600",
        base64.urlsafe_b64encode(b"\0" * 8 + msgspec.msgpack.encode([1, "Order", "1"])).decode().rstrip("="),
        base64.urlsafe_b64encode(b"\0" * 8 + msgspec.msgpack.encode({"moment": 1})).decode().rstrip("="),
        base64.urlsafe_b64encode(b"\0" * 8 + b"\x93\x01\xa1\xff\xa1a").decode().rstrip("="),
        0,
        b"AAAA",
        CursorPosition(1, "Order", "1"),
    ],
    ids=ascii,
)
def test_what_is_no_cursor_is_refused(cursor: Any) -> None:
    with pytest.raises(InvalidSagaError):
        decode_cursor(FILTER, cursor)


@pytest.mark.parametrize(
    ("saga_filter", "order"),
    [
        (SagaFilter(), "newest"),
        (SagaFilter(order="newest"), "newest"),
        (SagaFilter(order="stalest"), "stalest"),
        (SagaFilter(timeout_due_before=NOW), "due"),
        (SagaFilter(timeout_due_before=NOW, order="due"), "due"),
        (SagaFilter(timeout_due_before=NOW, order="stalest"), "stalest"),
        (SagaFilter(timeout_due_before=NOW, order="newest"), "newest"),
    ],
    ids=repr,
)
def test_the_order_is_newest_unless_asked_or_timeouts_are_looked_for(saga_filter: SagaFilter, order: str) -> None:
    assert order_of(saga_filter) == order


def test_due_needs_a_moment_and_unknown_orders_are_refused() -> None:
    with pytest.raises(InvalidSagaError, match="needs timeout_due_before"):
        order_of(SagaFilter(order="due"))
    with pytest.raises(InvalidSagaError, match="unknown order 'oldest'"):
        order_of(SagaFilter(order="oldest"))  # type: ignore[arg-type]


def test_a_filter_is_frozen() -> None:
    with pytest.raises(AttributeError):
        SagaFilter().saga_name = "Order"  # type: ignore[misc]

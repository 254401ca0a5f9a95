"""The state model: ids, metadata and its next version."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from saga_bus.store import HasMetadata, InvalidSagaError, SagaMetadata, SagaState, UntypedSagaState, new_saga_id

NAIVE = datetime(2024, 1, 2)  # noqa: DTZ001
THEN = datetime(2024, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
FIRST = datetime(1, 1, 1, tzinfo=UTC)
LAST = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
EAST = timezone(timedelta(hours=14))
WEST = timezone(timedelta(hours=-12))
MOMENTS = ("created_at", "updated_at", "archived_at", "timeout_expires_at")


class OrderState(SagaState, kw_only=True):
    order_id: str


def metadata(**changes: Any) -> SagaMetadata:
    return SagaMetadata(**{"saga_id": "1", "version": 0, "created_at": THEN, "updated_at": THEN, **changes})


def test_a_saga_id_is_a_uuid_of_version_7_that_begins_with_the_milliseconds() -> None:
    before = time.time_ns() // 1_000_000
    saga_id = uuid.UUID(new_saga_id())
    assert (saga_id.version, saga_id.variant) == (7, uuid.RFC_4122)
    assert before <= saga_id.int >> 80 <= time.time_ns() // 1_000_000


def test_saga_ids_of_later_milliseconds_sort_later_and_none_is_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    millis = [0, 1, 10**12, 10**12 + 1, 2**47, 2**48 - 1]
    ids = []
    for moment in millis:
        monkeypatch.setattr(time, "time_ns", lambda moment=moment: moment * 1_000_000)
        ids.append(new_saga_id())
    assert ids == sorted(ids)
    assert len({new_saga_id() for _ in range(1000)}) == 1000


def test_the_fixed_bits_of_an_id_hold_whatever_the_random_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for byte in (b"\x00", b"\xff"):
        monkeypatch.setattr("os.urandom", lambda count, byte=byte: byte * count)
        saga_id = uuid.UUID(new_saga_id())
        assert (saga_id.version, saga_id.variant) == (7, uuid.RFC_4122)


def test_fresh_metadata_starts_now_at_version_0_with_nothing_else_set() -> None:
    before = datetime.now(UTC)
    fresh = SagaMetadata.fresh()
    assert before <= fresh.created_at == fresh.updated_at <= datetime.now(UTC)
    assert fresh.created_at.tzinfo is UTC
    assert fresh == SagaMetadata(
        saga_id=fresh.saga_id, version=0, created_at=fresh.created_at, updated_at=fresh.created_at
    )
    assert SagaMetadata.fresh("mine").saga_id == "mine"
    assert SagaMetadata.fresh("").saga_id == ""  # to be refused by the store, not replaced


def test_every_state_gets_fresh_metadata_of_its_own() -> None:
    one, two = OrderState(order_id="a"), OrderState(order_id="a")
    assert one.metadata.saga_id != two.metadata.saga_id
    untyped, other = UntypedSagaState(), UntypedSagaState()
    untyped.data["x"] = 1
    assert other.data == {}
    assert isinstance(one, HasMetadata)


def test_next_raises_the_version_keeps_the_rest_and_leaves_its_origin_alone() -> None:
    first = metadata(trace_parent="p", handled=("m",), archived_at=THEN)
    second = first.next(now=THEN + timedelta(seconds=1), is_completed=True, outbox=({"a": 1},))
    assert second == metadata(
        version=1,
        updated_at=THEN + timedelta(seconds=1),
        trace_parent="p",
        handled=("m",),
        archived_at=THEN,
        is_completed=True,
        outbox=({"a": 1},),
    )
    assert first == metadata(trace_parent="p", handled=("m",), archived_at=THEN)


def test_next_is_made_now_when_not_told_otherwise() -> None:
    before = datetime.now(UTC)
    assert before <= metadata().next().updated_at <= datetime.now(UTC)


@pytest.mark.parametrize("now", [THEN - timedelta(days=1), FIRST, THEN])
def test_updated_at_never_goes_back(now: datetime) -> None:
    assert metadata().next(now=now).updated_at == THEN


def test_a_timeout_is_due_that_long_from_now_unless_told_and_none_clears_it() -> None:
    hour = timedelta(hours=1)
    now = THEN + timedelta(minutes=1)
    waiting = metadata().next(now=now, timeout=hour)
    assert (waiting.timeout, waiting.timeout_expires_at) == (hour, now + hour)
    kept = waiting.next(now=now + hour)
    assert (kept.timeout, kept.timeout_expires_at) == (hour, now + hour)
    cleared = kept.next(timeout=None)
    assert (cleared.timeout, cleared.timeout_expires_at) == (None, None)
    told = metadata().next(now=now, timeout=hour, timeout_expires_at=LAST)
    assert (told.timeout, told.timeout_expires_at) == (hour, LAST)
    with pytest.raises(InvalidSagaError, match="outside the years 1 to 9999"):
        metadata().next(timeout=timedelta.max)


@pytest.mark.parametrize("field", MOMENTS)
@pytest.mark.parametrize("value", [NAIVE, "2024-01-02T00:00:00Z", 0], ids=str)
def test_a_naive_or_foreign_timestamp_is_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidSagaError, match=f"metadata.{field}"):
        metadata(**{field: value})


@pytest.mark.parametrize("field", ["now", "archived_at", "timeout_expires_at"])
def test_next_refuses_a_naive_timestamp(field: str) -> None:
    with pytest.raises(InvalidSagaError, match="naive"):
        metadata().next(**{field: NAIVE})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", MOMENTS)
@pytest.mark.parametrize("zone", [EAST, WEST, timezone.utc, timezone(timedelta(0), "Zulu")], ids=str)  # noqa: UP017
def test_a_timestamp_of_another_zone_becomes_the_same_moment_in_utc(field: str, zone: timezone) -> None:
    value = getattr(metadata(**{field: THEN.astimezone(zone)}), field)
    assert value == THEN
    assert value.tzinfo is UTC


@pytest.mark.parametrize("moment", [FIRST, LAST])
@pytest.mark.parametrize("field", MOMENTS)
def test_the_first_and_the_last_moment_are_fine(field: str, moment: datetime) -> None:
    assert getattr(metadata(**{field: moment}), field) == moment


@pytest.mark.parametrize("moment", [FIRST.replace(tzinfo=EAST), LAST.replace(tzinfo=WEST)])
@pytest.mark.parametrize("field", MOMENTS)
def test_a_moment_that_leaves_the_calendar_in_utc_is_refused(field: str, moment: datetime) -> None:
    with pytest.raises(InvalidSagaError, match="outside the years 1 to 9999"):
        metadata(**{field: moment})


def test_metadata_is_frozen() -> None:
    with pytest.raises(AttributeError):
        metadata().version = 5  # type: ignore[misc]


def test_what_has_its_default_is_left_out_of_the_document() -> None:
    assert msgspec.to_builtins(metadata()) == {
        "saga_id": "1",
        "version": 0,
        "created_at": "2024-01-02T03:04:05.678901Z",
        "updated_at": "2024-01-02T03:04:05.678901Z",
    }
    assert msgspec.to_builtins(metadata(is_completed=True, outbox=({"m": 1},)))["outbox"] == ({"m": 1},)

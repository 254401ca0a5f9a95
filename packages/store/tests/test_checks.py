"""The rules for arguments."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest

from saga_bus.store import InvalidSagaError, SagaFilter, SagaMetadata
from saga_bus.store.checks import (
    check_correlation_id,
    check_count,
    check_filter,
    check_moment,
    check_saga_id,
    check_saga_name,
    check_version,
    metadata_of,
    microseconds,
)

KEYS = [(check_saga_name, 128), (check_saga_id, 128), (check_correlation_id, 256)]
NAIVE = datetime(2024, 1, 2)  # noqa: DTZ001
NOW = datetime(2024, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(("check", "most"), KEYS)
@pytest.mark.parametrize("char", ["a", " ", "é", "\U0001f600", "\x01", "'", "\uffff"])
def test_the_longest_key_is_counted_in_code_points(check: Callable[[str], None], most: int, char: str) -> None:
    check(char)
    check(char * most)
    with pytest.raises(InvalidSagaError, match=f"1 to {most} characters, not {most + 1}"):
        check(char * (most + 1))


@pytest.mark.parametrize(("check", "most"), KEYS)
@pytest.mark.parametrize(
    "value",
    ["", "\x00", "a\x00b", "é\x00", "\ud800", "a\udfff", "\udbff\U0001f600", b"a", 1, None, ["a"]],
    ids=ascii,
)
def test_a_key_that_some_backend_would_change_is_refused(
    check: Callable[[Any], None], most: int, value: object
) -> None:
    with pytest.raises(InvalidSagaError):
        check(value)


@pytest.mark.parametrize("version", [0, 1, 2**63 - 1])
def test_a_version_is_an_int_of_63_bits(version: int) -> None:
    check_version("version", version)


@pytest.mark.parametrize("version", [-1, 2**63, True, False, 1.0, "1", None])
def test_what_is_no_version_is_refused(version: Any) -> None:
    with pytest.raises(InvalidSagaError, match="the expected version must be an int"):
        check_version("expected version", version)


def test_a_count_has_a_least_value() -> None:
    check_count("limit", 0, least=0)
    check_count("limit", 10**30, least=0)
    for number in (-1, True, 1.0, "1", None):
        with pytest.raises(InvalidSagaError, match="the limit must be an int of at least 0"):
            check_count("limit", number, least=0)  # type: ignore[arg-type]
    with pytest.raises(InvalidSagaError):
        check_count("batch size", 0, least=1)


@pytest.mark.parametrize("moment", [NAIVE, date(2024, 1, 2), "2024-01-02T00:00:00Z", 0, None])
def test_what_is_no_moment_is_refused(moment: Any) -> None:
    with pytest.raises(InvalidSagaError, match="before"):
        check_moment("before", moment)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"saga_name": "Order", "completed": False, "archived": True, "outbox_pending": False},
        {"created_after": NOW, "created_before": NOW, "updated_after": NOW, "updated_before": NOW},
        {"timeout_due_before": NOW, "order": "due"},
        {"timeout_due_before": NOW, "order": "newest"},
        {"order": "stalest"},
    ],
)
def test_a_good_filter_passes(fields: dict[str, Any]) -> None:
    check_filter(SagaFilter(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"saga_name": ""},
        {"saga_name": 1},
        *({field: value} for field in ("completed", "archived", "outbox_pending") for value in (0, 1, "yes")),
        *(
            {field: NAIVE}
            for field in ("created_after", "created_before", "updated_after", "updated_before", "timeout_due_before")
        ),
        {"created_after": "2024-01-02"},
        {"order": "oldest"},
        {"order": []},
        {"order": "due"},
    ],
    ids=str,
)
def test_a_bad_field_of_a_filter_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidSagaError):
        check_filter(SagaFilter(**fields))


@pytest.mark.parametrize("value", [None, {}, {"saga_name": "Order"}, "Order"])
def test_what_is_no_filter_is_refused(value: Any) -> None:
    with pytest.raises(InvalidSagaError, match="SagaFilter"):
        check_filter(value)


@pytest.mark.parametrize("state", [None, {}, SimpleNamespace(), SimpleNamespace(metadata={"version": 0})], ids=str)
def test_a_state_without_metadata_is_refused(state: Any) -> None:
    with pytest.raises(InvalidSagaError, match="must be a SagaMetadata"):
        metadata_of(state)


@pytest.mark.parametrize(
    ("saga_id", "version"), [("", 0), ("a" * 129, 0), ("\x00", 0), (7, 0), ("a", -1), ("a", True), ("a", 2**63)]
)
def test_metadata_with_a_bad_id_or_version_is_refused(saga_id: Any, version: Any) -> None:
    metadata = SagaMetadata(saga_id=saga_id, version=version, created_at=NOW, updated_at=NOW)
    with pytest.raises(InvalidSagaError):
        metadata_of(SimpleNamespace(metadata=metadata))


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(2024, 2, 29, 12, 0, 0, 1, tzinfo=timezone(timedelta(hours=5, minutes=45))),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    ],
    ids=str,
)
def test_microseconds_are_exact(moment: datetime) -> None:
    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds(moment)) == moment

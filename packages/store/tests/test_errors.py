"""The error tree: its shape, what may be retried, messages, and copies."""

from __future__ import annotations

import copy
import pickle

import pytest

from saga_bus.store import errors
from saga_bus.store.errors import (
    ConcurrencyError,
    DuplicateSagaError,
    InvalidSagaError,
    OutcomeUnknownError,
    SagaNotFoundError,
    SagaStoreError,
    SchemaError,
    StateCodecError,
    StateDecodeError,
    StateEncodeError,
    StateTooLargeError,
    StoreClosedError,
    StoreUnavailableError,
    UnsupportedOperationError,
    version_conflict,
)

PARENTS = {
    SagaStoreError: Exception,
    ConcurrencyError: SagaStoreError,
    DuplicateSagaError: ConcurrencyError,
    SagaNotFoundError: ConcurrencyError,
    StoreUnavailableError: SagaStoreError,
    OutcomeUnknownError: StoreUnavailableError,
    InvalidSagaError: SagaStoreError,
    StateCodecError: SagaStoreError,
    StateEncodeError: StateCodecError,
    StateDecodeError: StateCodecError,
    StateTooLargeError: StateCodecError,
    SchemaError: SagaStoreError,
    StoreClosedError: SagaStoreError,
    UnsupportedOperationError: SagaStoreError,
}
RETRYABLE = {ConcurrencyError, DuplicateSagaError, SagaNotFoundError, StoreUnavailableError, OutcomeUnknownError}

SAMPLES = [
    (
        ConcurrencyError(saga_name="Order", saga_id="1", expected_version=3, actual_version=5),
        "saga 'Order' '1': expected version 3, found version 5",
    ),
    (
        ConcurrencyError(saga_name="Order", saga_id="1", expected_version=3),
        "saga 'Order' '1': expected version 3, found another version",
    ),
    (ConcurrencyError(saga_name="Order", saga_id="1", message="own words"), "own words"),
    (
        DuplicateSagaError(saga_name="Order", saga_id="1", correlation_id="c", conflict="saga_id"),
        "saga 'Order': the saga id '1' is taken",
    ),
    (
        DuplicateSagaError(saga_name="Order", saga_id="1", correlation_id="c", conflict="correlation_id"),
        "saga 'Order': the correlation id 'c' is taken",
    ),
    (SagaNotFoundError(saga_name="Order", saga_id="1"), "saga 'Order' '1': not found"),
    (
        SagaNotFoundError(saga_name="Order", saga_id="1", expected_version=2),
        "saga 'Order' '1': not found, expected version 2",
    ),
    (
        StateTooLargeError(saga_name="Order", saga_id="1", size=11, limit=10),
        "saga 'Order' '1': the state has 11 bytes, the limit is 10",
    ),
    *(
        (kind("words"), "words")
        for kind in PARENTS
        if kind not in (ConcurrencyError, DuplicateSagaError, SagaNotFoundError, StateTooLargeError)
    ),
]


def test_the_tree_is_exactly_the_documented_one() -> None:
    found = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, BaseException) and kind.__module__ == errors.__name__
    }
    assert found == set(PARENTS)
    assert {kind: kind.__bases__[0] for kind in found} == PARENTS
    assert issubclass(InvalidSagaError, ValueError)


@pytest.mark.parametrize("kind", PARENTS)
def test_only_conflicts_and_unavailable_stores_may_be_retried(kind: type[SagaStoreError]) -> None:
    assert kind.retryable is (kind in RETRYABLE)


@pytest.mark.parametrize(("error", "message"), SAMPLES)
def test_the_message_says_what_happened(error: SagaStoreError, message: str) -> None:
    assert str(error) == message


@pytest.mark.parametrize("error", [error for error, _ in SAMPLES], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, *(lambda e, p=p: pickle.loads(pickle.dumps(e, p)) for p in range(6))],
    ids=["copy", "deepcopy", *(f"pickle{protocol}" for protocol in range(6))],
)
def test_a_copy_keeps_type_message_and_fields(error: SagaStoreError, again: object) -> None:
    assert callable(again)
    twin = again(error)
    assert twin is not error
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert twin.args == error.args
    assert vars(twin) == vars(error)


def test_a_version_conflict_on_an_absent_saga_is_not_found() -> None:
    absent = version_conflict("Order", "1", expected_version=2, actual_version=None)
    assert type(absent) is SagaNotFoundError
    stale = version_conflict("Order", "1", expected_version=2, actual_version=4)
    assert type(stale) is ConcurrencyError
    for error, actual in ((absent, None), (stale, 4)):
        assert (error.saga_name, error.saga_id, error.expected_version, error.actual_version) == (
            "Order",
            "1",
            2,
            actual,
        )

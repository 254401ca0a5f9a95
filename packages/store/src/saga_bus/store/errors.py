"""The error tree, the same on every store.

::

    SagaStoreError
    ├─ ConcurrencyError               retryable
    │  ├─ DuplicateSagaError
    │  └─ SagaNotFoundError
    ├─ StoreUnavailableError          retryable
    │  └─ OutcomeUnknownError
    ├─ InvalidSagaError               also a ValueError
    ├─ StateCodecError
    │  ├─ StateEncodeError
    │  ├─ StateDecodeError
    │  └─ StateTooLargeError
    ├─ SchemaError
    ├─ StoreClosedError
    └─ UnsupportedOperationError

"Reload and retry" is right for every error whose ``retryable`` is true, and for no other one.
A store raises them ``from`` its driver's error; no driver error escapes a store.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

__all__ = [
    "ConcurrencyError",
    "Conflict",
    "DuplicateSagaError",
    "InvalidSagaError",
    "OutcomeUnknownError",
    "SagaNotFoundError",
    "SagaStoreError",
    "SchemaError",
    "StateCodecError",
    "StateDecodeError",
    "StateEncodeError",
    "StateTooLargeError",
    "StoreClosedError",
    "StoreUnavailableError",
    "UnsupportedOperationError",
    "version_conflict",
]

Conflict = Literal["saga_id", "correlation_id"]


class SagaStoreError(Exception):
    """The root of every error that a store raises."""

    retryable: ClassVar[bool] = False

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors with keyword-only fields do not survive pickling by default, and worker pools pickle them.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[SagaStoreError], args: tuple[Any, ...], fields: dict[str, Any]) -> SagaStoreError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(fields)
    return error


class ConcurrencyError(SagaStoreError):
    """Somebody else changed the saga first: reload it and try again.

    Args:
        saga_name: The saga's name.
        saga_id: The saga's id.
        expected_version: The version that the caller expected to find, None for an insert.
        actual_version: The version that the store found, None where there is none or it is not known.
        message: Replaces the message made from the other arguments.
    """

    retryable = True

    def __init__(
        self,
        *,
        saga_name: str,
        saga_id: str,
        expected_version: int | None = None,
        actual_version: int | None = None,
        message: str | None = None,
    ) -> None:
        self.saga_name = saga_name
        self.saga_id = saga_id
        self.expected_version = expected_version
        self.actual_version = actual_version
        found = "another version" if actual_version is None else f"version {actual_version}"
        super().__init__(
            message or f"saga {saga_name!r} {saga_id!r}: expected version {expected_version}, found {found}"
        )


class DuplicateSagaError(ConcurrencyError):
    """The saga id or the correlation id is taken, and the saga that holds it is untouched.

    Args:
        saga_name: The saga's name.
        saga_id: The id of the saga that was to be inserted.
        correlation_id: The correlation id of the saga that was to be inserted.
        conflict: Which of the two is taken; if both are, either may be named.
    """

    def __init__(self, *, saga_name: str, saga_id: str, correlation_id: str, conflict: Conflict) -> None:
        self.correlation_id = correlation_id
        self.conflict: Conflict = conflict
        taken = saga_id if conflict == "saga_id" else correlation_id
        super().__init__(
            saga_name=saga_name,
            saga_id=saga_id,
            message=f"saga {saga_name!r}: the {conflict.replace('_', ' ')} {taken!r} is taken",
        )


class SagaNotFoundError(ConcurrencyError):
    """An update, or a delete with an expected version, of a saga that is not there (any more).

    Args:
        saga_name: The saga's name.
        saga_id: The saga's id, or the correlation id that was looked up.
        expected_version: The version that the caller expected to find.
    """

    def __init__(self, *, saga_name: str, saga_id: str, expected_version: int | None = None) -> None:
        super().__init__(
            saga_name=saga_name,
            saga_id=saga_id,
            expected_version=expected_version,
            message=f"saga {saga_name!r} {saga_id!r}: not found"
            + ("" if expected_version is None else f", expected version {expected_version}"),
        )


class StoreUnavailableError(SagaStoreError):
    """The store could not do it now: refused or lost connection, timeout, throttling, deadlock; nothing was written."""

    retryable = True


class OutcomeUnknownError(StoreUnavailableError):
    """The connection broke after a write was sent: it may have been applied, so reload before trying again."""


class InvalidSagaError(SagaStoreError, ValueError):
    """An argument that no store accepts: a bad name, id, version, naive datetime, cursor or option."""


class StateCodecError(SagaStoreError):
    """A state could not be turned into a document or back."""


class StateEncodeError(StateCodecError):
    """A state holds what a document cannot: NaN, infinity, NUL, a lone surrogate, an unsupported type."""


class StateDecodeError(StateCodecError):
    """A document does not fit the saga's state type; the message names the saga, the type and the path."""


class StateTooLargeError(StateCodecError):
    """The encoded state is larger than the backend takes.

    Args:
        saga_name: The saga's name.
        saga_id: The saga's id.
        size: The size of the encoded state in bytes.
        limit: The backend's limit in bytes.
    """

    def __init__(self, *, saga_name: str, saga_id: str, size: int, limit: int) -> None:
        self.saga_name = saga_name
        self.saga_id = saga_id
        self.size = size
        self.limit = limit
        super().__init__(f"saga {saga_name!r} {saga_id!r}: the state has {size} bytes, the limit is {limit}")


class SchemaError(SagaStoreError):
    """A table or an index is missing, or of another version than the package; the message says what to run."""


class StoreClosedError(SagaStoreError):
    """The store was used after ``close()``."""


class UnsupportedOperationError(SagaStoreError):
    """An ability that this store does not declare, or a backend that is not installed."""


def version_conflict(
    saga_name: str, saga_id: str, *, expected_version: int, actual_version: int | None
) -> ConcurrencyError:
    """Make the error for a compare-and-swap that found another version.

    Args:
        saga_name: The saga's name.
        saga_id: The saga's id.
        expected_version: The version that the caller expected.
        actual_version: The version found, or None when there is no such saga.

    Returns:
        A `SagaNotFoundError` when there is no such saga, else a `ConcurrencyError`.
    """
    if actual_version is None:
        return SagaNotFoundError(saga_name=saga_name, saga_id=saga_id, expected_version=expected_version)
    return ConcurrencyError(
        saga_name=saga_name,
        saga_id=saga_id,
        expected_version=expected_version,
        actual_version=actual_version,
    )

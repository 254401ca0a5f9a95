"""What a write that changed no row means."""

from __future__ import annotations

from saga_bus.store import ConcurrencyError, DuplicateSagaError, SagaRow, version_conflict

__all__ = ["conflict_of_insert", "conflict_of_write"]


def conflict_of_write(saga_name: str, saga_id: str, expected: int, found: int | None) -> ConcurrencyError | None:
    """The error of an update or a conditional delete, None if the saga is there as it was expected.

    Args:
        saga_name: The saga's name.
        saga_id: The saga's id.
        expected: The version that the caller expected.
        found: The version that is there now, None where there is none.
    """
    if found == expected:
        return None
    return version_conflict(saga_name, saga_id, expected_version=expected, actual_version=found)


def conflict_of_insert(
    row: SagaRow, correlation_id: str, *, id_taken: bool, correlation_taken: bool
) -> DuplicateSagaError | None:
    """The error of an insert, None if neither key is taken any more.

    Args:
        row: The row that was to be inserted.
        correlation_id: Its correlation id.
        id_taken: Whether there is a saga with its id.
        correlation_taken: Whether there is a saga with its correlation id.
    """
    if not (id_taken or correlation_taken):
        return None
    return DuplicateSagaError(
        saga_name=row.saga_name,
        saga_id=row.saga_id,
        correlation_id=correlation_id,
        conflict="saga_id" if id_taken else "correlation_id",
    )

"""Single writes that wait for locks, each on a connection of its own choice; deletes, and what a group passes over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from saga_bus.store import SagaRow, SagaStoreError, StoreUnavailableError
from saga_bus.store_postgres._documents import row_values
from saga_bus.store_postgres._errors import ROLLED_BACK, sqlstate_of
from saga_bus.store_postgres._outcomes import conflict_of_insert, conflict_of_write
from saga_bus.store_postgres._statements import Statements

__all__ = ["delete", "insert", "retried", "update"]

ResultT = TypeVar("ResultT")
Fetch = Callable[..., Awaitable[Any]]

_ATTEMPTS = 5


async def insert(fetch: Fetch, statements: Statements, row: SagaRow, correlation_id: str) -> bool:
    """Insert a row; whoever has its keys in an open transaction is waited for.

    Args:
        fetch: Runs a statement and returns its rows.
        statements: The statements.
        row: The row.
        correlation_id: Its correlation id.

    Returns:
        False if a key was taken and is free now, so that it is worth another try.

    Raises:
        DuplicateSagaError: A key is taken.
    """
    if await fetch(statements.insert_waiting, *row_values(row), correlation_id):
        return True
    ((id_taken, correlation_taken),) = await fetch(
        statements.select_taken, [row.saga_name], [row.saga_id], [correlation_id]
    )
    conflict = conflict_of_insert(row, correlation_id, id_taken=id_taken, correlation_taken=correlation_taken)
    if conflict is not None:
        raise conflict
    return False


async def update(fetch: Fetch, statements: Statements, row: SagaRow, expected_version: int) -> bool:
    """Update a row; whoever has locked it is waited for.

    Args:
        fetch: Runs a statement and returns its rows.
        statements: The statements.
        row: The row.
        expected_version: The version that must be there.

    Returns:
        False if the row was away and is back, so that it is worth another try.

    Raises:
        ConcurrencyError: Another version is there, or none.
    """
    if await fetch(statements.update_waiting, *row_values(row), expected_version):
        return True
    return await _unless_conflict(fetch, statements, row.saga_name, row.saga_id, expected_version)


async def delete(
    fetch: Fetch, statements: Statements, saga_name: str, saga_id: str, expected_version: int | None
) -> bool:
    """Delete a row; whoever has locked it is waited for.

    Args:
        fetch: Runs a statement and returns its rows.
        statements: The statements.
        saga_name: The saga's name.
        saga_id: The saga's id.
        expected_version: The version that must be there, None for any or none.

    Returns:
        False if the row was away and is back, so that it is worth another try.

    Raises:
        ConcurrencyError: Another version is there, or none.
    """
    if expected_version is None:
        await fetch(statements.delete, saga_name, saga_id)
        return True
    if await fetch(statements.delete_version, saga_name, saga_id, expected_version):
        return True
    return await _unless_conflict(fetch, statements, saga_name, saga_id, expected_version)


async def _unless_conflict(
    fetch: Fetch, statements: Statements, saga_name: str, saga_id: str, expected_version: int
) -> bool:
    rows = await fetch(statements.select_version, saga_name, saga_id)
    conflict = conflict_of_write(saga_name, saga_id, expected_version, rows[0][0] if rows else None)
    if conflict is not None:
        raise conflict
    return False


async def retried(attempt: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """Try a statement again that the server rolled back, or that met a row on the move; a true result ends it.

    Args:
        attempt: Runs the statement in a transaction of its own.

    Raises:
        StoreUnavailableError: It was in vain each time.
    """
    last: SagaStoreError | None = None
    for _ in range(_ATTEMPTS):
        try:
            result = await attempt()
        except StoreUnavailableError as error:
            if sqlstate_of(error) not in ROLLED_BACK:
                raise
            last = error
        else:
            if result:
                return result
            last = None
    raise last or StoreUnavailableError(f"others changed the saga during each of {_ATTEMPTS} attempts")

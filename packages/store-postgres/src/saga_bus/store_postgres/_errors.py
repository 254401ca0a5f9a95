"""PostgreSQL's errors as ours: one table, by SQLSTATE (https://www.postgresql.org/docs/current/errcodes-appendix.html)."""

from __future__ import annotations

import asyncpg  # type: ignore[import-untyped]

from saga_bus.store import (
    InvalidSagaError,
    OutcomeUnknownError,
    SagaStoreError,
    SchemaError,
    StateEncodeError,
    StoreUnavailableError,
)

__all__ = ["DRIVER_ERRORS", "ROLLED_BACK", "sqlstate_of", "translated"]

DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)

_MIXED_UP = "prepared statements got mixed up: behind a transaction pooler, connect with statement_cache_size=0"

# A SQLSTATE, or its first two characters where the whole class means the same.
_MEANINGS: dict[str, tuple[type[SagaStoreError], str]] = {
    "40001": (StoreUnavailableError, "a concurrent transaction changed the same rows: nothing was written"),
    "40P01": (StoreUnavailableError, "a deadlock: nothing was written"),
    "55P03": (StoreUnavailableError, "the lock timeout passed: nothing was written"),
    "57014": (StoreUnavailableError, "the statement was cancelled or ran into statement_timeout"),
    "57P03": (StoreUnavailableError, "the server is starting up or shutting down"),
    "53": (StoreUnavailableError, "the server lacks connections, memory or disk space"),
    "08": (StoreUnavailableError, "the connection failed"),
    "57P": (StoreUnavailableError, "the server closed the connection"),
    "25006": (SagaStoreError, "the server takes no writes: it is a standby or read-only"),
    "28": (SagaStoreError, "the server refused the user or the password"),
    "3D000": (SagaStoreError, "there is no such database"),
    "42501": (SagaStoreError, "the role lacks a right"),
    "42P01": (SchemaError, "the saga table is not there: run create_schema()"),
    "42703": (SchemaError, "the saga table lacks a column: run create_schema()"),
    "3F000": (SchemaError, "the schema is not there: run create_schema()"),
    "26000": (SagaStoreError, _MIXED_UP),
    "42P05": (SagaStoreError, _MIXED_UP),
    "25P02": (SagaStoreError, "an earlier error ended the transaction: roll it back"),
    "22": (StateEncodeError, "PostgreSQL cannot hold what the state holds"),
    "54001": (StateEncodeError, "the state is nested more deeply than the server's max_stack_depth allows"),
    "54": (SagaStoreError, "a limit of PostgreSQL was passed"),
}
_LOST = ("08", "57P01", "57P02", "57P04", "57P05")
ROLLED_BACK = frozenset({"40001", "40P01", "55P03"})


def sqlstate_of(error: BaseException | None) -> str:
    """The SQLSTATE of an error of the server, or of ours that was raised from one; else an empty text.

    Args:
        error: The error.
    """
    if isinstance(error, SagaStoreError):
        error = error.__cause__
    return (getattr(error, "sqlstate", None) or "") if isinstance(error, asyncpg.PostgresError) else ""


def translated(error: BaseException, *, writing: bool) -> SagaStoreError:
    """Our error for the driver's; raise it ``from`` that one.

    Args:
        error: The driver's error.
        writing: Whether a write was sent that commits by itself: if the connection is lost then, nobody knows
            whether it was applied.
    """
    state = sqlstate_of(error)
    if isinstance(error, OSError) or state.startswith(_LOST):  # a TimeoutError is an OSError too
        lost = "there was no answer in time" if type(error) is TimeoutError else "the connection was lost"
        detail = f" ({error})" if str(error) else ""
        if writing:
            return OutcomeUnknownError(f"{lost} after the write was sent{detail}")
        return StoreUnavailableError(f"{lost}{detail}")
    if not state:  # asyncpg's own, raised before anything is sent
        if isinstance(error, asyncpg.InterfaceError) and "another operation" in str(error):
            return InvalidSagaError(f"the connection is in use by another task ({error})")
        return StoreUnavailableError(f"the connection cannot be used ({error})")
    for length in (5, 3, 2):
        if state[:length] in _MEANINGS:
            kind, meaning = _MEANINGS[state[:length]]
            return kind(f"{meaning} ({error})")
    return SagaStoreError(f"PostgreSQL refused: {error} (SQLSTATE {state})")

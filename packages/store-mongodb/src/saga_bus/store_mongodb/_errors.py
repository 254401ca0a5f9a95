"""pymongo's errors as ours: one table (codes: https://www.mongodb.com/docs/manual/reference/error-codes/)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bson.errors import BSONError
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    DocumentTooLarge,
    InvalidOperation,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WriteConcernError,
    WriteError,
)

from saga_bus.store import (
    InvalidSagaError,
    OutcomeUnknownError,
    SagaStoreError,
    SchemaError,
    StateDecodeError,
    StateEncodeError,
    StoreUnavailableError,
)

__all__ = ["DUPLICATE", "NOT_MATCHED", "error_of_write", "translated", "unsatisfied"]

# What a lost answer means: that nothing was done, or that nobody knows.
Lost = type[StoreUnavailableError]

DUPLICATE = 11000
# An upsert that finds nothing is made to change its _id, which no server does: see `_groups`.
NOT_MATCHED = frozenset({66, 16836, DUPLICATE})

_BAD_VALUE, _INDEX_NOT_FOUND = 2, 27
_UNAVAILABLE = "the server could not do it now, or gave up on the way"
_MEANINGS: dict[int, tuple[type[SagaStoreError], str]] = {
    13: (SagaStoreError, "the user lacks a right"),
    15: (StateEncodeError, "MongoDB cannot hold what the state holds"),
    18: (SagaStoreError, "the server refused the user or the password"),
    20: (SagaStoreError, "the server has no transactions: it is neither a replica set nor a sharded cluster"),
    24: (StoreUnavailableError, "the lock timeout passed: nothing was written"),
    26: (SchemaError, "the collection is not there: run create_schema()"),
    27: (SchemaError, "an index is not there: run create_schema()"),
    46: (StoreUnavailableError, "a lock is busy: nothing was written"),
    85: (SchemaError, "the collection has a like index under another name or with other options"),
    86: (SchemaError, "the collection has another index of the same name"),
    112: (StoreUnavailableError, "a concurrent transaction changed the same saga: nothing was written"),
    121: (SagaStoreError, "the collection's own validator refused the document"),
    225: (StoreUnavailableError, "the transaction took too long, or the server is too busy for it"),
    246: (StoreUnavailableError, "the snapshot of the transaction is gone"),
    251: (SagaStoreError, "an earlier error ended the transaction: begin it again"),
    256: (SagaStoreError, "the transaction was committed already"),
    8000: (SagaStoreError, "the server refused the user or the password"),
    10334: (StateEncodeError, "the document is larger than the server takes"),
    11000: (SagaStoreError, "a unique index of the user's refused the document"),
}
# The server gave up on the way, so a write that commits by itself may have been done.
_INTERRUPTED = frozenset(
    {6, 7, 43, 50, 89, 91, 133, 134, 189, 202, 237, 262, 290, 9001, 10107, 11600, 11601, 11602, 13435}
)
_NOTHING_WRITTEN = ("NoWritesPerformed", "TransientTransactionError", "SystemOverloadedError")


def translated(error: BaseException, *, writing: bool) -> SagaStoreError:
    """Our error for the driver's; raise it ``from`` that one.

    Args:
        error: The driver's error.
        writing: Whether a write was sent that commits by itself: if there is no answer then, nobody knows whether it
            was applied.
    """
    for kind, ours in _KINDS:
        if isinstance(error, kind):
            unknown = writing and not _nothing_written(error)
            return ours(error, OutcomeUnknownError if unknown else StoreUnavailableError)
    return SagaStoreError(f"pymongo failed ({type(error).__name__})")


def error_of_write(found: Mapping[str, Any]) -> WriteError:
    """The error of one write of a group, without the document that pymongo keeps beside it.

    Args:
        found: The server's words on this write.
    """
    kept = {name: found[name] for name in ("code", "errmsg", "keyPattern") if name in found}
    return WriteError(str(found.get("errmsg", "")), found.get("code"), kept)


def _of_bulk(error: Any, lost: Lost) -> SagaStoreError:
    if error.details.get("writeConcernErrors"):
        return unsatisfied(error.details)
    return _of_code(error_of_write(error.details["writeErrors"][0]), lost)


def unsatisfied(details: Mapping[str, Any]) -> OutcomeUnknownError:
    """The error of writes that were done, but not as durably as was asked for.

    Args:
        details: What the server said of a group.
    """
    said = details["writeConcernErrors"][-1].get("errmsg", "")
    return OutcomeUnknownError(f"written, but the write concern was not satisfied ({said})")


def _of_write_concern(error: Any, _: Lost) -> SagaStoreError:
    return OutcomeUnknownError(f"written, but the write concern was not satisfied ({_said(error)})")


def _of_connection(error: BaseException, lost: Lost) -> SagaStoreError:
    late = getattr(error, "timeout", False) or isinstance(error, TimeoutError)
    what = "there was no answer in time" if late else "the connection was lost, or the server left its place"
    after = " after the write was sent" if lost is OutcomeUnknownError else ""
    return lost(f"{what}{after} ({_said(error)})")


def _of_code(error: Any, lost: Lost) -> SagaStoreError:
    code, said = error.code or 0, _said(error)
    if code in _INTERRUPTED or error.has_error_label("RetryableWriteError"):
        return lost(f"{_UNAVAILABLE} ({said})")
    if _nothing_written(error):
        return StoreUnavailableError(f"{_MEANINGS.get(code, (None, _UNAVAILABLE))[1]} ({said})")
    if code == _BAD_VALUE and "hint" in said:  # as the server says that there is no such index
        code = _INDEX_NOT_FOUND
    if code in _MEANINGS:
        kind, meaning = _MEANINGS[code]
        return kind(f"{meaning} ({said})")
    return SagaStoreError(f"MongoDB refused: {said} (code {code})")


def _of_operation(error: BaseException, _: Lost) -> SagaStoreError:
    kind = InvalidSagaError if "session" in str(error) else SagaStoreError
    return kind(f"pymongo refused it ({error})")


# The first that fits counts.
_KINDS: tuple[tuple[Any, Callable[[Any, Lost], SagaStoreError]], ...] = (
    (BulkWriteError, _of_bulk),
    (WriteConcernError, _of_write_concern),
    (OperationFailure, _of_code),
    (DocumentTooLarge, lambda _, __: StateEncodeError("the document is larger than the server takes")),
    (  # of a write that was sent before, pymongo raises that error, and not this one
        ServerSelectionTimeoutError,
        lambda _, __: StoreUnavailableError("no server could be reached, or none that takes writes"),
    ),
    ((ConnectionFailure, OSError), _of_connection),
    (InvalidOperation, _of_operation),
    (ConfigurationError, lambda error, _: SagaStoreError(f"the client cannot connect with these settings ({error})")),
    (BSONError, lambda error, _: StateDecodeError(f"what the server sent is no document ({error})")),
)


def _nothing_written(error: BaseException) -> bool:
    return isinstance(error, PyMongoError) and any(map(error.has_error_label, _NOTHING_WRITTEN))


def _said(error: BaseException) -> str:
    """What the server or the system said, without the answer as a whole, which pymongo appends."""
    details = getattr(error, "details", None)
    if isinstance(details, Mapping) and "errmsg" in details:
        return str(details["errmsg"])
    return str(error).partition(", full error:")[0].partition(" (configured timeouts")[0]

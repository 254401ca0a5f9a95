"""One table: what botocore raises, and what a store raises for it."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

from botocore import exceptions as boto  # type: ignore[import-untyped]

from saga_bus.store import (
    InvalidSagaError,
    OutcomeUnknownError,
    SagaStoreError,
    SchemaError,
    StoreUnavailableError,
)

__all__ = ["BOTO_ERRORS", "Fate", "code_of", "fate_of", "old_items", "translated"]

BOTO_ERRORS: Final = (boto.BotoCoreError, boto.ClientError)


class Fate(Enum):
    """What became of a request that failed."""

    REFUSED = "a condition did not hold"
    BUSY = "the service took it and did nothing, for now"
    UNSENT = "it never reached the service"
    LOST = "it may have been done"
    HOPELESS = "trying again does not help"


# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html
_CODES: dict[str, Fate] = {
    "ConditionalCheckFailedException": Fate.REFUSED,
    "ConditionalCheckFailed": Fate.REFUSED,
    # Another request has the item in a transaction, or a transaction of this very token is in progress.
    "TransactionConflictException": Fate.BUSY,
    "TransactionConflict": Fate.BUSY,
    "TransactionInProgressException": Fate.BUSY,
    "ProvisionedThroughputExceededException": Fate.BUSY,
    "ProvisionedThroughputExceeded": Fate.BUSY,
    "ThrottlingException": Fate.BUSY,
    "ThrottlingError": Fate.BUSY,
    "Throttling": Fate.BUSY,
    "RequestLimitExceeded": Fate.BUSY,
    "RequestThrottled": Fate.BUSY,
    "RequestThrottledException": Fate.BUSY,
    "TooManyRequestsException": Fate.BUSY,
    "LimitExceededException": Fate.BUSY,  # of table operations at the same time
    "ReplicatedWriteConflictException": Fate.BUSY,
    "InternalServerError": Fate.LOST,
    "InternalFailure": Fate.LOST,
    "ServiceUnavailable": Fate.LOST,
    "ServiceUnavailableException": Fate.LOST,
    "RequestTimeout": Fate.LOST,
    "RequestTimeoutException": Fate.LOST,
}
_TABLE_MISSING = "ResourceNotFoundException"
_CANCELLED = "TransactionCanceledException"
# What a table or an index that create_schema did not make answers, in the words of the service and of DynamoDB Local.
_OTHER_TABLE = (
    "does not have the specified index",
    "does not match the schema",
    "required keys was not given",
    "Missing the key",
    "number of conditions on the keys",
    "Query condition missed key schema",
    "Type mismatch for key",
    "Type mismatch for Index Key",
    "not match the schema type",
)
_UNSENT = (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError, boto.SSLError)
_LOST = (boto.HTTPClientError, boto.ResponseStreamingError)
_NOT_CONFIGURED = (boto.NoRegionError, boto.InvalidRegionError, boto.ProfileNotFound, boto.UnknownEndpointError)


def code_of(error: BaseException | None) -> str:
    """The service's error code, empty where the error is not the service's.

    Args:
        error: Any error.
    """
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, boto.ClientError) else ""


def old_items(error: Any) -> list[tuple[bool, dict[str, Any] | None]]:
    """For each action of a refused request, whether its condition failed, and the item that it found.

    Args:
        error: An error whose fate is `Fate.REFUSED`.
    """
    if code_of(error) == _CANCELLED:
        reasons = error.response.get("CancellationReasons", [])
        return [(_CODES.get(reason.get("Code")) is Fate.REFUSED, reason.get("Item")) for reason in reasons]
    return [(True, error.response.get("Item"))]


def fate_of(error: Exception) -> Fate:
    """What became of a request.

    Args:
        error: One of `BOTO_ERRORS`.
    """
    if isinstance(error, boto.ClientError):
        code = code_of(error)
        if code == _CANCELLED:
            return _fate_of_cancelled(error)
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return _CODES.get(code) or (Fate.LOST if status >= 500 else Fate.HOPELESS)
    if isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Fate.HOPELESS
    if isinstance(error, _UNSENT):
        return Fate.UNSENT
    return Fate.LOST if isinstance(error, _LOST) else Fate.HOPELESS


def _fate_of_cancelled(error: boto.ClientError) -> Fate:
    fates = {_CODES.get(reason.get("Code")) for reason in error.response.get("CancellationReasons", [])}
    # A condition that failed is an answer, whatever became of the other actions.
    return next((fate for fate in (Fate.REFUSED, Fate.BUSY) if fate in fates), Fate.HOPELESS)


def translated(error: Exception, table: str, *, uncertain: bool = False) -> SagaStoreError:
    """The store's error for one of botocore's.

    Args:
        error: One of `BOTO_ERRORS`.
        table: The table's name.
        uncertain: Whether the request, or an earlier try of it, was a write that may have been applied.
    """
    text = f"table {table!r}: {error}"
    if uncertain:
        return OutcomeUnknownError(f"{text}; the write may have been applied")
    if fate_of(error) in (Fate.BUSY, Fate.UNSENT, Fate.LOST):
        return StoreUnavailableError(text)
    code = code_of(error)
    if code == _TABLE_MISSING:
        return SchemaError(f"the table {table!r} is missing: run create_schema() ({error})")
    if code == "ValidationException" and any(words in str(error) for words in _OTHER_TABLE):
        return SchemaError(f"the table {table!r} is not as create_schema() makes it ({error})")
    if isinstance(error, _NOT_CONFIGURED):
        return InvalidSagaError(text)
    return SagaStoreError(text)

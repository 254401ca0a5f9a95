"""Redis's errors as ours: one table, by the code that an error reply begins with (https://redis.io/docs/latest/)."""

from __future__ import annotations

import asyncio
import re

from redis import exceptions

from saga_bus.store import (
    OutcomeUnknownError,
    SagaStoreError,
    SchemaError,
    StoreUnavailableError,
)

__all__ = ["DRIVER_ERRORS", "code_of", "error_of_reply", "translated"]

# RedisClusterException is no RedisError. A TimeoutError of asyncio is an OSError only from Python 3.11 on.
DRIVER_ERRORS = (
    exceptions.RedisError,
    exceptions.RedisClusterException,
    OSError,
    TimeoutError,
    asyncio.IncompleteReadError,
)

# An error reply says that the command was not run, so none of these is an unknown outcome.
_MEANINGS: dict[str, tuple[type[SagaStoreError], str]] = {
    "BUSY": (StoreUnavailableError, "the server is busy with another script"),
    "LOADING": (StoreUnavailableError, "the server is loading its data"),
    "READONLY": (StoreUnavailableError, "the server is a replica: a failover may be under way"),
    "OOM": (StoreUnavailableError, "the server is out of memory"),
    "MISCONF": (StoreUnavailableError, "the server takes no writes while it cannot save its data"),
    "NOREPLICAS": (StoreUnavailableError, "the server has fewer replicas than min-replicas-to-write"),
    "MASTERDOWN": (StoreUnavailableError, "the server is a replica without its primary"),
    "CLUSTERDOWN": (StoreUnavailableError, "the Cluster does not serve the saga's hash slot"),
    "TRYAGAIN": (StoreUnavailableError, "the saga's hash slot is moving to another node"),
    "ASK": (StoreUnavailableError, "the saga's hash slot is moving to another node"),
    "MOVED": (StoreUnavailableError, "the saga's hash slot has moved to another node"),
    "UNBLOCKED": (StoreUnavailableError, "the server became a replica while it waited for replicas"),
    "MAXCLIENTS": (StoreUnavailableError, "the server has too many clients"),
    "NOAUTH": (SagaStoreError, "the server wants a password"),
    "WRONGPASS": (SagaStoreError, "the server refused the user or the password"),
    "NOPERM": (SagaStoreError, "the user lacks a right: give it the scripts, the commands and the keys of the prefix"),
    "CROSSSLOT": (SagaStoreError, "keys of one saga type are in different hash slots"),
    "WRONGTYPE": (SchemaError, "a key of the store holds something else: choose another prefix"),
}
_CODES: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.NoScriptError, "NOSCRIPT"),
    (exceptions.BusyLoadingError, "LOADING"),
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.OutOfMemoryError, "OOM"),
    (exceptions.MasterDownError, "MASTERDOWN"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
    (exceptions.SlotNotCoveredError, "CLUSTERDOWN"),
    (exceptions.TryAgainError, "TRYAGAIN"),
    (exceptions.MovedError, "MOVED"),  # a subclass of AskError
    (exceptions.AskError, "ASK"),
    (exceptions.NoPermissionError, "NOPERM"),
    (exceptions.ClusterCrossSlotError, "CROSSSLOT"),
    (exceptions.AuthenticationWrongNumberOfArgsError, "WRONGPASS"),
)
# Redis has no code of its own for these.
_TEXTS = (
    ("non local key", "TRYAGAIN"),  # a script met a key that has gone to another node already
    ("The user executing the script can't", "NOPERM"),
    ("ACL failure in script", "NOPERM"),
    ("max number of clients reached", "MAXCLIENTS"),
    ("without any password configured", "WRONGPASS"),
    ("invalid username-password pair", "WRONGPASS"),
    ("Authentication required", "NOAUTH"),
    ("Invalid Username or Password", "WRONGPASS"),
    ("user is disabled", "WRONGPASS"),
)
_CODE = re.compile(r"-?([A-Z][A-Z0-9]+)\b")


def code_of(error: BaseException | str) -> str:
    """The code of an error reply, whatever the driver made of it; nothing for an error of the connection.

    Args:
        error: The driver's error, or the text that a script reported.
    """
    if isinstance(error, BaseException):
        for kind, code in _CODES:
            if isinstance(error, kind):
                return code
    text = str(error)
    for part, code in _TEXTS:
        if part in text:
            return code
    if isinstance(error, exceptions.AuthenticationError):
        return "WRONGPASS"
    if isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError | OSError):
        return ""
    found = _CODE.match(text)
    return found[1] if found else ""


def error_of_reply(error: BaseException | str) -> SagaStoreError:
    """Our error for an error reply of the server, which did not do what it was asked.

    Args:
        error: The driver's error, or the text that a script reported.
    """
    code = code_of(error)
    text = str(error).strip()
    if code in _MEANINGS:
        kind, meaning = _MEANINGS[code]
        return kind(f"{meaning} ({text})")
    return SagaStoreError(f"Redis refused: {text}")


def translated(error: BaseException, *, sent: bool) -> SagaStoreError:
    """Our error for the driver's; raise it ``from`` that one.

    Args:
        error: The driver's error.
        sent: Whether a write was sent: if the connection is lost then, nobody knows whether it was applied.
    """
    if isinstance(error, exceptions.ConnectionError) and isinstance(error.__context__, exceptions.ReadOnlyError):
        return error_of_reply(error.__context__)  # what a connection of Sentinel's makes of it
    if code_of(error) in _MEANINGS or isinstance(error, exceptions.ResponseError | exceptions.DataError):
        return error_of_reply(error)
    if isinstance(error, exceptions.MaxConnectionsError):
        return StoreUnavailableError("all connections of the pool are in use")
    slow = isinstance(error, TimeoutError | exceptions.TimeoutError)
    lost = "there was no answer in time" if slow else "the connection failed"
    detail = f" ({error})" if str(error) else ""
    if sent:
        return OutcomeUnknownError(f"{lost} after the write was sent{detail}")
    return StoreUnavailableError(f"{lost}{detail}")

"""Errors of the client, its engine and the database as ours.

A client that is generated into a folder of its own has its own copies of Prisma's error classes, so they are told by
their names; errors of the engine by their codes (https://www.prisma.io/docs/orm/reference/error-reference).
"""

from __future__ import annotations

import re
from typing import Any

from saga_bus.store import (
    OutcomeUnknownError,
    SagaStoreError,
    SchemaError,
    StateEncodeError,
    StoreUnavailableError,
)

__all__ = ["code_of", "taken_key", "translated"]

_Meaning = tuple[type[SagaStoreError], str]

UNIQUE = "P2002"

_LOST: _Meaning = (OutcomeUnknownError, "the connection was lost")
_MISFIT: _Meaning = (SchemaError, "the model and the store, or the model and the table, do not fit: run check_schema()")

_BY_CODE: dict[str, _Meaning] = {
    "P1000": (SagaStoreError, "the database refused the user or the password"),
    "P1001": (StoreUnavailableError, "the database cannot be reached"),
    "P1002": (StoreUnavailableError, "the database did not answer in time"),
    "P1003": (SagaStoreError, "there is no such database"),
    "P1008": (OutcomeUnknownError, "there was no answer in time"),
    "P1010": (SagaStoreError, "the user lacks a right"),
    "P1017": _LOST,
    "P2000": _MISFIT,
    UNIQUE: (SagaStoreError, "a unique key of the table that is none of the store's is taken"),
    "P2009": _MISFIT,
    "P2011": _MISFIT,
    "P2012": _MISFIT,
    "P2013": _MISFIT,
    "P2019": _MISFIT,
    "P2020": _MISFIT,
    "P2021": (SchemaError, "the saga table is not there: run create_schema(), or migrate"),
    "P2022": (SchemaError, "the saga table lacks a column: run check_schema()"),
    "P2023": _MISFIT,
    "P2024": (StoreUnavailableError, "no connection of the engine's pool became free in time"),
    "P2028": (StoreUnavailableError, "the transaction could not start in time, expired, or has ended"),
    "P2033": _MISFIT,
    "P2034": (StoreUnavailableError, "a write conflict or a deadlock: nothing was written"),
    "P2037": (StoreUnavailableError, "the database has too many connections"),
}

# Of errors without a code; where an exception has several, the first that is found counts.
_BY_NAME: dict[str, _Meaning] = {
    "TransactionExpiredError": _BY_CODE["P2028"],
    "TransactionError": _BY_CODE["P2028"],
    "ClientNotConnectedError": (
        StoreUnavailableError,
        "the Prisma client is not connected: await its connect(), or use `async with` on the store",
    ),
    "NotConnectedError": (StoreUnavailableError, "the Prisma client is not connected"),
    "HTTPClientClosedError": (StoreUnavailableError, "the Prisma client was disconnected"),
    "BinaryNotFoundError": (SagaStoreError, "there is no query engine: run `prisma py fetch`"),
    "MismatchedVersionsError": (SagaStoreError, "the query engine is of another version than the client"),
    "EngineConnectionError": (StoreUnavailableError, "the query engine did not start"),
    "ConnectError": (StoreUnavailableError, "the query engine is gone: disconnect the client and connect it again"),
    "ConnectTimeout": (StoreUnavailableError, "the query engine does not answer"),
    "PoolTimeout": (StoreUnavailableError, "too many calls wait for the query engine"),
    "TransportError": (OutcomeUnknownError, "the query engine did not answer"),
    "FieldNotFoundError": _MISFIT,
    "MissingRequiredValueError": _MISFIT,
    "ValidationError": _MISFIT,  # pydantic's: the engine's answer does not fit the generated model
}

# The database's own code, where the engine has none for it: a SQLSTATE, or how it begins, or a number of MySQL's or
# SQLite's.
_BY_DATABASE: dict[str, _Meaning] = {
    "40001": _BY_CODE["P2034"],
    "40P01": _BY_CODE["P2034"],
    "55P03": (StoreUnavailableError, "the lock timeout passed: nothing was written"),
    "57014": (StoreUnavailableError, "the statement was cancelled, or took too long"),
    "57P03": (StoreUnavailableError, "the server is starting up or shutting down"),
    "53": (StoreUnavailableError, "the server lacks connections, memory or disk space"),
    "08": _LOST,
    "57P": _LOST,
    "25006": (SagaStoreError, "the server takes no writes: it is a standby or read-only"),
    "25P02": (SagaStoreError, "an earlier error ended the transaction: roll it back"),
    "22001": _MISFIT,
    "22003": _MISFIT,
    "22007": _MISFIT,
    "22008": _MISFIT,
    "22P02": _MISFIT,
    "22": (StateEncodeError, "the database cannot hold what the state holds"),
    "42501": (SagaStoreError, "the user lacks a right"),
    "42": _MISFIT,
    "5": (StoreUnavailableError, "the database is locked: nothing was written"),
    "6": (StoreUnavailableError, "the database is locked: nothing was written"),
    "261": (StoreUnavailableError, "the database is locked: nothing was written"),
    "517": (StoreUnavailableError, "somebody else wrote meanwhile: nothing was written"),
    "1205": (StoreUnavailableError, "the lock timeout passed: nothing was written"),
    "1213": _BY_CODE["P2034"],
}
_DATABASE_CODE = re.compile(r'\b(?:extended_)?code: "?([0-9A-Z]{1,5})\b')
_ENGINE_CODE = re.compile(r'"error_code":\s*"(P\d{4})"')
_RAW = "P2010"  # a statement that was sent as it is; the database's code is beside it

# SQLite's, of a lock that was not to be had: unlike a server's, it leaves nothing unknown.
_BUSY = re.compile(r"database is locked|Operations timed out|Timed out during query execution")


def code_of(error: BaseException) -> str:
    """The engine's code of an error, such as P2002; an empty text without one.

    Args:
        error: The client's error.
    """
    code = getattr(error, "code", None)
    if isinstance(code, str):
        return code
    found = _ENGINE_CODE.search(str(error))  # in the body of an answer that is none of a query
    return "" if found is None else found[1]


def taken_key(error: BaseException) -> str | None:
    """What the engine says of the unique key that is taken: "saga_id", "correlation_id", or None for nothing.

    Args:
        error: The client's error, of the code P2002.
    """
    meta: Any = getattr(error, "meta", None) or {}
    target = meta.get("target")
    # The fields, or the name of the index.
    said = " ".join(map(str, target)) if isinstance(target, list) else str(target)
    if "correlation" in said:
        return "correlation_id"
    return "saga_id" if "saga_id" in said else None


def translated(error: BaseException, *, writing: bool) -> SagaStoreError:
    """Our error for the client's; raise it ``from`` that one.

    Args:
        error: What a call of the client raised.
        writing: Whether a write was sent that commits by itself: without an answer nobody knows whether it was
            applied.
    """
    kind, meaning = _meaning(error)
    if kind is OutcomeUnknownError:
        if not writing or (code_of(error) == "P1008" and _BUSY.search(str(error))):
            kind = StoreUnavailableError
        else:
            meaning += " after the write was sent"
    detail = f"{type(error).__name__}: {error}".strip(": \n")
    return kind(f"{meaning} ({detail})")


def _meaning(error: BaseException) -> _Meaning:
    code = code_of(error)
    if code in _BY_CODE:
        return _BY_CODE[code]
    for each in type(error).__mro__:
        if each.__name__ in _BY_NAME:
            return _BY_NAME[each.__name__]
    database_code = _database_code(error, code)
    lengths = (5, 3, 2) if len(database_code) == 5 else (len(database_code),)
    for length in lengths:
        if database_code[:length] in _BY_DATABASE:
            return _BY_DATABASE[database_code[:length]]
    if _BUSY.search(str(error)):
        return (StoreUnavailableError, "the database is locked: nothing was written")
    if code or any(each.__name__ == "DataError" for each in type(error).__mro__):
        return (SagaStoreError, f"the database refused{f', {code}' if code else ''}")
    # Neither the client nor the engine has a word for it, such as an answer that is no JSON.
    return (OutcomeUnknownError, "the query engine gave no answer that can be understood")


def _database_code(error: BaseException, code: str) -> str:
    if code == _RAW:
        return str((getattr(error, "meta", None) or {}).get("code", ""))
    found = _DATABASE_CODE.search(str(error))
    return "" if found is None else found[1]

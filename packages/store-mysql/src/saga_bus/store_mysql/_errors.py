"""The server's and the driver's errors as ours: one table, by the server's error number.

The numbers are those of https://dev.mysql.com/doc/mysql-errors/8.4/en/ and https://mariadb.com/kb/en/mariadb-error-codes/.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from aiomysql import MySQLError  # type: ignore[import-untyped]

from saga_bus.store import (
    Conflict,
    OutcomeUnknownError,
    SagaStoreError,
    SchemaError,
    StoreUnavailableError,
)

__all__ = [
    "CORRELATION_KEY",
    "TABLE_EXISTS",
    "TOO_LARGE",
    "MySQLError",
    "code_of",
    "conflict_of",
    "connection_lost",
    "driver_errors",
    "ends_transaction",
    "is_lost",
    "is_transient",
    "lost_a_race",
    "translated",
]

CORRELATION_KEY = "saga_correlation_id"

TABLE_EXISTS = 1050
TOO_LARGE = 1153
_LOCKED = 1205
_DUPLICATE = (1062, 1586)
_DEADLOCK = 1213
_CHANGED = 1020

_LOST = {
    0: "the connection is closed",  # aiomysql's own: it has no number
    1053: "the server is shutting down",
    1158: "the connection broke",
    1159: "the connection timed out",
    1160: "the connection broke",
    1161: "the connection timed out",
    1927: "the connection was killed",
    2006: "the server has gone away",
    2013: "the connection broke",
    2014: "the connection is out of step",
    2027: "the connection is out of step",
    2055: "the connection broke",
    4031: "the server closed the idle connection",
}
_NARROW = "a column is not as create_schema() made it: check_schema() tells which"
_MEANINGS: dict[int, tuple[type[SagaStoreError], str]] = {
    _CHANGED: (StoreUnavailableError, "somebody else changed the row since the transaction's snapshot"),
    1021: (StoreUnavailableError, "the disk is full"),
    1037: (StoreUnavailableError, "the server is out of memory"),
    1038: (StoreUnavailableError, "the server is out of memory"),
    1040: (StoreUnavailableError, "the server has too many connections"),
    1041: (StoreUnavailableError, "the server is out of memory"),
    1044: (SagaStoreError, "the user may not use the database"),
    1045: (SagaStoreError, "the server refused the user or the password"),
    1049: (SchemaError, "there is no such database: create it, then run create_schema()"),
    1054: (SchemaError, "the table is not the one that the package needs: run create_schema()"),
    1114: (StoreUnavailableError, "the table space is full"),
    1129: (StoreUnavailableError, "the server blocks this host"),
    1130: (SagaStoreError, "the server does not let this host in"),
    1142: (SagaStoreError, "the user may not do this with the table"),
    1143: (SagaStoreError, "the user may not do this with a column of the table"),
    1146: (SchemaError, "there is no such table: run create_schema()"),
    1180: (OutcomeUnknownError, "the commit failed"),
    1203: (StoreUnavailableError, "the user has too many connections"),
    _LOCKED: (StoreUnavailableError, "somebody else held the lock for too long"),
    _DEADLOCK: (StoreUnavailableError, "a deadlock, which the server ended by rolling the transaction back"),
    1226: (StoreUnavailableError, "the user has used up a resource"),
    1227: (SagaStoreError, "the user may not do this"),
    1264: (SchemaError, _NARROW),
    1265: (SchemaError, _NARROW),
    1290: (StoreUnavailableError, "the server is read-only"),
    1317: (StoreUnavailableError, "the statement was interrupted"),
    1366: (SchemaError, _NARROW),
    1406: (SchemaError, _NARROW),
    1614: (StoreUnavailableError, "a deadlock, which the server ended by rolling the transaction back"),
    1698: (SagaStoreError, "the server refused the user or the password"),
    1836: (StoreUnavailableError, "the server is read-only"),
    1969: (StoreUnavailableError, "the statement ran into the server's time limit"),
    2003: (StoreUnavailableError, "the server cannot be reached"),
    3024: (StoreUnavailableError, "the statement ran into the server's time limit"),
    3572: (StoreUnavailableError, "somebody else holds the lock"),
}
# The server has rolled the whole transaction back, or may have.
_ENDS_TRANSACTION = {_CHANGED, _LOCKED, _DEADLOCK, 1614}
_IN_THE_WAY = {*_ENDS_TRANSACTION, 3572}
_LOST_A_RACE = {_CHANGED, _DEADLOCK, 1614}
_LAST_QUOTED = re.compile(r"'([^']*)'[^']*\Z")


def code_of(error: BaseException | None) -> int | None:
    """The error number, 0 where the driver has none, and None where the error is not the driver's.

    Args:
        error: Any error.
    """
    if not isinstance(error, MySQLError):
        return None
    code = error.args[0] if error.args else 0
    return code if isinstance(code, int) else 0


def is_lost(error: MySQLError) -> bool:
    """Whether the connection is of no more use.

    Args:
        error: The driver's error.
    """
    return code_of(error) in _LOST


def is_transient(error: BaseException | None) -> bool:
    """Whether nothing was written because somebody else was in the way.

    Args:
        error: Any error.
    """
    return code_of(error) in _IN_THE_WAY


def lost_a_race(error: BaseException | None) -> bool:
    """Whether the server rolled a transaction back for the sake of another one, without having waited for long.

    Args:
        error: Any error.
    """
    return code_of(error) in _LOST_A_RACE


def ends_transaction(error: BaseException | None) -> bool:
    """Whether the server has rolled back more than the statement, or may have.

    Args:
        error: Any error.
    """
    return code_of(error) in _ENDS_TRANSACTION


def conflict_of(error: MySQLError) -> Conflict | None:
    """Which of a saga's two unique keys is taken, None where the error is another one.

    Args:
        error: The driver's error; its message ends with the name of the key, before which MySQL has the table's.
    """
    if code_of(error) not in _DUPLICATE:
        return None
    found = _LAST_QUOTED.search(str(error.args[1]))
    key = "" if found is None else found[1].rpartition(".")[2]
    if key == "PRIMARY":
        return "saga_id"
    return "correlation_id" if key == CORRELATION_KEY else None


def connection_lost(error: BaseException, *, write_sent: bool) -> StoreUnavailableError:
    """Our error for a connection that broke, was closed, or did not answer in time.

    Args:
        error: The driver's or the system's error.
        write_sent: Whether a write was sent that the server may have committed.
    """
    code = code_of(error)
    if code is not None:
        what = _LOST.get(code, "the connection broke")
    elif isinstance(error, TimeoutError):
        what = "the server did not answer in time"
    else:
        what = f"the connection broke ({type(error).__name__})"
    if write_sent:
        return OutcomeUnknownError(f"{what} after the write was sent")
    return StoreUnavailableError(what)


def translated(error: MySQLError) -> SagaStoreError:
    """Our error for the server's; raise it ``from`` that one.

    Args:
        error: The driver's error.
    """
    code = code_of(error) or 0
    if code in _LOST:
        return connection_lost(error, write_sent=False)
    kind, meaning = _MEANINGS.get(code, (SagaStoreError, "the server refused"))
    message = str(error.args[1]) if len(error.args) > 1 else str(error)
    return kind(f"{meaning} ({code}: {message})")


@contextmanager
def driver_errors() -> Iterator[None]:
    """Translate the driver's errors of a block.

    Raises:
        SagaStoreError: The driver raised one.
    """
    try:
        yield
    except MySQLError as error:
        raise translated(error) from error

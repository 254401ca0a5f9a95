"""The ODBC drivers' errors as ours: one table by SQL Server's error number, one by SQLSTATE.

pyodbc raises ``Error(sqlstate, text)``, where the text has every diagnostic record of the driver, each ending
with its native error number: ``[23000] [Microsoft][ODBC Driver 18 for SQL Server][SQL Server]Violation of ...
(2627) (SQLExecute)``. Numbers of the server are the same with every driver; a number of a driver's own library
(FreeTDS has some from 20000 on) comes with a SQLSTATE that says enough.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from saga_bus.store import OutcomeUnknownError, SagaStoreError, SchemaError, StoreUnavailableError
from saga_bus.store_sqlserver._odbc import load

__all__ = [
    "ends_transaction",
    "error_numbers",
    "is_check_violation",
    "is_deadlock",
    "is_duplicate",
    "lost_connection",
    "odbc_errors",
    "refuses_readpast",
    "scrubbed",
    "timed_out",
    "translated",
    "writing",
]

_DUPLICATES = frozenset({2601, 2627})
_CHECK_VIOLATION = 547
_DEADLOCK = 1205
_READPAST_REFUSED = 650
# Babelfish gives this number to each of PostgreSQL's errors that has none of SQL Server's.
_BABELFISH_OTHER = 33557097
# After these the server has rolled the whole transaction back; 3609 and 3616 tell of one that ended in a trigger, and
# 3998 of one that an error there had doomed. Babelfish does so after every error of no number (pull request 2401 of
# babelfish_extensions).
_TRANSACTION_ENDED = frozenset(
    {1205, 3609, 3616, 3960, 3961, 3964, 3966, 3998, 41301, 41302, 41305, 41325, _BABELFISH_OTHER}
)

_Meaning = tuple[type[SagaStoreError], str]

_RETRY = StoreUnavailableError

# https://learn.microsoft.com/sql/relational-databases/errors-events/database-engine-events-and-errors
# https://learn.microsoft.com/azure/azure-sql/database/troubleshoot-common-errors-issues (from 40143 on)
_BY_NUMBER: dict[int, _Meaning] = {
    1205: (_RETRY, "the statement was chosen as the victim of a deadlock"),
    1222: (_RETRY, "another transaction held the lock for the whole lock timeout"),
    1204: (_RETRY, "the server ran out of locks"),
    3960: (_RETRY, "another transaction changed the row since this one's snapshot"),
    3961: (_RETRY, "the schema changed since the transaction's snapshot"),
    3966: (_RETRY, "the row's old version is no longer kept for the transaction's snapshot"),
    41301: (_RETRY, "a transaction that this one depends on failed"),
    41302: (_RETRY, "another transaction changed the row since this one began"),
    41305: (_RETRY, "the transaction could not be serialized"),
    41325: (_RETRY, "the transaction could not be serialized"),
    701: (_RETRY, "the server is out of memory"),
    802: (_RETRY, "the server is out of memory"),
    8645: (_RETRY, "the server had no memory for the query in time"),
    8651: (_RETRY, "the server had no memory for the query"),
    8628: (_RETRY, "the server took too long to plan the query"),
    8179: (_RETRY, "the server no longer knows the prepared statement"),
    1101: (_RETRY, "the database has no disk space left"),
    1105: (_RETRY, "the database has no disk space left"),
    9002: (_RETRY, "the transaction log is full"),
    596: (_RETRY, "the session was killed"),
    6005: (_RETRY, "the server is shutting down"),
    6006: (_RETRY, "the server is shutting down"),
    17142: (_RETRY, "the server is paused"),
    17187: (_RETRY, "the server is starting"),
    17188: (_RETRY, "the server is shutting down"),
    17197: (_RETRY, "the server took too long to let the login in"),
    17809: (_RETRY, "the server's limit of connections is reached"),
    18401: (_RETRY, "the server is being upgraded"),
    615: (_RETRY, "the database is offline"),
    904: (_RETRY, "the database cannot be opened while the server starts or shuts down"),
    913: (_RETRY, "the database is not open yet"),
    921: (_RETRY, "the database is not recovered yet"),
    922: (_RETRY, "the database is being recovered"),
    927: (_RETRY, "the database is being restored"),
    942: (_RETRY, "the database is offline"),
    952: (_RETRY, "the database is changing its state"),
    976: (_RETRY, "the database is on a replica that takes no connections"),
    978: (_RETRY, "the database is on a replica that takes only read-only connections"),
    983: (_RETRY, "the database's availability group is changing its roles"),
    4060: (_RETRY, "the database is not open yet, or does not exist, or the login may not open it"),
    4221: (_RETRY, "the database's replica is not ready yet"),
    10928: (_RETRY, "the database's limit of workers or sessions is reached"),
    10929: (_RETRY, "the server is too busy"),
    10936: (_RETRY, "the elastic pool's limit of requests is reached"),
    40143: (_RETRY, "the service could not process the request"),
    40166: (_RETRY, "the service could not process the request"),
    40197: (_RETRY, "the service could not process the request"),
    40501: (_RETRY, "the service is busy"),
    40540: (_RETRY, "the service could not process the request"),
    40549: (_RETRY, "the service ended a transaction that took too long"),
    40550: (_RETRY, "the service ended a session with too many locks"),
    40551: (_RETRY, "the service ended a session that used too much tempdb"),
    40552: (_RETRY, "the service ended a session that used too much transaction log"),
    40553: (_RETRY, "the service ended a session that used too much memory"),
    40613: (_RETRY, "the database is not available now"),
    42108: (_RETRY, "the SQL pool is being resumed"),
    42109: (_RETRY, "the SQL pool is being resumed"),
    49918: (_RETRY, "the service has too few resources for the request now"),
    49919: (_RETRY, "the service has too many requests to create or update now"),
    49920: (_RETRY, "the service has too many requests now"),
    207: (SchemaError, "a column is missing: the table was not made by create_schema()"),
    208: (SchemaError, "the table is missing: run create_schema()"),
    4902: (SchemaError, "the table is missing: run create_schema()"),
    911: (SagaStoreError, "there is no such database"),
    916: (SagaStoreError, "the login may not open the database"),
    18452: (SagaStoreError, "the login failed"),
    18456: (SagaStoreError, "the login failed"),
    18470: (SagaStoreError, "the login is disabled"),
    18486: (SagaStoreError, "the login is locked out"),
    18487: (SagaStoreError, "the login's password has expired"),
    18488: (SagaStoreError, "the login's password must be changed"),
    40615: (SagaStoreError, "the server's firewall refuses this address"),
    229: (SagaStoreError, "the login lacks a permission"),
    230: (SagaStoreError, "the login lacks a permission on a column"),
    262: (SagaStoreError, "the login lacks a permission in the database"),
    2760: (SagaStoreError, "the schema does not exist, or the login may not use it"),
    3906: (SagaStoreError, "the database is read-only"),
    3930: (SagaStoreError, "an error has doomed the transaction: roll it back (is XACT_ABORT on?)"),
    3964: (SagaStoreError, "a schema cannot be changed at the isolation level SNAPSHOT"),
    3908: (SagaStoreError, "the database is in emergency or suspect mode"),
    2628: (SagaStoreError, "a value is longer than its column: the table was not made by create_schema()"),
    8152: (SagaStoreError, "a value is longer than its column: the table was not made by create_schema()"),
    547: (SagaStoreError, "a constraint refused the row"),
}
_LOST_SESSION = frozenset({596, 6005, 6006, 40143, 40166, 40197, 40540, 40613})

_LOST = "the connection was lost"
_BY_SQLSTATE: dict[str, _Meaning] = {
    "08001": (_RETRY, "the server cannot be reached"),
    "08S01": (_RETRY, _LOST),
    "08003": (_RETRY, _LOST),
    "08004": (_RETRY, "the server refused the connection"),
    "08007": (_RETRY, _LOST),
    "HYT00": (_RETRY, "the server did not answer in time"),
    "HYT01": (_RETRY, "the server did not answer in time"),
    "HY008": (_RETRY, "the statement was cancelled"),
    "HY001": (_RETRY, "out of memory"),
    "40001": (_RETRY, "the statement was chosen as the victim of a deadlock, or could not be serialized"),
    "42S02": (SchemaError, "the table is missing: run create_schema()"),
    "24000": (SagaStoreError, "the connection has results of another statement: fetch them, or close its cursor"),
    "28000": (SagaStoreError, "the login failed"),
    "IM002": (SagaStoreError, "there is no such ODBC driver or data source on this machine"),
    "IM003": (SagaStoreError, "the ODBC driver cannot be loaded"),
}
# What Babelfish's errors of no number mean, their text tells (contrib/babelfishpg_tds/error_mapping.txt of
# babelfish_extensions has those that have one).
_BY_BABELFISH_TEXT: tuple[tuple[re.Pattern[str], _Meaning], ...] = (
    (re.compile(r"could not serialize access"), (_RETRY, "the transaction could not be serialized")),
    (re.compile(r"due to lock timeout"), (_RETRY, "another transaction held the lock for the whole lock timeout")),
    (re.compile(r"too many (clients|connections)|out of (shared )?memory"), (_RETRY, "the server has no room")),
    (re.compile(r'relation ".*" does not exist'), (SchemaError, "the table is missing: run create_schema()")),
    (
        re.compile(r'column ".*" does not exist'),
        (SchemaError, "a column is missing: the table was not made by create_schema()"),
    ),
    (re.compile(r"permission denied"), (SagaStoreError, "the login lacks a permission")),
    (re.compile(r"read-only transaction"), (SagaStoreError, "the database is read-only")),
)
_LOST_STATES = frozenset({"08001", "08S01", "08003", "08007"})
# FreeTDS reports some losses as general errors: with the numbers of its db-lib, or with none on a connection that
# is dead already.
_FREETDS_LOST = frozenset({20004, 20006, 20017, 20047})
_NO_NUMBER = frozenset({0})
_GIVEN_UP_STATES = frozenset({"HYT00", "HYT01", "HY008"})

_NUMBER = re.compile(r"\((-?\d{1,10})\)(?= \(SQL\w+\)|; \[|\s*$)")
_NO_DRIVER = "Can't open lib"
_IN_USE = "Connection is busy with results for another command"  # FreeTDS has the SQLSTATE for it


def error_numbers(error: BaseException) -> tuple[int, ...]:
    """The native error numbers of an error's diagnostic records.

    Args:
        error: The driver's error.
    """
    return tuple(int(number) for number in _NUMBER.findall(_message(error)))


def is_duplicate(error: BaseException) -> bool:
    """Whether a unique key refused a row.

    Args:
        error: The driver's error.
    """
    return not _DUPLICATES.isdisjoint(error_numbers(error))


def is_check_violation(error: BaseException) -> bool:
    """Whether a CHECK constraint refused a row.

    Args:
        error: The driver's error.
    """
    return _CHECK_VIOLATION in error_numbers(error)


def timed_out(error: BaseException) -> bool:
    """Whether a statement was given up, by the clock or by a cancellation.

    Args:
        error: The driver's error.
    """
    return _sqlstate(error) in _GIVEN_UP_STATES


def is_deadlock(error: BaseException) -> bool:
    """Whether the server rolled everything back to end a deadlock.

    Args:
        error: The driver's error.
    """
    return _DEADLOCK in error_numbers(error)


def refuses_readpast(error: BaseException) -> bool:
    """Whether the server does not pass over locked rows at the isolation level of the session.

    Args:
        error: The driver's error.
    """
    return _READPAST_REFUSED in error_numbers(error)


def ends_transaction(error: BaseException) -> bool:
    """Whether the server has rolled the whole transaction back.

    Args:
        error: The driver's error.
    """
    return not _TRANSACTION_ENDED.isdisjoint(error_numbers(error))


def lost_connection(error: BaseException) -> bool:
    """Whether a connection is of no more use after an error.

    Args:
        error: The driver's error.
    """
    numbers = error_numbers(error)
    if not _LOST_SESSION.isdisjoint(numbers) or _is_freetds_loss(error):
        return True
    return _sqlstate(error) in _LOST_STATES and not any(number in _BY_NUMBER for number in numbers)


def translated(error: BaseException) -> SagaStoreError:
    """Our error for the driver's; raise it ``from`` that one.

    Args:
        error: The driver's error.
    """
    message, numbers = _message(error), error_numbers(error)
    meanings = [_BY_NUMBER[number] for number in numbers if number in _BY_NUMBER]
    if _BABELFISH_OTHER in numbers:
        meanings += [meaning for text, meaning in _BY_BABELFISH_TEXT if text.search(message)]
    if meanings:
        # A refused login comes before its reason, and the reason may pass.
        return _made(next((meaning for meaning in meanings if meaning[0] is _RETRY), meanings[0]), message)
    if _IN_USE in message:
        return _made(_BY_SQLSTATE["24000"], message)
    if _is_freetds_loss(error):
        return _made((_RETRY, _LOST), message)
    if _NO_DRIVER in message:
        return _made((SagaStoreError, "the ODBC driver cannot be loaded"), message)
    return _made(_BY_SQLSTATE.get(_sqlstate(error), (SagaStoreError, "SQL Server refused")), message)


def writing(error: BaseException) -> SagaStoreError:
    """Our error for the driver's, which came after a write was sent.

    Args:
        error: The driver's error.
    """
    ours = translated(error)
    rolled_back = any(number in _BY_NUMBER and number not in _LOST_SESSION for number in error_numbers(error))
    if not rolled_back and (lost_connection(error) or timed_out(error)):
        return OutcomeUnknownError(f"{ours}; the write may have been applied")
    return ours


def scrubbed(error: BaseException, secrets: Iterable[str]) -> BaseException:
    """A driver's error without any password.

    Args:
        error: The driver's error.
        secrets: The passwords.

    Returns:
        The same error, or one like it without the passwords.
    """
    forms = {form for secret in secrets if secret for form in (secret, secret.replace("}", "}}"))}
    text = _message(error)
    if not any(form in text for form in forms):
        return error
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "***")
    return type(error)(_sqlstate(error), text)


@contextmanager
def odbc_errors(*, write: bool = False) -> Iterator[None]:
    """Translate the driver's errors of a block.

    Args:
        write: Whether the block sends a write.

    Raises:
        SagaStoreError: The driver raised one.
    """
    try:
        yield
    except load().Error as error:
        raise (writing(error) if write else translated(error)) from error


def _is_freetds_loss(error: BaseException) -> bool:
    numbers, message = frozenset(error_numbers(error)), _message(error)
    if "[FreeTDS]" not in message:
        return False
    return not _FREETDS_LOST.isdisjoint(numbers) or (_sqlstate(error) == "HY000" and numbers == _NO_NUMBER)


def _made(meaning: _Meaning, message: str) -> SagaStoreError:
    kind, text = meaning
    return kind(f"{text} ({message})")


def _sqlstate(error: BaseException) -> str:
    return str(error.args[0]) if len(error.args) > 1 else ""


def _message(error: BaseException) -> str:
    return str(error.args[1]) if len(error.args) > 1 else str(error)

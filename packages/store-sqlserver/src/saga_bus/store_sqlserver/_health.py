"""Settings of a database and a session that put saga state at risk."""

from __future__ import annotations

from typing import Any

from saga_bus.store import SagaStoreError
from saga_bus.store_sqlserver._schema import KEY_COLUMNS, Place
from saga_bus.store_sqlserver._sessions import Session
from saga_bus.store_sqlserver._values import IDENTIFIER, Statement

__all__ = ["warnings_about"]

_ROUND_TRIP = Statement("SELECT 1 AS answer", ())
_DATABASE = Statement(
    "SELECT is_read_only, is_auto_close_on, delayed_durability FROM sys.databases WHERE name = DB_NAME()", ()
)
_SESSION = Statement(
    "SELECT transaction_isolation_level FROM sys.dm_exec_sessions WHERE session_id = @@SPID",
    (),
)
_COLLATIONS = Statement(
    "SELECT COLUMN_NAME, COLLATION_NAME FROM INFORMATION_SCHEMA.COLUMNS WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ?",
    (IDENTIFIER, IDENTIFIER),
)

_FORCED = 2
_READ_UNCOMMITTED = 1


def warnings_about(place: Place, session: Session) -> list[str]:
    """Read from the database and say what puts its sagas at risk.

    What a server does not tell (Babelfish may lack a column, a login may lack the right to see) is passed over, unless
    the question has ended the caller's transaction.

    Args:
        place: The table.
        session: Any session.
    """
    session.read(_ROUND_TRIP)  # an error of this one is the answer
    warnings: list[str] = []
    for read_only, auto_close, durability in _told(session, _DATABASE):
        if read_only:
            warnings.append("the database is read-only: no saga can be saved")
        if auto_close:
            warnings.append("AUTO_CLOSE is on: the database closes when it is idle, and the next saga waits for it")
        if durability == _FORCED:
            warnings.append("DELAYED_DURABILITY is FORCED: a crash of the server can lose the last commits")
    for (level,) in _told(session, _SESSION):
        if level == _READ_UNCOMMITTED:
            warnings.append("the isolation level is READ UNCOMMITTED: sagas are read that may never be committed")
    for column, collation in _told(session, _COLLATIONS, place.schema, place.table):
        if column in KEY_COLUMNS and collation and not str(collation).upper().endswith("_BIN2"):
            warnings.append(f"the column {column} has the collation {collation}: ids that differ can be taken as equal")
    return warnings


def _told(session: Session, statement: Statement, *parameters: str) -> list[tuple[Any, ...]]:
    try:
        return session.read(statement, parameters)
    except SagaStoreError:
        if session.is_lost or session.has_ended:
            raise
        return []

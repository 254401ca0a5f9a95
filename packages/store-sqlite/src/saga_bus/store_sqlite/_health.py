"""Settings of a database that put saga state at risk."""

from __future__ import annotations

import sqlite3

from saga_bus.store_sqlite._rows import rows

__all__ = ["warnings_about"]

_NORMAL = 1
_FULL = 2
# https://www.sqlite.org/wal.html#walresetbug
_WAL_RESET_FIXED = (3, 51, 3)


def warnings_about(connection: sqlite3.Connection) -> list[str]:
    """Read from the database and say what puts its sagas at risk.

    Args:
        connection: Any connection.
    """

    def value(sql: str) -> str:
        ((found,),) = rows(connection, sql)
        return found.decode() if isinstance(found, bytes) else str(found)

    value("SELECT count(*) FROM sqlite_master")  # a round trip to the file itself
    journal_mode, synchronous = value("PRAGMA journal_mode"), int(value("PRAGMA synchronous"))
    warnings: list[str] = []
    if journal_mode == "memory" and not _has_file(connection):
        return ["the database is in memory: its sagas end with the process"]
    if journal_mode in ("off", "memory"):
        warnings.append(f"journal_mode is {journal_mode}: a crash in the middle of a write damages the file")
    if synchronous < _NORMAL:
        warnings.append("synchronous is OFF: a power failure can lose commits and damage the file")
    elif synchronous < _FULL:
        warnings.append("synchronous is NORMAL: a power failure can lose the last commits")
    if journal_mode == "wal" and sqlite3.sqlite_version_info < _WAL_RESET_FIXED:
        warnings.append(
            f"SQLite {sqlite3.sqlite_version} can, very rarely, damage a file that several processes write to "
            "(the WAL-reset bug, fixed in 3.51.3)"
        )
    return warnings


def _has_file(connection: sqlite3.Connection) -> bool:
    return any(file for _, name, file in rows(connection, "PRAGMA database_list") if name in ("main", b"main"))

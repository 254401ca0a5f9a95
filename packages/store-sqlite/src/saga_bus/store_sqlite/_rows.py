"""Reading rows as plain tuples."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

__all__ = ["rows"]


def rows(connection: sqlite3.Connection, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Run a statement and fetch everything, whatever the connection's owner makes of a row.

    Args:
        connection: Any connection.
        sql: The statement.
        parameters: Its parameters.
    """
    cursor = connection.cursor()
    cursor.row_factory = None
    return cursor.execute(sql, parameters).fetchall()

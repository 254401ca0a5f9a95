"""The statements on single sagas, and the purge."""

from __future__ import annotations

from saga_bus.store.identifiers import quote_identifier
from saga_bus.store_sqlite._schema import COMPLETED_OF_NAME

__all__ = ["Statements"]

INSERT = """\
INSERT INTO {table} (saga_name, saga_id, correlation_id, version, is_completed, created_at, updated_at,
                     archived_at, timeout_expires_at, outbox_pending, state, updated_hour)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""

# SQLite rewrites the index entries of every column that is set, changed or not. So what seldom changes is compared
# here and not set; where it did change this finds no row, and one of the two that follow is for it.
UPDATE = """\
UPDATE {table}
SET version = ?, updated_at = ?, archived_at = ?, timeout_expires_at = ?, outbox_pending = ?, state = ?
WHERE saga_name = ? AND saga_id = ? AND version = ?
    AND is_completed = ? AND updated_hour = ? AND created_at = ?"""

# For the first update in an hour, and for a saga that completes or is reopened.
UPDATE_AND_MOVE = """\
UPDATE {table}
SET version = ?, updated_at = ?, archived_at = ?, timeout_expires_at = ?, outbox_pending = ?, state = ?,
    is_completed = ?, updated_hour = ?
WHERE saga_name = ? AND saga_id = ? AND version = ? AND created_at = ?"""

# For the rare state whose created_at was changed.
UPDATE_WITH_CREATED_AT = """\
UPDATE {table}
SET version = ?, updated_at = ?, archived_at = ?, timeout_expires_at = ?, outbox_pending = ?, state = ?,
    is_completed = ?, updated_hour = ?, created_at = ?
WHERE saga_name = ? AND saga_id = ? AND version = ?"""

DELETE = "DELETE FROM {table} WHERE saga_name = ? AND saga_id = ?"
DELETE_VERSION = "DELETE FROM {table} WHERE saga_name = ? AND saga_id = ? AND version = ?"

SELECT_VERSION = "SELECT version FROM {table} WHERE saga_name = ? AND saga_id = ?"
SELECT_BY_ID = "SELECT state FROM {table} WHERE saga_name = ? AND saga_id = ?"
SELECT_BY_CORRELATION_ID = "SELECT state FROM {table} WHERE saga_name = ? AND correlation_id = ?"

PURGE = """\
DELETE FROM {table}
WHERE rowid IN (
    SELECT rowid FROM {table} INDEXED BY {completed}
    WHERE saga_name = ? AND is_completed = 1 AND updated_hour <= ? AND updated_at < ?
    LIMIT ?
)"""


class Statements:
    """The statements for one table.

    Args:
        table: The table's name, not quoted.
    """

    def __init__(self, table: str) -> None:
        names = {"table": quote_identifier(table), "completed": COMPLETED_OF_NAME.name(table)}
        self.insert = INSERT.format(**names)
        self.update = UPDATE.format(**names)
        self.update_and_move = UPDATE_AND_MOVE.format(**names)
        self.update_with_created_at = UPDATE_WITH_CREATED_AT.format(**names)
        self.delete = DELETE.format(**names)
        self.delete_version = DELETE_VERSION.format(**names)
        self.select_version = SELECT_VERSION.format(**names)
        self.select_by_id = SELECT_BY_ID.format(**names)
        self.select_by_correlation_id = SELECT_BY_CORRELATION_ID.format(**names)
        self.purge = PURGE.format(**names)

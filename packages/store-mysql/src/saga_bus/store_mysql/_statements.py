"""The statements on single sagas and on groups of them, and the purge."""

from __future__ import annotations

from saga_bus.store_mysql._dialect import NEW_ROW, new_value
from saga_bus.store_mysql._literals import Template
from saga_bus.store_mysql._schema import COMPLETED, Place

__all__ = ["Statements"]

INSERT = """\
INSERT INTO {table} (saga_name, saga_id, correlation_id, version, is_completed, created_at, updated_at,
                     completed_at, archived_at, timeout_expires_at, outbox_pending, state)
VALUES """
VALUES = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
# Behind rows that are all there and locked, by the key that both unique indexes lead to: one statement, and one answer,
# for the updates of a group. Each changes its version, so the server counts two for each.
_NEW_VALUES = ", ".join(
    f"{column} = {new_value(column)}"
    for column in (
        "version",
        "is_completed",
        "created_at",
        "updated_at",
        "completed_at",
        "archived_at",
        "timeout_expires_at",
        "outbox_pending",
        "state",
    )
)
OVER_WHAT_IS_THERE = f" {NEW_ROW} ON DUPLICATE KEY UPDATE {_NEW_VALUES}"

UPDATE = """\
UPDATE {table}
SET version = ?, is_completed = ?, created_at = ?, updated_at = ?, completed_at = ?, archived_at = ?,
    timeout_expires_at = ?, outbox_pending = ?, state = ?
WHERE saga_name = ? AND saga_id = ? AND version = ?"""

DELETE = "DELETE FROM {table} WHERE saga_name = ? AND saga_id = ?"
DELETE_VERSION = "DELETE FROM {table} WHERE saga_name = ? AND saga_id = ? AND version = ?"

SELECT_VERSION = "SELECT version FROM {table} WHERE saga_name = ? AND saga_id = ?"
# Inside a transaction an ordinary SELECT reads its snapshot, but a write acts on what is there now.
SELECT_VERSION_NOW = "SELECT version FROM {table} WHERE saga_name = ? AND saga_id = ? FOR UPDATE"
SELECT_BY_ID = "SELECT CAST(state AS BINARY) FROM {table} WHERE saga_name = ? AND saga_id = ?"
SELECT_BY_CORRELATION_ID = "SELECT CAST(state AS BINARY) FROM {table} WHERE saga_name = ? AND correlation_id = ?"

# Without the hint MariaDB spends more time on weighing the other indexes that begin with saga_name than on reading.
SELECT_GROUP_BY_ID = """\
SELECT CAST(saga_name AS BINARY), CAST(saga_id AS BINARY), CAST(state AS BINARY)
FROM {table} FORCE INDEX (PRIMARY)
WHERE (saga_name, saga_id) IN (?)"""
SELECT_GROUP_BY_CORRELATION_ID = """\
SELECT CAST(saga_name AS BINARY), CAST(correlation_id AS BINARY), CAST(state AS BINARY)
FROM {table} FORCE INDEX (saga_correlation_id)
WHERE (saga_name, correlation_id) IN (?)"""
SELECT_STORED = """\
SELECT CAST(saga_name AS BINARY), CAST(saga_id AS BINARY), version, CAST(correlation_id AS BINARY),
       CAST(state AS BINARY)
FROM {table} FORCE INDEX (PRIMARY)
WHERE (saga_name, saga_id) IN (?)"""
# A row that somebody else holds is left out, so that it stalls nobody here.
LOCK_GROUP = """\
BEGIN;
SELECT CAST(saga_name AS BINARY), CAST(saga_id AS BINARY), version, CAST(correlation_id AS BINARY)
FROM {table} FORCE INDEX (PRIMARY)
WHERE (saga_name, saga_id) IN (?)
FOR UPDATE SKIP LOCKED"""

SELECT_OLD = """\
SELECT CAST(saga_id AS BINARY)
FROM {table} FORCE INDEX ({completed})
WHERE saga_name = ? AND completed_at < ?
ORDER BY completed_at, saga_id
LIMIT ?
FOR UPDATE SKIP LOCKED"""
# Only this form of DELETE takes a hint; by another index it would wait for sagas that are not its business.
DELETE_OLD = """\
DELETE old
FROM {table} AS old FORCE INDEX (PRIMARY)
WHERE (old.saga_name, old.saga_id) IN (?) AND old.completed_at < ?"""


class Statements:
    """The statements for one table.

    Args:
        place: The table.
    """

    def __init__(self, place: Place) -> None:
        def template(sql: str) -> Template:
            return Template(sql, table=place.quoted, completed=COMPLETED.name)

        self.insert_into = template(INSERT).filled()
        self.values = template(VALUES)
        self.over_what_is_there = template(OVER_WHAT_IS_THERE).filled()
        self.update = template(UPDATE)
        self.delete = template(DELETE)
        self.delete_version = template(DELETE_VERSION)
        self.select_version = template(SELECT_VERSION)
        self.select_version_now = template(SELECT_VERSION_NOW)
        self.select_by_id = template(SELECT_BY_ID)
        self.select_by_correlation_id = template(SELECT_BY_CORRELATION_ID)
        self.select_group_by_id = template(SELECT_GROUP_BY_ID)
        self.select_group_by_correlation_id = template(SELECT_GROUP_BY_CORRELATION_ID)
        self.select_stored = template(SELECT_STORED)
        self.lock_group = template(LOCK_GROUP)
        self.select_old = template(SELECT_OLD)
        self.delete_old = template(DELETE_OLD)

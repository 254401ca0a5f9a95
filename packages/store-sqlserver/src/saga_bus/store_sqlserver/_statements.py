"""The statements on single sagas, on groups of them, and the purge."""

from __future__ import annotations

from functools import cache

from saga_bus.store_sqlserver._schema import COLLATION, Place
from saga_bus.store_sqlserver._values import (
    CORRELATION_ID,
    FLAG,
    KEY,
    MOMENT,
    TEXT,
    VERSION,
    Binding,
    Statement,
)

__all__ = ["AS_MOMENT", "FALSE", "TRUE", "Statements"]

AS_MOMENT = "CAST(? AS DATETIME2(6))"
# Babelfish does not look a bit up in an index by a number.
TRUE, FALSE = "CAST(1 AS BIT)", "CAST(0 AS BIT)"

_INSERT = """\
INSERT INTO {table} (saga_name, saga_id, correlation_id, version, is_completed, created_at, updated_at,
                     outbox_pending, state{columns})
VALUES (?, ?, ?, ?, ?, {moment}, {moment}, ?, ?{values})"""

# created_at is compared, not set, because setting it would rewrite the entries of its indexes every time.
_UPDATE = """\
UPDATE {table}
SET version = ?, is_completed = ?, updated_at = {moment}, outbox_pending = ?, state = ?,
    archived_at = {archived_at}, timeout_expires_at = {timeout_expires_at}
WHERE saga_name = ? AND saga_id = ? AND version = ? AND created_at = {moment}"""

# For the rare state whose created_at was changed.
_UPDATE_WITH_CREATED_AT = """\
UPDATE {table}
SET version = ?, is_completed = ?, updated_at = {moment}, outbox_pending = ?, state = ?,
    archived_at = {archived_at}, timeout_expires_at = {timeout_expires_at}, created_at = {moment}
WHERE saga_name = ? AND saga_id = ? AND version = ?"""

_DELETE = "DELETE FROM {table} WHERE saga_name = ? AND saga_id = ?"
_DELETE_VERSION = "DELETE FROM {table} WHERE saga_name = ? AND saga_id = ? AND version = ?"

_SELECT_VERSION = "SELECT version FROM {table} WHERE saga_name = ? AND saga_id = ?"
_SELECT_BY_ID = "SELECT state FROM {table} WHERE saga_name = ? AND saga_id = ?"
_SELECT_BY_CORRELATION_ID = "SELECT state FROM {table} WHERE saga_name = ? AND correlation_id = ?"

# Which of a refused row's two keys is taken, without a look at the names of constraints.
_SELECT_TAKEN = """\
SELECT 1 AS taken FROM {table} WHERE saga_name = ? AND saga_id = ?
UNION ALL
SELECT 2 AS taken FROM {table} WHERE saga_name = ? AND correlation_id = ?"""

# A group of reads, each a seek of its own. The hints make it pass over rows that somebody has locked, so that
# one locked saga does not hold up the readers of the others; what it passes over is read again, alone.
_SELECT_ONE_OF_GROUP = """\
SELECT {number} AS number, state FROM {table} WITH (READCOMMITTEDLOCK, READPAST) WHERE saga_name = ? AND {column} = ?"""

# A group of writes is one statement, which is written as a whole or not at all, and which gives up when a lock makes it
# wait: whatever it did not write is written again, alone, where it may wait and where a conflict is told. The time is
# longer than others take to read a row, so that only a lock that somebody holds on to counts.
_GROUP = """\
SET LOCK_TIMEOUT 50;
{write};
SET LOCK_TIMEOUT -1"""

# A missing moment is an empty text, so that one plan serves all rows, and rows without an id only fill the group up.
# Under a database's own collation a text of characters that it does not know, such as an emoji, can equal the empty
# text, so it is not the one to compare ids by.
_INSERT_GROUP = """\
INSERT INTO {table} (saga_name, saga_id, correlation_id, version, is_completed, created_at, updated_at,
                     outbox_pending, state, archived_at, timeout_expires_at)
SELECT saga_name, saga_id, correlation_id, version, is_completed, CAST(created_at AS DATETIME2(6)),
    CAST(updated_at AS DATETIME2(6)), outbox_pending, state, CAST(NULLIF(archived_at, N'') AS DATETIME2(6)),
    CAST(NULLIF(timeout_expires_at, N'') AS DATETIME2(6))
FROM (VALUES
{rows}
) AS given (saga_name, saga_id, correlation_id, version, is_completed, created_at, updated_at,
            outbox_pending, state, archived_at, timeout_expires_at)
WHERE saga_id COLLATE {collation} <> N''"""

_UPDATE_GROUP = """\
UPDATE {target}
SET version = new.version, is_completed = new.is_completed, updated_at = CAST(new.updated_at AS DATETIME2(6)),
    outbox_pending = new.outbox_pending, state = new.state,
    archived_at = CAST(NULLIF(new.archived_at, N'') AS DATETIME2(6)),
    timeout_expires_at = CAST(NULLIF(new.timeout_expires_at, N'') AS DATETIME2(6))
OUTPUT inserted.saga_name, inserted.saga_id
FROM (
    SELECT * FROM (VALUES
{rows}
    ) AS given (version, is_completed, updated_at, outbox_pending, state, archived_at, timeout_expires_at,
                saga_name, saga_id, expected_version, created_at)
) AS new{found}"""
# The hints make it pass over rows that somebody has locked, without any wait, and seek each row by its key, however
# small the table is when the plan is made.
_FOUND = """
INNER JOIN {table} AS saga WITH (FORCESEEK, READCOMMITTEDLOCK, READPAST)
    ON {same_key}
WHERE {unchanged}
OPTION (LOOP JOIN, FORCE ORDER)"""
# Babelfish ignores hints, and with an OUTPUT clause it takes no join with the table that is written.
_FOUND_ON_BABELFISH = """
WHERE {same_key} AND {unchanged}"""
_SAME_KEY = """\
{saga}.saga_name = new.saga_name COLLATE {collation} AND {saga}.saga_id = new.saga_id COLLATE {collation}"""
_UNCHANGED = """\
{saga}.version = new.expected_version AND {saga}.created_at = CAST(new.created_at AS DATETIME2(6))"""

# The parameters of each row of a group.
_INSERTED = (KEY, KEY, CORRELATION_ID, VERSION, FLAG, MOMENT, MOMENT, FLAG, TEXT, MOMENT, MOMENT)
_UPDATED = (VERSION, FLAG, MOMENT, FLAG, TEXT, MOMENT, MOMENT, KEY, KEY, VERSION, MOMENT)

_PURGE = """\
DELETE TOP ({limit}) FROM {table}{hints}
WHERE saga_name = ? AND is_completed = {true} AND updated_at < {moment}"""
_PAST_LOCKED_ROWS = " WITH (READCOMMITTEDLOCK, READPAST)"


class Statements:
    """The statements for one table.

    Args:
        place: The table.
    """

    def __init__(self, place: Place) -> None:
        self._table = place.quoted
        self._bare_table = place.quoted_table
        self.delete = self._made(_DELETE, KEY, KEY)
        self.delete_version = self._made(_DELETE_VERSION, KEY, KEY, VERSION)
        self.select_version = self._made(_SELECT_VERSION, KEY, KEY)
        self.select_by_id = self._made(_SELECT_BY_ID, KEY, KEY)
        self.select_by_correlation_id = self._made(_SELECT_BY_CORRELATION_ID, KEY, CORRELATION_ID)
        self.select_taken = self._made(_SELECT_TAKEN, KEY, KEY, KEY, CORRELATION_ID)
        self.insert = cache(self._insert)
        self.update = cache(self._update)
        self.select_group = cache(self._select_group)
        self.insert_group = cache(self._insert_group)
        self.update_group = cache(self._update_group)

    def purge(self, limit: int, *, waits: bool) -> Statement:
        """The deletion of at most ``limit`` completed sagas.

        Args:
            limit: A checked number.
            waits: Whether it waits for rows that somebody has locked, or leaves them.
        """
        hints = "" if waits else _PAST_LOCKED_ROWS
        sql = _PURGE.format(limit=limit, table=self._table, hints=hints, true=TRUE, moment=AS_MOMENT)
        return Statement(sql, (KEY, MOMENT))

    def _insert(self, *, archived: bool, timeout: bool) -> Statement:
        """The insert of a row that has, or has not, the two moments that may be missing."""
        given = [name for name, there in (("archived_at", archived), ("timeout_expires_at", timeout)) if there]
        sql = _INSERT.format(
            table=self._table,
            moment=AS_MOMENT,
            columns="".join(f", {name}" for name in given),
            values=f", {AS_MOMENT}" * len(given),
        )
        bindings = (KEY, KEY, CORRELATION_ID, VERSION, FLAG, MOMENT, MOMENT, FLAG, TEXT, *(MOMENT for _ in given))
        return Statement(sql, bindings)

    def _update(self, *, archived: bool, timeout: bool, created: bool) -> Statement:
        """The update to a row that has, or has not, the two moments that may be missing."""
        sql = (_UPDATE_WITH_CREATED_AT if created else _UPDATE).format(
            table=self._table,
            moment=AS_MOMENT,
            archived_at=AS_MOMENT if archived else "NULL",
            timeout_expires_at=AS_MOMENT if timeout else "NULL",
        )
        moments = (MOMENT,) * (archived + timeout)
        where = (MOMENT, KEY, KEY, VERSION) if created else (KEY, KEY, VERSION, MOMENT)
        return Statement(sql, (VERSION, FLAG, MOMENT, FLAG, TEXT, *moments, *where))

    def _select_group(self, size: int, *, by_correlation_id: bool) -> Statement:
        """The reads of ``size`` sagas; each row has its read's number, from 0, and the state."""
        column, binding = ("correlation_id", CORRELATION_ID) if by_correlation_id else ("saga_id", KEY)
        parts = [_SELECT_ONE_OF_GROUP.format(number=number, table=self._table, column=column) for number in range(size)]
        return Statement("\nUNION ALL\n".join(parts), (KEY, binding) * size)

    def _insert_group(self, size: int) -> Statement:
        """The inserts of ``size`` sagas."""
        write = _INSERT_GROUP.format(table=self._table, rows=_rows(_INSERTED, size), collation=COLLATION)
        return Statement(_GROUP.format(write=write), _INSERTED * size)

    def _update_group(self, size: int, *, on_babelfish: bool) -> Statement:
        """The updates of ``size`` sagas; each row that comes back is the name and id of one that was written."""
        saga = self._bare_table if on_babelfish else "saga"
        found = (_FOUND_ON_BABELFISH if on_babelfish else _FOUND).format(
            table=self._table,
            same_key=_SAME_KEY.format(saga=saga, collation=COLLATION),
            unchanged=_UNCHANGED.format(saga=saga),
        )
        target = self._table if on_babelfish else saga
        write = _UPDATE_GROUP.format(target=target, rows=_rows(_UPDATED, size), found=found)
        return Statement(_GROUP.format(write=write), _UPDATED * size)

    def _made(self, sql: str, *bindings: Binding) -> Statement:
        return Statement(sql.format(table=self._table), bindings)


def _rows(bindings: tuple[Binding, ...], size: int) -> str:
    return ",\n".join([f"({', '.join('?' * len(bindings))})"] * size)

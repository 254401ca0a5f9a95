"""The statements on single sagas, each also for a group of them.

A group is one statement on all its rows: what is written comes as one JSON text, keys as two arrays. OFFSET 0 keeps the
planner from turning its look-ups by key into one walk over the whole table. What stands in braces is filled in once for
a table.
"""

from __future__ import annotations

import re

from saga_bus.store.identifiers import quote_identifier

__all__ = ["DOCUMENT", "VALUES", "Statements", "fill", "quoted_table"]

# The parameters of `_documents.row_values`, with the types that the server casts them to.
VALUES = (
    ("saga_name", "text"),
    ("saga_id", "text"),
    ("version", "bigint"),
    ("is_completed", "boolean"),
    ("created_at", "timestamptz"),
    ("updated_at", "timestamptz"),
    ("archived_at", "timestamptz"),
    ("timeout_expires_at", "timestamptz"),
    ("outbox_pending", "boolean"),
    ("state", "jsonb"),
    ("exact_state", "text"),
)
_EXTRA = f"${len(VALUES) + 1}"  # the parameter behind them: the expected version, or the correlation id
# The rows of `_documents.group_text`. As JSONB, a state is read once: it is a part of what was read already.
GROUP = (
    "jsonb_to_recordset($1::text::jsonb) AS q(number bigint, extra text, "
    + ", ".join(f"{name} {kind}" for name, kind in VALUES)
    + ")"
)

# exact_state is there only where JSONB would have changed a number.
DOCUMENT = "coalesce(s.exact_state, s.state::text)"

GET_ONE = "SELECT {document} FROM {table} AS s WHERE s.saga_name = $1 AND s.{key} = $2"
GET_MANY = """\
SELECT q.number, s.document
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS q(saga_name, key, number)
CROSS JOIN LATERAL (
    SELECT {document} AS document FROM {table} AS s WHERE s.saga_name = q.saga_name AND s.{key} = q.key
    OFFSET 0
) AS s"""

# A row that another transaction has locked is passed over, not waited for: it must not stall the sagas that come
# behind it. The caller sees that it is there unchanged and then waits for it outside of the group.
# A row is locked where its key is looked up, and updated by its place (ctid), so the index is read only once.
# The planner takes any JSON for 100 rows, and reads a small table whole for so many; with a limit that it cannot see,
# it takes it for 10.
UPDATE_MANY = """\
UPDATE {table} AS s SET {assignments}
FROM (
    SELECT q.*, locked.place
    FROM (SELECT * FROM {group} LIMIT (SELECT 1000)) AS q
    CROSS JOIN LATERAL (
        SELECT s.ctid AS place FROM {table} AS s
        WHERE s.saga_name = q.saga_name AND s.saga_id = q.saga_id AND s.version = q.extra::bigint
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS locked
    OFFSET 0
) AS q
WHERE s.ctid = q.place
RETURNING q.number"""
# The one that waits for a lock, with its parameters in their own types.
UPDATE_WAITING = """\
UPDATE {table} AS s SET {places}
WHERE s.saga_name = $1 AND s.saga_id = $2 AND s.version = {extra}
RETURNING 1"""

SELECT_VERSION = "SELECT version FROM {table} WHERE saga_name = $1 AND saga_id = $2"
SELECT_VERSIONS = """\
SELECT q.number, s.version
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS q(saga_name, saga_id, number)
CROSS JOIN LATERAL (
    SELECT s.version FROM {table} AS s WHERE s.saga_name = q.saga_name AND s.saga_id = q.saga_id
    OFFSET 0
) AS s"""

# Whoever inserts the same key in another open transaction makes an insert wait. A group does not wait for long:
# then its rows are inserted one by one, outside of the group. The setting ends with the statement's transaction,
# so it is no session state.
INSERT_MANY = """\
INSERT INTO {table} ({names}, correlation_id)
SELECT {values_of_q}, q.extra
FROM (SELECT set_config('lock_timeout', '50ms', true) AS value OFFSET 0) AS patience,
     {group}
WHERE patience.value IS NOT NULL
ON CONFLICT DO NOTHING
RETURNING saga_name, saga_id"""
INSERT_WAITING = """\
INSERT INTO {table} ({names}, correlation_id) VALUES ({values}, {extra})
ON CONFLICT DO NOTHING
RETURNING 1"""

# Which of the two keys of each row is taken.
SELECT_TAKEN = """\
SELECT
  EXISTS (SELECT FROM {table} AS s WHERE s.saga_name = q.saga_name AND s.saga_id = q.saga_id),
  EXISTS (SELECT FROM {table} AS s WHERE s.saga_name = q.saga_name AND s.correlation_id = q.correlation_id)
FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS q(saga_name, saga_id, correlation_id, number)
ORDER BY q.number"""

DELETE = "DELETE FROM {table} WHERE saga_name = $1 AND saga_id = $2 RETURNING 1"
DELETE_VERSION = "DELETE FROM {table} WHERE saga_name = $1 AND saga_id = $2 AND version = $3 RETURNING 1"

# What others work on is passed over; the conditions stand in the DELETE again, which sees the latest version.
PURGE = """\
DELETE FROM {table}
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {table} WHERE saga_name = $1 AND ended_at < $2::text::timestamptz
    ORDER BY ended_at LIMIT $3 FOR UPDATE SKIP LOCKED
)) AND saga_name = $1 AND ended_at < $2::text::timestamptz"""


def fill(statement: str, **names: str) -> str:
    """Put names, already quoted, into the braces of a statement.

    Args:
        statement: The statement.
        **names: What stands for each name in braces; it may hold braces itself.
    """
    return re.sub(r"\{(\w+)\}", lambda found: names[found[1]], statement)


def quoted_table(schema: str, table: str) -> str:
    """The name of the table as it stands in a statement.

    Args:
        schema: The schema's name, not quoted.
        table: The table's name, not quoted.
    """
    return f"{quote_identifier(schema)}.{quote_identifier(table)}"


class Statements:
    """The statements for one table.

    Args:
        schema: The schema's name, not quoted.
        table: The table's name, not quoted.
    """

    def __init__(self, schema: str, table: str) -> None:
        # The server reads the JSON: a user's pool may have its own way to send a jsonb.
        places = [f"${n}::text::jsonb" if kind == "jsonb" else f"${n}" for n, (_, kind) in enumerate(VALUES, start=1)]
        names = {
            "table": quoted_table(schema, table),
            "document": DOCUMENT,
            "names": ", ".join(name for name, _ in VALUES),
            "group": GROUP,
            "values_of_q": ", ".join(f"q.{name}" for name, _ in VALUES),
            "assignments": ", ".join(f"{name} = q.{name}" for name, _ in VALUES[2:]),
            "places": ", ".join(f"{name} = {place}" for (name, _), place in list(zip(VALUES, places, strict=True))[2:]),
            "values": ", ".join(places),
            "extra": _EXTRA,
        }

        def named(statement: str, key: str = "") -> str:
            return fill(statement, key=key, **names)

        self.get_one = {key: named(GET_ONE, key) for key in ("saga_id", "correlation_id")}
        self.get_many = {key: named(GET_MANY, key) for key in ("saga_id", "correlation_id")}
        self.insert_many = named(INSERT_MANY)
        self.insert_waiting = named(INSERT_WAITING)
        self.update_many = named(UPDATE_MANY)
        self.update_waiting = named(UPDATE_WAITING)
        self.delete = named(DELETE)
        self.delete_version = named(DELETE_VERSION)
        self.select_version = named(SELECT_VERSION)
        self.select_versions = named(SELECT_VERSIONS)
        self.select_taken = named(SELECT_TAKEN)
        self.purge = named(PURGE)

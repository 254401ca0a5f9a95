"""The table, its indexes and their version: creating, checking, migrating and dropping them.

``create``, ``check`` and ``drop`` take an open connection; ``create`` and ``drop`` want to be called inside a
transaction, which they leave open.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from saga_bus.store import InvalidSagaError, SchemaError
from saga_bus.store.identifiers import check_identifier, derived_identifier, quote_identifier
from saga_bus.store_sqlite._rows import rows

__all__ = [
    "COMPLETED",
    "COMPLETED_OF_NAME",
    "DUE",
    "INDEXES",
    "MIGRATIONS",
    "NEWEST",
    "NEWEST_OF_NAME",
    "PENDING_NEWEST",
    "PENDING_STALEST",
    "RUNNING",
    "VERSION_TABLE",
    "Index",
    "check",
    "check_table_name",
    "create",
    "drop",
    "get_schema_sql",
    "hour_of",
    "package_version",
]

VERSION_TABLE = "saga_bus_schema"

# MIGRATIONS[0] turns a table of version 1 into one of version 2, and so on.
MIGRATIONS: tuple[Callable[[sqlite3.Connection, str], None], ...] = ()


@dataclass(frozen=True)
class Index:
    """One index: what its name ends with, its columns, and for a partial one which rows it holds.

    Args:
        suffix: Told apart from the table's other indexes by this.
        fixed: The leading columns, for which a query gives one value each.
        key: The columns that follow, in which it sorts, or the first of them where it is coarser than the order.
        rows: The condition of a partial index, as it must also stand in a query.
        extra: Columns behind the key, so that a count reads the index alone (older SQLites look the columns
            of ``rows`` up in the table).
    """

    suffix: str
    fixed: tuple[str, ...]
    key: tuple[str, ...]
    rows: str | None = None
    extra: tuple[str, ...] = ()

    def name(self, table: str) -> str:
        """The quoted name of the index of a table.

        Args:
            table: The table's name, not quoted.
        """
        return quote_identifier(derived_identifier(table, self.suffix))


# Every update sets updated_at, so an index on it is rewritten by every update, in two places: as much work as the
# row itself. The index of the running sagas, which are updated again and again, therefore has the hour alone, and
# SQLite sorts within one hour. The exact indexes hold the sagas that have completed, which hardly ever change
# again, and the few with a pending outbox; they begin with the hour too, so that all walk in the same order.
NEWEST = Index("ix_newest", (), ("created_at", "saga_name", "saga_id"))
NEWEST_OF_NAME = Index("ix_newest_of_name", ("saga_name",), ("created_at", "saga_id"))
RUNNING = Index("ix_running", (), ("updated_hour",), "is_completed = 0", ("saga_name", "is_completed"))
COMPLETED = Index(
    "ix_completed", (), ("updated_hour", "updated_at", "saga_name", "saga_id"), "is_completed = 1", ("is_completed",)
)
COMPLETED_OF_NAME = Index(
    "ix_completed_of_name",
    ("saga_name",),
    ("updated_hour", "updated_at", "saga_id"),
    "is_completed = 1",
    ("is_completed",),
)
DUE = Index(
    "ix_due",
    (),
    ("timeout_expires_at", "saga_name", "saga_id"),
    "is_completed = 0 AND timeout_expires_at IS NOT NULL",
    ("is_completed",),
)
PENDING_NEWEST = Index("ix_pending_newest", (), ("created_at", "saga_name", "saga_id"), "outbox_pending = 1")
PENDING_STALEST = Index(
    "ix_pending_stalest",
    (),
    ("updated_hour", "updated_at", "saga_name", "saga_id"),
    "outbox_pending = 1",
    ("outbox_pending",),
)
INDEXES = (NEWEST, NEWEST_OF_NAME, RUNNING, COMPLETED, COMPLETED_OF_NAME, DUE, PENDING_NEWEST, PENDING_STALEST)

# Timestamps are microseconds since 1970 in UTC, updated_hour is the hour of updated_at; state is the whole JSON
# document, of which the columns from version to outbox_pending are an index. Text compares byte by byte (BINARY is
# SQLite's default).
_CREATE_TABLE = """\
CREATE TABLE {table} (
    saga_name           TEXT    NOT NULL,
    saga_id             TEXT    NOT NULL,
    correlation_id      TEXT    NOT NULL,
    version             INTEGER NOT NULL,
    is_completed        INTEGER NOT NULL,
    created_at          INTEGER NOT NULL,
    updated_at          INTEGER NOT NULL,
    updated_hour        INTEGER NOT NULL,
    archived_at         INTEGER,
    timeout_expires_at  INTEGER,
    outbox_pending      INTEGER NOT NULL,
    state               TEXT    NOT NULL,
    PRIMARY KEY (saga_name, saga_id),
    UNIQUE (saga_name, correlation_id)
){strict}"""
_CREATE_INDEX = "CREATE INDEX {index} ON {table} ({columns}){rows}"
# SQLite takes table names without regard to the case of ASCII letters, so the record of a table must too.
_CREATE_VERSION_TABLE = """\
CREATE TABLE IF NOT EXISTS saga_bus_schema (
    table_name  TEXT    NOT NULL COLLATE NOCASE PRIMARY KEY,
    version     INTEGER NOT NULL
)"""
_SELECT_VERSION = "SELECT version FROM saga_bus_schema WHERE table_name = ?"
_INSERT_VERSION = "INSERT INTO saga_bus_schema (table_name, version) VALUES (?, ?)"
_UPDATE_VERSION = "UPDATE saga_bus_schema SET version = ? WHERE table_name = ?"
_DELETE_VERSION = "DELETE FROM saga_bus_schema WHERE table_name = ?"
_COUNT_VERSIONS = "SELECT count(*) FROM saga_bus_schema"
_DROP_VERSION_TABLE = "DROP TABLE saga_bus_schema"
_HAS_VERSION_TABLE = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'saga_bus_schema'"
_HAS_TABLE = "SELECT 1 FROM sqlite_master WHERE name = ? COLLATE NOCASE"

_STRICT_SINCE = (3, 37, 0)
_HOUR = 3_600_000_000  # microseconds


def hour_of(moment: int) -> int:
    """The column ``updated_hour`` for a value of ``updated_at``.

    Args:
        moment: Microseconds since 1970 in UTC; negative before.
    """
    return moment // _HOUR


def package_version() -> int:
    """The schema version of this package."""
    return 1 + len(MIGRATIONS)


def check_table_name(table: str) -> str:
    """Refuse a table name that SQLite or the store needs for itself.

    Args:
        table: 1 to 63 bytes in UTF-8.

    Returns:
        The same name.

    Raises:
        InvalidSagaError: It is a bad one.
    """
    check_identifier(table)
    if table.lower().startswith("sqlite_") or table.lower() == VERSION_TABLE:
        raise InvalidSagaError(f"the table name {table!r} is reserved")
    return table


def get_schema_sql(*, table: str = "saga_instances") -> str:
    """The statements that ``create_schema`` runs on an empty database, for people who run them by themselves.

    Args:
        table: The table's name.

    Raises:
        InvalidSagaError: A bad table name.
    """
    check_table_name(table)
    literal = table.replace("'", "''")
    record = _INSERT_VERSION.replace("?, ?", f"'{literal}', {package_version()}")
    return "".join(f"{statement};\n\n" for statement in (*_table_statements(table), _CREATE_VERSION_TABLE, record))


def create(connection: sqlite3.Connection, table: str) -> None:
    """Create the table, or migrate it to the package's version; nothing to do is no error.

    Args:
        connection: A connection with an open write transaction.
        table: The table's name.

    Raises:
        SchemaError: The table is newer than the package, or was not made by it.
    """
    connection.execute(_CREATE_VERSION_TABLE)
    found = _version(connection, table)
    if found is None:
        if rows(connection, _HAS_TABLE, (table,)):
            raise SchemaError(f"there is a table {table!r} that create_schema() did not make: choose another name")
        for statement in _table_statements(table):
            connection.execute(statement)
        connection.execute(_INSERT_VERSION, (table, package_version()))
        return
    _refuse_newer(table, found)
    for migrate in MIGRATIONS[found - 1 :]:
        migrate(connection, table)
    connection.execute(_UPDATE_VERSION, (package_version(), table))


def check(connection: sqlite3.Connection, table: str) -> None:
    """Refuse a schema that is not the package's.

    Args:
        connection: Any connection.
        table: The table's name.

    Raises:
        SchemaError: The table is missing, older or newer; the message says what to do.
    """
    found = _version(connection, table) if rows(connection, _HAS_VERSION_TABLE) else None
    if found is None:
        raise SchemaError(f"there is no saga table {table!r} in the database: run create_schema()")
    _refuse_newer(table, found)
    if found < package_version():
        raise SchemaError(
            f"the table {table!r} has schema version {found}, the package needs {package_version()}: "
            "run create_schema() to migrate it"
        )


def drop(connection: sqlite3.Connection, table: str) -> None:
    """Drop the table with its sagas and its version; nothing to drop is no error.

    Args:
        connection: A connection with an open write transaction.
        table: The table's name.
    """
    if not rows(connection, _HAS_VERSION_TABLE) or _version(connection, table) is None:
        return
    connection.execute(f"DROP TABLE IF EXISTS {quote_identifier(table)}")
    connection.execute(_DELETE_VERSION, (table,))
    if rows(connection, _COUNT_VERSIONS)[0][0] == 0:
        connection.execute(_DROP_VERSION_TABLE)


def _table_statements(table: str) -> list[str]:
    strict = " STRICT" if sqlite3.sqlite_version_info >= _STRICT_SINCE else ""
    quoted = quote_identifier(table)
    indexes = [
        _CREATE_INDEX.format(
            index=index.name(table),
            table=quoted,
            columns=", ".join(index.fixed + index.key + index.extra),
            rows=f" WHERE {index.rows}" if index.rows else "",
        )
        for index in INDEXES
    ]
    return [_CREATE_TABLE.format(table=quoted, strict=strict), *indexes]


def _version(connection: sqlite3.Connection, table: str) -> int | None:
    found = rows(connection, _SELECT_VERSION, (table,))
    return int(found[0][0]) if found else None


def _refuse_newer(table: str, found: int) -> None:
    if found > package_version():
        raise SchemaError(
            f"the table {table!r} has schema version {found}, newer than this package's {package_version()}: "
            "upgrade saga-bus-store-sqlite"
        )

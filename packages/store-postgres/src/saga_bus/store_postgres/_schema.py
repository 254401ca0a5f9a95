"""The table, its indexes and their version: creating, checking, migrating and dropping them.

``create``, ``check`` and ``drop`` take a connection; ``create`` and ``drop`` want to be called inside a
transaction, which they leave open.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from saga_bus.store import InvalidSagaError, SchemaError
from saga_bus.store.identifiers import check_identifier, derived_identifier, quote_identifier
from saga_bus.store_postgres._statements import fill, quoted_table

__all__ = [
    "INDEXES",
    "MIGRATIONS",
    "VERSION_TABLE",
    "Index",
    "check",
    "check_names",
    "create",
    "drop",
    "get_schema_sql",
    "package_version",
]

VERSION_TABLE = "saga_bus_schema"

# MIGRATIONS[0] turns a table of version 1 into one of version 2, and so on: (connection, schema, table).
MIGRATIONS: tuple[Callable[[Any, str, str], Awaitable[None]], ...] = ()

# Any number, as long as all processes take the same: they create schemas one after the other.
_LOCK = 0x5361_6761_4275_7301


@dataclass(frozen=True)
class Index:
    """One index: what its name ends with, its columns, and for a partial one which rows it holds.

    Args:
        suffix: Told apart from the table's other indexes by this.
        columns: The columns.
        rows: The condition of a partial index, as it must also stand in a query.
    """

    suffix: str
    columns: tuple[str, ...]
    rows: str | None = None


# An update is HOT (it writes no index at all) if it changes the value of no column that any index mentions, in its
# condition too. So no index mentions updated_at, which every update changes: the completed sagas are found by
# ended_at, which is null while a saga runs, and the running ones by updated_day, which changes at most once a day.
INDEXES = (
    Index("ix_newest", ("created_at", "saga_name", "saga_id")),
    Index("ix_newest_of_name", ("saga_name", "created_at", "saga_id")),
    Index("ix_running", ("updated_day", "saga_name"), "NOT is_completed"),
    Index("ix_completed", ("ended_at", "saga_name", "saga_id"), "ended_at IS NOT NULL"),
    Index("ix_completed_of_name", ("saga_name", "ended_at", "saga_id"), "ended_at IS NOT NULL"),
    Index(
        "ix_due",
        ("timeout_expires_at", "saga_name", "saga_id"),
        "NOT is_completed AND timeout_expires_at IS NOT NULL",
    ),
    Index("ix_pending", ("created_at", "saga_name", "saga_id"), "outbox_pending"),
)

# state is the whole document, of which the columns from version to outbox_pending are an index. Text compares byte
# by byte (C), whatever the database's collation. Half of each page is left free
# (fillfactor): a group may update all sagas of a page at once, and HOT updates write beside the versions before.
_CREATE_TABLE = """\
CREATE TABLE {table} (
    saga_name           text        COLLATE "C" NOT NULL,
    saga_id             text        COLLATE "C" NOT NULL,
    correlation_id      text        COLLATE "C" NOT NULL,
    version             bigint      NOT NULL,
    is_completed        boolean     NOT NULL,
    created_at          timestamptz NOT NULL,
    updated_at          timestamptz NOT NULL,
    archived_at         timestamptz,
    timeout_expires_at  timestamptz,
    outbox_pending      boolean     NOT NULL,
    state               jsonb       NOT NULL,
    exact_state         text,
    updated_day         date        GENERATED ALWAYS AS ((updated_at AT TIME ZONE 'UTC')::date) STORED,
    ended_at            timestamptz GENERATED ALWAYS AS (CASE WHEN is_completed THEN updated_at END) STORED,
    CONSTRAINT {pkey} PRIMARY KEY (saga_name, saga_id),
    CONSTRAINT {correlation_key} UNIQUE (saga_name, correlation_id)
) WITH (fillfactor = 50)"""
_CREATE_INDEX = "CREATE INDEX {index} ON {table} ({columns}){rows}"
_CREATE_VERSION_TABLE = """\
CREATE TABLE {versions} (
    table_name  text    COLLATE "C" PRIMARY KEY,
    version     integer NOT NULL
)"""
_CREATE_SCHEMA = "CREATE SCHEMA {schema}"
_TAKE_LOCK = f"SELECT pg_advisory_xact_lock({_LOCK})"
_HAS_SCHEMA = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)"
_HAS_TABLE = """\
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2
)"""
_SELECT_VERSION = "SELECT version FROM {versions} WHERE table_name = $1"
_INSERT_VERSION = "INSERT INTO {versions} (table_name, version) VALUES ($1, $2)"
_UPDATE_VERSION = "UPDATE {versions} SET version = $2 WHERE table_name = $1"
_DELETE_VERSION = "DELETE FROM {versions} WHERE table_name = $1"
_HAS_VERSIONS = "SELECT EXISTS (SELECT FROM {versions})"


def package_version() -> int:
    """The schema version of this package."""
    return 1 + len(MIGRATIONS)


def check_names(schema: str, table: str) -> None:
    """Refuse names that PostgreSQL would cut or that the store needs for itself.

    Args:
        schema: 1 to 63 bytes in UTF-8.
        table: 1 to 63 bytes in UTF-8.

    Raises:
        InvalidSagaError: One of them is bad.
    """
    check_identifier(schema, what="schema")
    check_identifier(table)
    if table == VERSION_TABLE:
        raise InvalidSagaError(f"the table name {table!r} is reserved")


def get_schema_sql(*, table: str = "saga_instances", schema: str = "public") -> str:
    """The statements that ``create_schema`` runs on an empty database, for people who run them by themselves.

    Args:
        table: The table's name.
        schema: The schema's name; "public" is taken to be there.

    Raises:
        InvalidSagaError: A bad name.
    """
    check_names(schema, table)
    literal = "'" + table.replace("'", "''") + "'"
    values = f"{literal}, {package_version()}"
    statements = [
        *([] if schema == "public" else [_sql(_CREATE_SCHEMA, schema).replace("SCHEMA", "SCHEMA IF NOT EXISTS", 1)]),
        *_table_statements(schema, table),
        _sql(_CREATE_VERSION_TABLE, schema).replace("TABLE", "TABLE IF NOT EXISTS", 1),
        _sql(_INSERT_VERSION, schema).replace("$1, $2", values),
    ]
    return "".join(f"{statement};\n\n" for statement in statements)


async def create(connection: Any, schema: str, table: str) -> None:
    """Create the table, or migrate it to the package's version; nothing to do is no error.

    Args:
        connection: A connection with an open transaction.
        schema: The schema's name; it is created if it is missing.
        table: The table's name.

    Raises:
        SchemaError: The table is newer than the package, or was not made by it.
    """
    await connection.execute(_TAKE_LOCK)
    if not await connection.fetchval(_HAS_SCHEMA, schema):
        await connection.execute(_sql(_CREATE_SCHEMA, schema))
    if not await connection.fetchval(_HAS_TABLE, schema, VERSION_TABLE):
        await connection.execute(_sql(_CREATE_VERSION_TABLE, schema))
    found: int | None = await connection.fetchval(_sql(_SELECT_VERSION, schema), table)
    there = await connection.fetchval(_HAS_TABLE, schema, table)
    if not there:
        for statement in _table_statements(schema, table):
            await connection.execute(statement)
        record = _INSERT_VERSION if found is None else _UPDATE_VERSION
        await connection.execute(_sql(record, schema), table, package_version())
        return
    if found is None:
        raise SchemaError(f"there is a table {table!r} that create_schema() did not make: choose another name")
    _refuse_newer(table, found)
    if found < package_version():
        for migrate in MIGRATIONS[found - 1 :]:
            await migrate(connection, schema, table)
        await connection.execute(_sql(_UPDATE_VERSION, schema), table, package_version())


async def check(connection: Any, schema: str, table: str) -> None:
    """Refuse a schema that is not the package's.

    Args:
        connection: Any connection.
        schema: The schema's name.
        table: The table's name.

    Raises:
        SchemaError: The table is missing, older or newer; the message says what to do.
    """
    found: int | None = None
    if await connection.fetchval(_HAS_TABLE, schema, VERSION_TABLE):
        found = await connection.fetchval(_sql(_SELECT_VERSION, schema), table)
    if found is None or not await connection.fetchval(_HAS_TABLE, schema, table):
        raise SchemaError(f"there is no saga table {table!r} in the schema {schema!r}: run create_schema()")
    _refuse_newer(table, found)
    if found < package_version():
        raise SchemaError(
            f"the table {table!r} has schema version {found}, the package needs {package_version()}: "
            "run create_schema() to migrate it"
        )


async def drop(connection: Any, schema: str, table: str) -> None:
    """Drop the table with its sagas and its version; nothing to drop is no error, and the schema itself stays.

    Args:
        connection: A connection with an open transaction.
        schema: The schema's name.
        table: The table's name.
    """
    await connection.execute(_TAKE_LOCK)
    if not await connection.fetchval(_HAS_TABLE, schema, VERSION_TABLE):
        return
    if await connection.fetchval(_sql(_SELECT_VERSION, schema), table) is None:
        return
    await connection.execute(f"DROP TABLE IF EXISTS {quoted_table(schema, table)}")
    await connection.execute(_sql(_DELETE_VERSION, schema), table)
    if not await connection.fetchval(_sql(_HAS_VERSIONS, schema)):
        await connection.execute(f"DROP TABLE {quoted_table(schema, VERSION_TABLE)}")


def _sql(statement: str, schema: str) -> str:
    return fill(statement, schema=quote_identifier(schema), versions=quoted_table(schema, VERSION_TABLE))


def _table_statements(schema: str, table: str) -> list[str]:
    def named(suffix: str) -> str:
        return quote_identifier(derived_identifier(table, suffix))

    name = quoted_table(schema, table)
    indexes = [
        fill(
            _CREATE_INDEX,
            index=named(index.suffix),
            table=name,
            columns=", ".join(index.columns),
            rows=f" WHERE {index.rows}" if index.rows else "",
        )
        for index in INDEXES
    ]
    keys = {"pkey": named("pkey"), "correlation_key": named("correlation_key")}
    return [fill(_CREATE_TABLE, table=name, **keys), *indexes]


def _refuse_newer(table: str, found: int) -> None:
    if found > package_version():
        raise SchemaError(
            f"the table {table!r} has schema version {found}, newer than this package's {package_version()}: "
            "upgrade saga-bus-store-postgres"
        )

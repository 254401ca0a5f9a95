"""Creating, checking and dropping the table, by statements that the client sends as they are."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from saga_bus.store import SchemaError
from saga_bus.store.identifiers import QuoteStyle, derived_identifier, quote_identifier
from saga_bus.store_prisma._client import PrismaClient, raw
from saga_bus.store_prisma._model import (
    FIELDS,
    INDEXES,
    KEYS,
    Model,
    Provider,
    check_provider,
    check_table,
    problems_of,
)
from saga_bus.store_prisma._operations import called
from saga_bus.store_prisma._statements import DATABASES

__all__ = ["check", "create", "drop", "get_schema_sql"]

_STYLES: dict[str, QuoteStyle] = {"mysql": "mysql", "sqlserver": "sqlserver"}
_WIDTHS = {"saga_name": 128, "saga_id": 128, "correlation_id": 256}
_UNITS = {"sqlserver": 2}  # a character can be two of its units

# The indexes of saga-bus-store-sqlite, which names them in its statements.
_SQLITE_INDEXES = (
    ("ix_newest", "created_at, saga_name, saga_id", ""),
    ("ix_newest_of_name", "saga_name, created_at, saga_id", ""),
    ("ix_running", "updated_hour, saga_name, is_completed", "is_completed = 0"),
    ("ix_completed", "updated_hour, updated_at, saga_name, saga_id, is_completed", "is_completed = 1"),
    ("ix_completed_of_name", "saga_name, updated_hour, updated_at, saga_id, is_completed", "is_completed = 1"),
    (
        "ix_due",
        "timeout_expires_at, saga_name, saga_id, is_completed",
        "is_completed = 0 AND timeout_expires_at IS NOT NULL",
    ),
    ("ix_pending_newest", "created_at, saga_name, saga_id", "outbox_pending = 1"),
    ("ix_pending_stalest", "updated_hour, updated_at, saga_name, saga_id, outbox_pending", "outbox_pending = 1"),
)
# Where saga-bus-store-sqlite keeps the version of its tables; this is its version 1.
_SQLITE_VERSION_TABLE = """\
CREATE TABLE IF NOT EXISTS saga_bus_schema (
    table_name  TEXT    NOT NULL COLLATE NOCASE PRIMARY KEY,
    version     INTEGER NOT NULL
)"""
_SQLITE_RECORD = "INSERT INTO saga_bus_schema (table_name, version) VALUES ({table}, 1)"
_SQLITE_HAS_VERSIONS = "SELECT count(*) AS number FROM sqlite_master WHERE name = 'saga_bus_schema'"
_SQLITE_KNOWN = "SELECT version FROM saga_bus_schema WHERE table_name = ?"
_SQLITE_FORGET = "DELETE FROM saga_bus_schema WHERE table_name = {table}"

# Any number, as long as all processes take the same: they create tables one after the other.
_TAKE_LOCK = "SELECT pg_advisory_xact_lock(6008203951407370034)::text AS taken"

_MAX_WAIT = timedelta(seconds=20)
_TIMEOUT = timedelta(seconds=60)


def get_schema_sql(*, provider: Provider = "postgresql", table: str = "saga_instances") -> str:
    """The statements that ``create_schema`` runs, for a migration or for people who run them by themselves.

    Args:
        provider: The datasource's provider: "postgresql", "mysql", "sqlite" or "sqlserver".
        table: The table's name.

    Raises:
        InvalidSagaError: A bad name, or another provider.
    """
    check_provider(provider)
    check_table(table)
    return "".join(f"{statement};\n\n" for statement in _statements(provider, table, None))


async def create(prisma: PrismaClient, model: Model) -> None:
    """Create the table of a model; one that serves already is left as it is.

    Args:
        prisma: The client.
        model: The model.

    Raises:
        SchemaError: The model does not fit, or there is another table of that name.
    """
    _refuse_misfit(model)
    if model.provider == "postgresql":
        await called(_create_in_turn(prisma, model), writing=True)
    elif model.provider == "sqlite":
        await _create_on_sqlite(prisma, model)
    else:
        if not await _columns(prisma, model):
            for statement in _statements(model.provider, model.table, model.schema):
                await _execute(prisma, statement)  # one, which does nothing where the table is
        await check(prisma, model)


async def _create_in_turn(prisma: PrismaClient, model: Model) -> None:
    async with prisma.tx(max_wait=_MAX_WAIT, timeout=_TIMEOUT) as transaction:
        await transaction.query_raw(_TAKE_LOCK)
        if await _columns(transaction, model):
            await check(transaction, model)
            return
        for statement in _statements(model.provider, model.table, model.schema):
            await transaction.execute_raw(statement)


async def _create_on_sqlite(prisma: PrismaClient, model: Model) -> None:
    """Statement by statement: transactions of SQLite that read first and then write cannot wait for one another."""
    known = int((await _rows(prisma, _SQLITE_HAS_VERSIONS))[0]["number"]) and await _rows(
        prisma, _SQLITE_KNOWN, model.table
    )
    if not known and await _columns(prisma, model):  # made by somebody else, Prisma Migrate perhaps
        await check(prisma, model)
        return
    table, *indexes, versions, record = _statements(model.provider, model.table, model.schema)
    # The record goes first, so that what was interrupted is known for ours, and is finished by the next call.
    for statement in (versions, record, table, *indexes):
        await _execute(prisma, _idempotent(statement))
    await check(prisma, model)


def _idempotent(statement: str) -> str:
    for start in ("CREATE TABLE", "CREATE INDEX"):
        if statement.startswith(start) and not statement.startswith(f"{start} IF NOT EXISTS"):
            return statement.replace(start, f"{start} IF NOT EXISTS", 1)
    return statement.replace("INSERT", "INSERT OR IGNORE", 1) if statement.startswith("INSERT") else statement


async def check(prisma: PrismaClient, model: Model) -> None:
    """Refuse a model that is not the store's, and a table that is not the model's.

    Args:
        prisma: The client.
        model: The model.

    Raises:
        SchemaError: What is wrong, and what to run.
    """
    _refuse_misfit(model)
    columns = await _columns(prisma, model)
    if not columns:
        raise SchemaError(f"there is no saga table {model.table!r}: run create_schema(), or migrate")
    problems = [*_column_problems(model, columns), *await _key_problems(prisma, model)]
    if problems:
        raise SchemaError(
            f"the table {model.table!r} is not the store's: {'; '.join(problems)}. get_schema_sql() shows what it "
            "must be; with another @@map in schema.prisma, create_schema() makes one"
        )


async def drop(prisma: PrismaClient, model: Model) -> None:
    """Drop the table of a model; one that is not there is no error.

    Args:
        prisma: The client.
        model: The model.

    Raises:
        SchemaError: The table is not the store's.
    """
    if not await _columns(prisma, model):
        return
    await check(prisma, model)
    table = _quoted(model.provider, model.table, model.schema)
    await _execute(prisma, f"DROP TABLE IF EXISTS {table}")
    if model.provider == "sqlite" and int((await _rows(prisma, _SQLITE_HAS_VERSIONS))[0]["number"]):
        await _execute(prisma, _SQLITE_FORGET.format(table=_literal(model.table)))


def _refuse_misfit(model: Model) -> None:
    problems = list(problems_of(model))
    if problems:
        raise SchemaError(
            f"the model {model.name} is not the store's: {'; '.join(problems)}. Put get_schema_prisma() into "
            "schema.prisma, run `prisma generate`, and create_schema()"
        )


def _column_problems(model: Model, columns: dict[str, tuple[str, int | None]]) -> Iterator[str]:
    kinds = DATABASES[model.provider].kinds
    for name, wanted in FIELDS.items():
        column = model.fields[name].column
        if column not in columns:
            yield f"the column {column} is missing"
            continue
        kind, width = columns[column]
        if kind not in kinds[wanted.removesuffix("?")]:
            yield f"the column {column} is of the type {kind}"
        elif wanted == "String" and width not in (None, -1):
            least = _WIDTHS.get(name, 2**24) * _UNITS.get(model.provider, 1)
            if width < least:
                yield f"the column {column} has room for {width} characters only"


async def _key_problems(prisma: PrismaClient, model: Model) -> list[str]:
    found: dict[Any, dict[int, str]] = {}
    for row in await _rows(prisma, DATABASES[model.provider].keys, model.table, model.schema or ""):
        found.setdefault(row["key"], {})[int(row["place"])] = row["name"]
    there = {frozenset(columns.values()) for columns in found.values()}
    return [
        f"the unique key on ({', '.join(key)}) is missing"
        for key in KEYS
        if frozenset(model.fields[name].column for name in key) not in there
    ]


async def _columns(prisma: PrismaClient, model: Model) -> dict[str, tuple[str, int | None]]:
    """The kind and the width of each column; none where there is no table."""
    rows = await _rows(prisma, DATABASES[model.provider].columns, model.table, model.schema or "")
    return {row["name"]: (row["kind"], None if row["width"] is None else int(row["width"])) for row in rows}


async def _rows(prisma: PrismaClient, statement: str, *parameters: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = await called(prisma.query_raw(raw(statement), *parameters))
    return rows


async def _execute(prisma: PrismaClient, statement: str) -> None:
    await called(prisma.execute_raw(raw(statement)), writing=True)


def _statements(provider: str, table: str, schema: str | None) -> list[str]:
    style = _STYLES.get(provider, "ansi")

    def named(suffix: str) -> str:
        return quote_identifier(derived_identifier(table, suffix), style=style)

    quoted = _quoted(provider, table, schema)
    create_table = DATABASES[provider].table
    if provider == "sqlite":
        indexes = [
            f"CREATE INDEX {named(suffix)} ON {quoted} ({columns})" + (f" WHERE {rows}" if rows else "")
            for suffix, columns, rows in _SQLITE_INDEXES
        ]
        record = _SQLITE_RECORD.format(table=_literal(table))
        return [create_table.format(table=quoted), *indexes, _SQLITE_VERSION_TABLE, record]
    keys = {"pkey": named("pkey"), "correlation_key": named("correlation_key")}
    if provider == "postgresql":
        indexes = [
            f"CREATE INDEX {named(suffix)} ON {quoted} ({', '.join(columns)})" for suffix, columns in INDEXES.items()
        ]
        return [create_table.format(table=quoted, **keys), *indexes]
    inline = ",\n".join(f"    INDEX {named(suffix)} ({', '.join(columns)})" for suffix, columns in INDEXES.items())
    return [create_table.format(table=quoted, literal="N" + _literal(quoted), indexes=inline, **keys)]


def _quoted(provider: str, table: str, schema: str | None) -> str:
    style = _STYLES.get(provider, "ansi")
    quoted = quote_identifier(table, style=style)
    return quoted if schema is None else f"{quote_identifier(schema, style=style)}.{quoted}"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"

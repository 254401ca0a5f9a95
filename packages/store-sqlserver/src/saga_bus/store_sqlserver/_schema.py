"""The table, its indexes and their version: creating, checking, migrating and dropping them.

``create``, ``check`` and ``drop`` take a session; ``create`` and ``drop`` want to be called inside a transaction,
which they leave open. The SQL is for SQL Server 2017 and later, and keeps to what Babelfish has too: no MERGE, no
filtered indexes (which a session with other SET options could not write to), no names of indexes looked up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from saga_bus.store import InvalidSagaError, SagaStoreError, SchemaError, StoreUnavailableError
from saga_bus.store.identifiers import check_identifier, derived_identifier, quote_identifier
from saga_bus.store_sqlserver._sessions import Session
from saga_bus.store_sqlserver._values import COUNT, IDENTIFIER, Statement

__all__ = [
    "COLLATION",
    "INDEXES",
    "KEY_COLUMNS",
    "MIGRATIONS",
    "VERSION_TABLE",
    "Index",
    "Place",
    "check",
    "create",
    "drop",
    "get_schema_sql",
    "package_version",
]

VERSION_TABLE = "saga_bus_schema"
COLLATION = "Latin1_General_100_BIN2"
KEY_COLUMNS = ("saga_name", "saga_id", "correlation_id")

_MAX_NAME_BYTES = 128  # sysname has 128 UTF-16 units
_LOCK_MILLISECONDS = 60_000


@dataclass(frozen=True)
class Place:
    """A table in a schema.

    Args:
        table: The table's name, not quoted.
        schema: The schema's name, not quoted.

    Raises:
        InvalidSagaError: A bad name.
    """

    table: str
    schema: str

    def __post_init__(self) -> None:
        check_identifier(self.table, max_bytes=_MAX_NAME_BYTES)
        check_identifier(self.schema, what="schema", max_bytes=_MAX_NAME_BYTES)
        if self.table.lower() == VERSION_TABLE:
            raise InvalidSagaError(f"the table name {self.table!r} is reserved")
        if self.table.startswith("#"):
            raise InvalidSagaError(f"{self.table!r} is a temporary table, which only one connection can see")

    @property
    def quoted(self) -> str:
        """The table's quoted name with its schema."""
        return f"{self.quoted_schema}.{self.quoted_table}"

    @property
    def quoted_table(self) -> str:
        """The table's quoted name alone."""
        return _quoted(self.table)

    @property
    def quoted_schema(self) -> str:
        """The schema's quoted name."""
        return _quoted(self.schema)

    @property
    def quoted_version_table(self) -> str:
        """The quoted name of the table of versions, with its schema."""
        return f"{self.quoted_schema}.{_quoted(VERSION_TABLE)}"

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}"


# MIGRATIONS[0] turns a table of version 1 into one of version 2, and so on.
MIGRATIONS: tuple[Callable[[Session, Place], None], ...] = ()


@dataclass(frozen=True)
class Index:
    """One index: what its name ends with, and its columns in their order.

    Args:
        suffix: Told apart from the table's other indexes by this.
        columns: The columns.
    """

    suffix: str
    columns: tuple[str, ...]


# An update of a running saga rewrites the entries of ix_stalest, and of ix_due where its timeout changes; no other
# index has a column that an update sets (created_at is compared, not set, and flags rarely change).
INDEXES = (
    Index("ix_newest", ("created_at", "saga_name", "saga_id")),
    Index("ix_newest_of_name", ("saga_name", "created_at", "saga_id")),
    Index("ix_stalest", ("is_completed", "updated_at", "saga_name", "saga_id")),
    Index("ix_due", ("is_completed", "timeout_expires_at", "saga_name", "saga_id")),
    Index("ix_pending", ("outbox_pending", "created_at", "saga_name", "saga_id")),
)

# A clustered key of its own keeps the rows in the order of their arrival: the keys, in up to 1,540 bytes, are too
# long for a clustered index (900) and fit a nonclustered one (1,700). Text keys compare by their UTF-16 units;
# 128 and 256 characters can be 256 and 512 units, and one more is for the mark behind a trailing blank.
# Timestamps are UTC; state is the whole JSON document, of which the columns from version to outbox_pending are an
# index.
_CREATE_TABLE = """\
CREATE TABLE {table} (
    row_id              BIGINT IDENTITY(1, 1) NOT NULL,
    saga_name           NVARCHAR(257) COLLATE {collation} NOT NULL,
    saga_id             NVARCHAR(257) COLLATE {collation} NOT NULL,
    correlation_id      NVARCHAR(513) COLLATE {collation} NOT NULL,
    version             BIGINT NOT NULL,
    is_completed        BIT NOT NULL,
    created_at          DATETIME2(6) NOT NULL,
    updated_at          DATETIME2(6) NOT NULL,
    archived_at         DATETIME2(6) NULL,
    timeout_expires_at  DATETIME2(6) NULL,
    outbox_pending      BIT NOT NULL,
    state               NVARCHAR(MAX) NOT NULL,
    CONSTRAINT {row_key} UNIQUE CLUSTERED (row_id),
    CONSTRAINT {primary_key} PRIMARY KEY NONCLUSTERED (saga_name, saga_id),
    CONSTRAINT {correlation_key} UNIQUE NONCLUSTERED (saga_name, correlation_id),
    CONSTRAINT {json_check} CHECK (ISJSON(state) = 1)
)"""
_CREATE_INDEX = "CREATE NONCLUSTERED INDEX {index} ON {table} ({columns})"
_DROP_TABLE = "DROP TABLE {table}"
_CREATE_SCHEMA = "CREATE SCHEMA {schema}"

# The database compares the names of tables by its own collation, so the record of a table must too.
_CREATE_VERSION_TABLE = """\
CREATE TABLE {versions} (
    table_name  NVARCHAR(128) NOT NULL PRIMARY KEY,
    version     INT NOT NULL
)"""
_CREATE_SCHEMA_IF_MISSING = """\
IF NOT EXISTS (SELECT 1 FROM sys.schemas WHERE name = {schema})
    EXECUTE ({create})"""
_CREATE_VERSION_TABLE_IF_MISSING = """\
IF NOT EXISTS (SELECT 1 FROM INFORMATION_SCHEMA.TABLES WHERE TABLE_SCHEMA = {schema} AND TABLE_NAME = {name})
{create}"""
_RECORD_VERSION = "INSERT INTO {versions} (table_name, version) VALUES ({table}, {version})"
_SELECT_VERSION = "SELECT version FROM {versions} WHERE table_name = ?"
_INSERT_VERSION = "INSERT INTO {versions} (table_name, version) VALUES (?, ?)"
_UPDATE_VERSION = "UPDATE {versions} SET version = ? WHERE table_name = ?"
_DELETE_VERSION = "DELETE FROM {versions} WHERE table_name = ?"
_COUNT_VERSIONS = "SELECT COUNT(*) FROM {versions}"

_HAS_SCHEMA = Statement("SELECT COUNT(*) FROM sys.schemas WHERE name = ?", (IDENTIFIER,))
_HAS_TABLE = Statement(
    "SELECT COUNT(*) FROM INFORMATION_SCHEMA.TABLES WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ?",
    (IDENTIFIER, IDENTIFIER),
)
# One lock for all tables of a database: creating is rare. It ends with the transaction.
_LOCK = Statement(
    f"""\
DECLARE @outcome INT;
EXECUTE @outcome = sp_getapplock @Resource = N'saga_bus_schema', @LockMode = N'Exclusive',
    @LockOwner = N'Transaction', @LockTimeout = {_LOCK_MILLISECONDS};
SELECT @outcome AS outcome""",
    (),
)


def package_version() -> int:
    """The schema version of this package."""
    return 1 + len(MIGRATIONS)


def get_schema_sql(*, table: str = "saga_instances", schema: str = "dbo") -> str:
    """The statements that ``create_schema`` runs on an empty database, for people who run them by themselves.

    Args:
        table: The table's name.
        schema: The schema's name.

    Raises:
        InvalidSagaError: A bad name.
    """
    place = Place(table, schema)
    statements = [
        _CREATE_SCHEMA_IF_MISSING.format(
            schema=_literal(schema), create=_literal(_CREATE_SCHEMA.format(schema=place.quoted_schema))
        ),
        *_table_statements(place),
        _CREATE_VERSION_TABLE_IF_MISSING.format(
            schema=_literal(schema),
            name=_literal(VERSION_TABLE),
            create=_CREATE_VERSION_TABLE.format(versions=place.quoted_version_table),
        ),
        _RECORD_VERSION.format(versions=place.quoted_version_table, table=_literal(table), version=package_version()),
    ]
    return "".join(f"{statement};\n\n" for statement in statements)


def create(session: Session, place: Place) -> None:
    """Create the schema and the table, or migrate it to the package's version; nothing to do is no error.

    Args:
        session: A session with an open transaction.
        place: The table.

    Raises:
        SchemaError: The table is newer than the package, or was not made by it.
        StoreUnavailableError: Another process is creating one for too long.
    """
    _lock(session)
    if not _count(session, _HAS_SCHEMA, place.schema):
        session.run(_CREATE_SCHEMA.format(schema=place.quoted_schema))
    if not _has_version_table(session, place):
        session.run(_CREATE_VERSION_TABLE.format(versions=place.quoted_version_table))
    found = _version(session, place)
    if found is None:
        if _count(session, _HAS_TABLE, place.schema, place.table):
            raise SchemaError(f"there is a table {place} that create_schema() did not make: choose another name")
        for sql in _table_statements(place):
            session.run(sql)
        session.write(_on(place, _INSERT_VERSION, IDENTIFIER, COUNT), (place.table, package_version()))
        return
    _refuse_newer(place, found)
    if found < package_version():
        for migrate in MIGRATIONS[found - 1 :]:
            migrate(session, place)
        session.write(_on(place, _UPDATE_VERSION, COUNT, IDENTIFIER), (package_version(), place.table))


def check(session: Session, place: Place) -> None:
    """Refuse a schema that is not the package's.

    Args:
        session: Any session.
        place: The table.

    Raises:
        SchemaError: The table is missing, older or newer; the message says what to do.
    """
    found = _version(session, place) if _has_version_table(session, place) else None
    if found is None or not _count(session, _HAS_TABLE, place.schema, place.table):
        raise SchemaError(f"there is no saga table {place} in the database: run create_schema()")
    _refuse_newer(place, found)
    if found < package_version():
        raise SchemaError(
            f"the table {place} has schema version {found}, the package needs {package_version()}: "
            "run create_schema() to migrate it"
        )


def drop(session: Session, place: Place) -> None:
    """Drop the table with its sagas and its version, and leave the schema; nothing to drop is no error.

    Args:
        session: A session with an open transaction.
        place: The table.
    """
    _lock(session)
    if not _has_version_table(session, place) or _version(session, place) is None:
        return
    if _count(session, _HAS_TABLE, place.schema, place.table):
        session.run(_DROP_TABLE.format(table=place.quoted))
    session.write(_on(place, _DELETE_VERSION, IDENTIFIER), (place.table,))
    if not _count(session, _on(place, _COUNT_VERSIONS)):
        session.forget_cursors()  # none may hold on to the table
        session.run(_DROP_TABLE.format(table=place.quoted_version_table))


def _table_statements(place: Place) -> list[str]:
    names = {
        part: _quoted(derived_identifier(place.table, suffix))
        for part, suffix in (
            ("row_key", "ck"),
            ("primary_key", "pk"),
            ("correlation_key", "uq"),
            ("json_check", "js"),
        )
    }
    indexes = [
        _CREATE_INDEX.format(
            index=_quoted(derived_identifier(place.table, index.suffix)),
            table=place.quoted,
            columns=", ".join(index.columns),
        )
        for index in INDEXES
    ]
    return [_CREATE_TABLE.format(table=place.quoted, collation=COLLATION, **names), *indexes]


def _lock(session: Session) -> None:
    ((outcome,),) = session.read(_LOCK)
    if outcome == -3:
        raise StoreUnavailableError("the wait for the lock on the schema was chosen as the victim of a deadlock")
    if outcome in (-1, -2):
        raise StoreUnavailableError("another process has been creating or dropping a schema for too long")
    if outcome < 0:
        raise SagaStoreError(f"the lock on the schema was refused (sp_getapplock returned {outcome})")


def _has_version_table(session: Session, place: Place) -> bool:
    return bool(_count(session, _HAS_TABLE, place.schema, VERSION_TABLE))


def _version(session: Session, place: Place) -> int | None:
    found = session.read(_on(place, _SELECT_VERSION, IDENTIFIER), (place.table,))
    return int(found[0][0]) if found else None


def _count(session: Session, statement: Statement, *parameters: str) -> int:
    ((number,),) = session.read(statement, parameters)
    return int(number)


def _on(place: Place, sql: str, *bindings: tuple[int, int, int]) -> Statement:
    return Statement(sql.format(versions=place.quoted_version_table), bindings)


def _refuse_newer(place: Place, found: int) -> None:
    if found > package_version():
        raise SchemaError(
            f"the table {place} has schema version {found}, newer than this package's {package_version()}: "
            "upgrade saga-bus-store-sqlserver"
        )


def _quoted(name: str) -> str:
    return quote_identifier(name, style="sqlserver")


def _literal(text: str) -> str:
    return "N'" + text.replace("'", "''") + "'"

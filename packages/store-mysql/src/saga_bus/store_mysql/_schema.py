"""The table, its indexes and their version: creating, checking, migrating and dropping them.

Neither server can roll back DDL, so a record of the version in a table of its own could get lost or lie after a
crash. The version stands in the table's comment instead, which one CREATE or ALTER writes together with the rest.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from saga_bus.store import InvalidSagaError, SchemaError, StoreUnavailableError
from saga_bus.store.identifiers import check_identifier, quote_identifier
from saga_bus.store_mysql._dialect import EXACT_COLLATIONS, EXACT_TEXT
from saga_bus.store_mysql._driver import Session
from saga_bus.store_mysql._errors import CORRELATION_KEY, TABLE_EXISTS, MySQLError, code_of
from saga_bus.store_mysql._literals import Template

__all__ = [
    "COMPLETED",
    "DUE",
    "MIGRATIONS",
    "NEWEST",
    "NEWEST_OF_NAME",
    "PRIMARY",
    "STALEST",
    "Index",
    "Place",
    "check",
    "create",
    "drop",
    "get_schema_sql",
    "package_version",
    "select_columns",
    "wrong_columns",
]

_MAX_NAME = 64  # characters, on both servers
_LOCK_SECONDS = 60

# MIGRATIONS[0] turns a table of version 1 into one of version 2, and so on. One that was interrupted is run again
# from its start, and its last ALTER sets the comment to `comment(version)`.
MIGRATIONS: tuple[Callable[[Session, Place], Awaitable[None]], ...] = ()


@dataclass(frozen=True)
class Index:
    """One index; its name is the table's own, so it needs no prefix.

    Args:
        name: Its name.
        fixed: The leading columns, for which a query gives one value each.
        key: The columns that follow, in which it sorts.
    """

    name: str
    fixed: tuple[str, ...]
    key: tuple[str, ...]


# There are no partial indexes. completed_at is NULL while a saga runs, and due, newest and newest_of_name have no
# column that an ordinary update changes, so such an update rewrites the entries of one index: stalest.
PRIMARY = Index("PRIMARY", (), ("saga_name", "saga_id"))
NEWEST = Index("saga_newest", (), ("created_at", "saga_name", "saga_id"))
NEWEST_OF_NAME = Index("saga_newest_of_name", ("saga_name",), ("created_at", "saga_id"))
STALEST = Index("saga_stalest", ("is_completed", "outbox_pending"), ("updated_at", "saga_name", "saga_id"))
COMPLETED = Index("saga_completed", ("saga_name",), ("completed_at", "saga_id"))
DUE = Index("saga_due", ("is_completed",), ("timeout_expires_at", "saga_name", "saga_id"))
_INDEXES = (NEWEST, NEWEST_OF_NAME, STALEST, COMPLETED, DUE)

# Times are UTC. state is the whole JSON document, of which the columns from version to outbox_pending are an index.
# It is a text, because MySQL's type JSON changes numbers and the order of keys, and has no CHECK (JSON_VALID(...)),
# because MariaDB's refuses what is nested more than 31 deep.
_CREATE_TABLE = f"""\
CREATE TABLE {{table}} (
    saga_name           VARCHAR(128) {EXACT_TEXT} NOT NULL,
    saga_id             VARCHAR(128) {EXACT_TEXT} NOT NULL,
    correlation_id      VARCHAR(256) {EXACT_TEXT} NOT NULL,
    version             BIGINT       NOT NULL,
    is_completed        BOOLEAN      NOT NULL,
    created_at          DATETIME(6)  NOT NULL,
    updated_at          DATETIME(6)  NOT NULL,
    completed_at        DATETIME(6)  NULL,
    archived_at         DATETIME(6)  NULL,
    timeout_expires_at  DATETIME(6)  NULL,
    outbox_pending      BOOLEAN      NOT NULL,
    state               LONGTEXT     CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    PRIMARY KEY (saga_name, saga_id),
    UNIQUE KEY {CORRELATION_KEY} (saga_name, correlation_id),
    {{indexes}}
) ENGINE = InnoDB, ROW_FORMAT = DYNAMIC, DEFAULT CHARACTER SET = utf8mb4, COMMENT = '{{comment}}'"""

_COMMENT = "saga-bus sagas, schema version {}"
_OWN_COMMENT = re.compile(r"saga-bus sagas, schema version ([0-9]+)")

_SELECT_COMMENT = Template(
    "SELECT CAST(table_comment AS BINARY) FROM information_schema.tables "
    "WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND CAST(table_name AS BINARY) = ?"
)
_SELECT_COLUMNS = Template(
    "SELECT CAST(column_name AS BINARY), CAST(character_set_name AS BINARY), CAST(collation_name AS BINARY), "
    "character_octet_length FROM information_schema.columns "
    "WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND CAST(table_name AS BINARY) IN (?, ?)"
)
# The bytes that a column of text must hold, four for each character.
_OCTETS = {"saga_name": 4 * 128, "saga_id": 4 * 128, "correlation_id": 4 * 256, "state": 2**32 - 1}
_FACTS = b"SELECT @@lower_case_table_names, CAST(DATABASE() AS BINARY)"
_GET_LOCK = Template("SELECT GET_LOCK(?, ?)")
_RELEASE_LOCK = Template("SELECT RELEASE_LOCK(?)")


@dataclass(frozen=True)
class Place:
    """Where the sagas are.

    Args:
        table: The table's name, not quoted.
        schema: The database's name, not quoted; None for the connection's own.

    Raises:
        InvalidSagaError: A bad name.
    """

    table: str
    schema: str | None = None

    def __post_init__(self) -> None:
        _check_name(self.table, "table")
        if self.schema is not None:
            _check_name(self.schema, "schema")

    @property
    def quoted(self) -> str:
        """The name as statements have it."""
        table = quote_identifier(self.table, style="mysql")
        return table if self.schema is None else f"{quote_identifier(self.schema, style='mysql')}.{table}"


def package_version() -> int:
    """The schema version of this package."""
    return 1 + len(MIGRATIONS)


def comment(version: int) -> str:
    """The table's comment at a schema version.

    Args:
        version: The schema version.
    """
    return _COMMENT.format(version)


def get_schema_sql(*, table: str = "saga_instances", schema: str | None = None) -> str:
    """The statement that ``create_schema`` runs on an empty database, for people who run it by themselves.

    It is the same for MySQL and MariaDB: version comments pick the collation. A client that strips comments
    (``mysql --skip-comments``) must be told not to.

    Args:
        table: The table's name.
        schema: The database's name; that of the connection when left out.

    Raises:
        InvalidSagaError: A bad name.
    """
    return f"{_create_table(Place(table, schema))};\n"


async def create(session: Session, place: Place) -> None:
    """Create the table, or migrate it to the package's version; nothing to do is no error.

    Args:
        session: A session in autocommit mode.
        place: The table.

    Raises:
        SchemaError: The table is newer than the package, or was not made by it.
        StoreUnavailableError: Somebody else is at it for too long.
    """
    found = await _version(session, place)
    if found is None:
        found = await _make(session, place)
    if found != package_version():
        await _migrate(session, place, found)


async def _make(session: Session, place: Place) -> int:
    """Create the table; returns the version that is there then."""
    try:
        await session.run(_create_table(place).encode())
    except MySQLError as error:
        found = await _version(session, place) if code_of(error) == TABLE_EXISTS else None
        if found is None:
            raise
        return found  # somebody else was faster
    return package_version()


async def _migrate(session: Session, place: Place, found: int) -> None:
    _refuse_newer(place, found)
    # One lock for a server: the other nodes of a cluster do not know it, nor does a pooler, which may lose it.
    lock = session.quote(f"saga-bus:{await _digest(session, place)}".encode())
    ((granted,),) = (await session.run(_GET_LOCK.filled(lock, b"%d" % min(_LOCK_SECONDS, session.command_timeout))))[
        0
    ].rows
    if granted is None or int(granted) != 1:
        raise StoreUnavailableError(f"somebody else has been migrating the table {place.table!r} for too long")
    try:
        found = await _version(session, place) or found
        _refuse_newer(place, found)
        for migrate in MIGRATIONS[found - 1 :]:
            await migrate(session, place)
    finally:
        if not session.connection.closed:
            await session.run(_RELEASE_LOCK.filled(lock))


async def check(session: Session, place: Place) -> None:
    """Refuse a schema that is not the package's, or in which ids do not compare exactly or states do not fit.

    Args:
        session: Any session.
        place: The table.

    Raises:
        SchemaError: The table is missing, older, newer or altered; the message says what to do.
    """
    found = await _version(session, place)
    if found is None:
        raise SchemaError(f"there is no saga table {place.table!r} in the database: run create_schema()")
    _refuse_newer(place, found)
    if found < package_version():
        raise SchemaError(
            f"the table {place.table!r} has schema version {found}, the package needs {package_version()}: "
            "run create_schema() to migrate it"
        )
    (columns,) = await session.run(select_columns(place, session))
    wrong = list(wrong_columns(columns.rows))
    if wrong:
        raise SchemaError(
            f"the table {place.table!r} is not as create_schema() made it: {'; '.join(wrong)}: "
            "alter it to what get_schema_sql() says"
        )


async def drop(session: Session, place: Place) -> None:
    """Drop the table with its sagas; nothing to drop is no error.

    Args:
        session: Any session.
        place: The table.

    Raises:
        SchemaError: The table was not made by the package.
    """
    if await _version(session, place) is not None:
        await session.run(f"DROP TABLE IF EXISTS {place.quoted}".encode())


def select_columns(place: Place, session: Session) -> bytes:
    """The statement whose rows `wrong_columns` takes.

    Args:
        place: The table.
        session: The session that shall run it.
    """
    schema = b"NULL" if place.schema is None else session.quote(place.schema.encode())
    name = session.quote(place.table.encode())
    return _SELECT_COLUMNS.filled(schema, name, name, session.quote(place.table.lower().encode()))


def wrong_columns(rows: Sequence[tuple[Any, ...]]) -> Iterator[str]:
    """What keeps columns from holding exact ids and whole states; nothing where there are no rows.

    Args:
        rows: The columns: name, character set, collation, and bytes that one holds.
    """
    found = {name.decode(): rest for name, *rest in rows}
    for name, octets in _OCTETS.items() if found else ():
        charset, collation, holds = found.get(name, (None, None, None))
        if holds is None:
            yield f"the column {name} is missing or no text"
        elif charset is not None and charset != b"utf8mb4":
            yield f"the column {name} has the character set {charset.decode()}, which lacks characters"
        elif name != "state" and collation is not None and collation.decode() not in EXACT_COLLATIONS:
            yield f"the column {name} has the collation {collation.decode()}, in which different ids are the same"
        elif int(holds) < octets:
            yield f"the column {name} holds {int(holds)} bytes at the most, not {octets}"


def _check_name(name: str, what: str) -> None:
    check_identifier(name, what=what, max_bytes=_MAX_NAME * 4)
    if len(name) > _MAX_NAME or name.endswith(" ") or any(ord(char) > 0xFFFF for char in name):
        raise InvalidSagaError(
            f"the {what} name {name!r} is none for MySQL: at most {_MAX_NAME} characters, none beyond U+FFFF, "
            "no blank at the end"
        )


def _create_table(place: Place) -> str:
    indexes = ",\n    ".join(f"KEY {index.name} ({', '.join(index.fixed + index.key)})" for index in _INDEXES)
    return _CREATE_TABLE.format(table=place.quoted, indexes=indexes, comment=comment(package_version()))


async def _version(session: Session, place: Place) -> int | None:
    folds, _ = await _facts(session)
    table, schema = (place.table, place.schema)
    if folds:
        table, schema = table.lower(), None if schema is None else schema.lower()
    schema_literal = b"NULL" if schema is None else session.quote(schema.encode())
    name = session.quote(table.encode())
    rows = (await session.run(_SELECT_COMMENT.filled(schema_literal, name, name)))[0].rows
    if not rows:
        return None
    found = _OWN_COMMENT.fullmatch(rows[0][0].decode())
    if found is None:
        raise SchemaError(f"there is a table {place.table!r} that create_schema() did not make: choose another name")
    return int(found[1])


async def _facts(session: Session) -> tuple[bool, bytes]:
    ((folds, database),) = (await session.run(_FACTS))[0].rows
    return int(folds) == 1, b"" if database is None else database


async def _digest(session: Session, place: Place) -> str:
    schema = (await _facts(session))[1] if place.schema is None else place.schema.encode()
    return blake2b(schema.lower() + b"\x00" + place.table.lower().encode(), digest_size=12).hexdigest()


def _refuse_newer(place: Place, found: int) -> None:
    if found > package_version():
        raise SchemaError(
            f"the table {place.table!r} has schema version {found}, newer than this package's {package_version()}: "
            "upgrade saga-bus-store-mysql"
        )

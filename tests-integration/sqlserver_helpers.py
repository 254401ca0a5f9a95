"""What the tests share that need a SQL Server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit
from uuid import uuid4

from providers.skipping import skip_unless_required
from providers.sqlserver import connected
from saga_bus.store import SagaMetadata, SagaState
from saga_bus.store_sqlserver import SqlServerSagaStore
from saga_bus.store_sqlserver._location import parse_location
from saga_bus.store_sqlserver._odbc import load

NAME = "OrderSaga"
_PATIENCE = 10.0  # seconds


class NoteState(SagaState, kw_only=True):
    note: str = ""


def state(saga_id: str, version: int = 0) -> SagaState:
    metadata = SagaMetadata.fresh(saga_id)
    for _ in range(version):
        metadata = metadata.next()
    return SagaState(metadata=metadata)


@asynccontextmanager
async def opened(
    url: str, table: str, *saga_ids: str, state_type: type[SagaState] = SagaState, **options: Any
) -> AsyncIterator[SqlServerSagaStore[Any]]:
    """A store on a table with new sagas of these ids."""
    made: SqlServerSagaStore[Any] = SqlServerSagaStore(url, table=table, state_types={NAME: state_type}, **options)
    async with made as store:
        await store.create_schema()
        for saga_id in saga_ids:
            await store.insert(NAME, f"order-{saga_id}", state_type(metadata=SagaMetadata.fresh(saga_id)))
        yield store


@contextmanager
def holding(url: str, table: str, saga_id: str) -> Iterator[Any]:
    """Somebody else's transaction that has changed a saga."""
    with connected(url) as connection:
        connection.autocommit = False
        connection.execute(f"UPDATE {table} SET is_completed = is_completed WHERE saga_id = ?", saga_id)
        yield connection
        connection.rollback()


def is_babelfish(url: str) -> bool:
    with connected(url) as connection:
        return bool(connection.execute("SELECT CAST(SERVERPROPERTY('Babelfish') AS INT)").fetchval())


# -- places of a test's own ------------------------------------------------------------------------------------------


def changeable(url: str) -> str:
    """The URL, for a test that must change it, which is ended where there is an ODBC connection string instead."""
    if not url.startswith(("mssql://", "sqlserver://")):
        skip_unless_required("sqlserver", "the test changes the URL, and SAGA_TEST_SQLSERVER_URL has another form")
    return url


def changed(url: str, *, netloc: str | None = None, path: str | None = None, **options: str) -> str:
    """The URL with other options, or with another host or database."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query)) | options
    return parts._replace(
        netloc=netloc or parts.netloc, path=path or parts.path, query=urlencode(query, quote_via=quote)
    ).geturl()


@contextmanager
def own_database(url: str) -> Iterator[str]:
    """The name of a database that is there for a while."""
    name = f"d_{uuid4().hex[:12]}"
    with connected(url) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    try:
        yield name
    finally:
        with connected(url) as admin:
            admin.execute(f"ALTER DATABASE {name} SET SINGLE_USER WITH ROLLBACK IMMEDIATE")
            admin.execute(f"DROP DATABASE {name}")


def connect_to(url: str, database: str) -> Any:
    """A connection to another database of the server, with autocommit; the caller closes it."""
    connection = load().connect(parse_location(url).connection_string(), autocommit=True, timeout=10)
    connection.execute(f"USE {database}").close()
    return connection


@contextmanager
def own_login(url: str, rights: str, tables: Sequence[str]) -> Iterator[str]:
    """The URL of somebody who has these rights on these tables, and no others."""
    user, password = f"u_{uuid4().hex[:12]}", f"Aa1-{uuid4().hex}"
    parts = urlsplit(url)
    with connected(url) as admin:
        admin.execute(f"CREATE LOGIN {user} WITH PASSWORD = '{password}'")
        try:
            admin.execute(f"CREATE USER {user} FOR LOGIN {user}")
            try:
                for table in tables:
                    admin.execute(f"GRANT {rights} ON dbo.{table} TO {user}")
                yield changed(url, netloc=f"{user}:{password}@{parts.hostname}:{parts.port or 1433}")
            finally:
                admin.execute(f"DROP USER {user}")
        finally:
            _once_it_may(admin, f"DROP LOGIN {user}")


def _once_it_may(admin: Any, sql: str) -> None:
    # The server takes a moment to know that a connection was closed, and refuses to drop a login that is in use.
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            admin.execute(sql)
        except load().Error:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return

"""The PostgreSQL store, beside raw asyncpg and SQLAlchemy's ORM, each on a database of its own on one server.

The server's URL is in ``SAGA_TEST_POSTGRES_URL``; the runner starts a private server where it is not.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg  # type: ignore[import-untyped]
import msgspec
from sqlalchemy import URL, DateTime, make_url, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, make_transient_to_detached, mapped_column

from bench.subjects import StoreSubject, Subject, Target
from bench.workload import SAGA_NAME, OrderState, correlation_id_of, saga_id_of, state_of
from saga_bus.store_postgres import PostgresSagaStore
from saga_bus.store_postgres._statements import Statements

__all__ = ["BACKEND", "database_url", "dropped", "fill"]

_TABLE = "saga_instances"
_CHUNK = 10_000

# The store's own statements for one saga, so that what is compared is what its calls cost, not its SQL.
_STATEMENTS = Statements("public", _TABLE)
_INSERT = _STATEMENTS.insert_waiting
_UPDATE = _STATEMENTS.update_waiting
_BY_ID = _STATEMENTS.get_one["saga_id"]
_BY_CORRELATION_ID = _STATEMENTS.get_one["correlation_id"]
_FIRST_PAGE = f"""\
SELECT created_at, saga_id, state FROM {_TABLE}
WHERE saga_name = $1 ORDER BY created_at DESC, saga_id DESC LIMIT $2"""
_NEXT_PAGE = f"""\
SELECT created_at, saga_id, state FROM {_TABLE}
WHERE saga_name = $1 AND (created_at, saga_id) < ($3, $4) ORDER BY created_at DESC, saga_id DESC LIMIT $2"""
_HOLD = f"SELECT version FROM {_TABLE} WHERE saga_name = $1 AND saga_id = $2 FOR UPDATE"
_TOTALS = f"SELECT count(*), coalesce(sum(version), 0)::bigint FROM {_TABLE}"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(OrderState).decode


def database_url(name: str) -> str:
    """The URL of another database on the same server."""
    return urlunsplit(urlsplit(os.environ["SAGA_TEST_POSTGRES_URL"])._replace(path=f"/{name}"))


def _name_of(directory: Path) -> str:
    return f"bench_{blake2b(str(directory).encode(), digest_size=8).hexdigest()}"


async def _administer(*statements: str) -> None:
    connection = await asyncpg.connect(os.environ["SAGA_TEST_POSTGRES_URL"])
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def dropped(name: str) -> None:
    """Drop a database, if it is there."""
    await _administer(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


async def fill(name: str, rows: int) -> None:
    """Make a database with orders in the store's table, and see that the store finds them."""
    await dropped(name)
    await _administer(f'CREATE DATABASE "{name}"')
    store: PostgresSagaStore[OrderState] = PostgresSagaStore(
        database_url(name), table=_TABLE, state_types={SAGA_NAME: OrderState}
    )
    async with store:
        await store.create_schema()
        connection = await asyncpg.connect(database_url(name))
        for first in range(0, rows, _CHUNK):
            numbers = range(first, min(first + _CHUNK, rows))
            await connection.executemany(_INSERT, [_inserted(correlation_id_of(n), state_of(n, 0)) for n in numbers])
        await connection.execute("VACUUM ANALYZE")
        await connection.close()
        for number in {0, rows // 2, rows - 1}:
            for state in (
                await store.get_by_id(SAGA_NAME, saga_id_of(number)),
                await store.get_by_correlation_id(SAGA_NAME, correlation_id_of(number)),
            ):
                if state != state_of(number, 0):
                    raise LookupError(f"the store reads order {number} as {state}")


def _inserted(correlation_id: str, state: OrderState) -> tuple[Any, ...]:
    return (*_values(state), correlation_id)


def _updated(state: OrderState, expected_version: int) -> tuple[Any, ...]:
    return (*_values(state), expected_version)


def _values(state: OrderState) -> tuple[Any, ...]:
    metadata = state.metadata
    return (
        SAGA_NAME,
        metadata.saga_id,
        metadata.version,
        metadata.is_completed,
        metadata.created_at,
        metadata.updated_at,
        metadata.archived_at,
        metadata.timeout_expires_at,
        bool(metadata.outbox),
        _encode(state).decode(),
        None,  # no number in an order needs a copy of the text
    )


class _Database:
    """What all subjects share: a copy of the template, and the totals read through a connection of their own."""

    def __init__(self, directory: Path, template: str) -> None:
        self.name = _name_of(directory)
        self.template = template

    async def open(self) -> None:
        await dropped(self.name)
        await _administer(f'CREATE DATABASE "{self.name}" TEMPLATE "{self.template}"')

    async def close(self) -> None:
        await dropped(self.name)

    async def totals(self) -> tuple[int, int]:
        connection = await asyncpg.connect(database_url(self.name))
        try:
            count, versions = await connection.fetchrow(_TOTALS)
            return count, versions
        finally:
            await connection.close()


class PostgresSubject(StoreSubject, _Database):
    """The store."""

    def __init__(self, directory: Path, template: str) -> None:
        _Database.__init__(self, directory, template)
        StoreSubject.__init__(self, PostgresSagaStore(database_url(self.name), table=_TABLE))

    async def open(self) -> None:
        await _Database.open(self)
        await StoreSubject.open(self)

    async def close(self) -> None:
        await StoreSubject.close(self)
        await _Database.close(self)
        await dropped(self.template)  # all subjects were open before the first one is closed


class PoolSubject(_Database):
    """asyncpg as its documentation shows it: a pool with its defaults, a connection of it for each statement."""

    async def open(self) -> None:
        await super().open()
        self.pool = await asyncpg.create_pool(database_url(self.name))

    async def close(self) -> None:
        await self.pool.close()
        await super().close()

    @asynccontextmanager
    async def connection(self) -> Any:
        async with self.pool.acquire() as connection:
            yield connection

    async def insert(self, correlation_id: str, state: OrderState) -> None:
        async with self.connection() as connection:
            if not await connection.fetchval(_INSERT, *_inserted(correlation_id, state)):
                raise LookupError(f"{state.metadata.saga_id} or {correlation_id} is taken")

    async def get_by_id(self, saga_id: str) -> OrderState | None:
        async with self.connection() as connection:
            document = await connection.fetchval(_BY_ID, SAGA_NAME, saga_id)
        return None if document is None else _decode(document)

    async def get_by_correlation_id(self, correlation_id: str) -> OrderState | None:
        async with self.connection() as connection:
            document = await connection.fetchval(_BY_CORRELATION_ID, SAGA_NAME, correlation_id)
        return None if document is None else _decode(document)

    async def update(self, state: OrderState, expected_version: int) -> None:
        async with self.connection() as connection:
            updated = await connection.fetchval(_UPDATE, *_updated(state, expected_version))
        if not updated:
            raise LookupError(f"{state.metadata.saga_id} has another version")

    async def find(self, cursor: Any, limit: int) -> tuple[Sequence[OrderState], Any]:
        # One row more than the page tells whether there is a next one, as the store does it.
        statement = _FIRST_PAGE if cursor is None else _NEXT_PAGE
        async with self.connection() as connection:
            rows = await connection.fetch(statement, SAGA_NAME, limit + 1, *(cursor or ()))
        states = [_decode(state) for _, _, state in rows[:limit]]
        return states, tuple(rows[limit - 1])[:2] if len(rows) > limit else None


class ConnectionSubject(PoolSubject):
    """asyncpg with one connection that is held; several callers take turns on it."""

    async def open(self) -> None:
        await _Database.open(self)
        self.held = await asyncpg.connect(database_url(self.name))
        self.turn = asyncio.Lock()

    async def close(self) -> None:
        await self.held.close()
        await _Database.close(self)

    @asynccontextmanager
    async def connection(self) -> Any:
        async with self.turn:
            yield self.held

    # Without the context manager, which costs a lone caller more than the lock.
    async def get_by_id(self, saga_id: str) -> OrderState | None:
        async with self.turn:
            document = await self.held.fetchval(_BY_ID, SAGA_NAME, saga_id)
        return None if document is None else _decode(document)

    async def get_by_correlation_id(self, correlation_id: str) -> OrderState | None:
        async with self.turn:
            document = await self.held.fetchval(_BY_CORRELATION_ID, SAGA_NAME, correlation_id)
        return None if document is None else _decode(document)

    async def update(self, state: OrderState, expected_version: int) -> None:
        async with self.turn:
            updated = await self.held.fetchval(_UPDATE, *_updated(state, expected_version))
        if not updated:
            raise LookupError(f"{state.metadata.saga_id} has another version")


class _Base(DeclarativeBase):
    pass


class _Saga(_Base):
    __tablename__ = _TABLE
    saga_name: Mapped[str] = mapped_column(primary_key=True)
    saga_id: Mapped[str] = mapped_column(primary_key=True)
    correlation_id: Mapped[str]
    version: Mapped[int] = mapped_column()
    is_completed: Mapped[bool]
    created_at: Mapped[Any] = mapped_column(DateTime(timezone=True))
    updated_at: Mapped[Any] = mapped_column(DateTime(timezone=True))
    outbox_pending: Mapped[bool]
    state: Mapped[Any] = mapped_column(JSONB)
    __mapper_args__ = {  # noqa: RUF012 - as SQLAlchemy's documentation has it
        "version_id_col": version,
        "version_id_generator": lambda version: 0 if version is None else version + 1,
    }


class SqlAlchemySubject(_Database):
    """SQLAlchemy's ORM with its defaults: a session for each operation, versions by ``version_id_col``."""

    async def open(self) -> None:
        await super().open()
        url: URL = make_url(database_url(self.name)).set(drivername="postgresql+asyncpg")
        self.engine = create_async_engine(url)
        self.session: async_sessionmaker[AsyncSession] = async_sessionmaker(self.engine, expire_on_commit=False)

    async def close(self) -> None:
        await self.engine.dispose()
        await super().close()

    async def insert(self, correlation_id: str, state: OrderState) -> None:
        metadata = state.metadata
        async with self.session.begin() as session:
            session.add(
                _Saga(
                    saga_name=SAGA_NAME,
                    saga_id=metadata.saga_id,
                    correlation_id=correlation_id,
                    is_completed=metadata.is_completed,
                    created_at=metadata.created_at,
                    updated_at=metadata.updated_at,
                    outbox_pending=bool(metadata.outbox),
                    state=msgspec.to_builtins(state),
                )
            )

    async def get_by_id(self, saga_id: str) -> OrderState | None:
        async with self.session() as session:
            saga = await session.get(_Saga, (SAGA_NAME, saga_id))
        return None if saga is None else msgspec.convert(saga.state, OrderState)

    async def get_by_correlation_id(self, correlation_id: str) -> OrderState | None:
        wanted = select(_Saga).where(_Saga.saga_name == SAGA_NAME, _Saga.correlation_id == correlation_id)
        async with self.session() as session:
            saga = await session.scalar(wanted)
        return None if saga is None else msgspec.convert(saga.state, OrderState)

    async def update(self, state: OrderState, expected_version: int) -> None:
        metadata = state.metadata
        saga = _Saga(saga_name=SAGA_NAME, saga_id=metadata.saga_id, version=expected_version)
        make_transient_to_detached(saga)  # as it was loaded, so that the save is one UPDATE
        async with self.session.begin() as session:
            session.add(saga)
            saga.is_completed = metadata.is_completed
            saga.updated_at = metadata.updated_at
            saga.outbox_pending = bool(metadata.outbox)
            saga.state = msgspec.to_builtins(state)

    async def find(self, cursor: Any, limit: int) -> tuple[Sequence[OrderState], Any]:
        wanted = select(_Saga).where(_Saga.saga_name == SAGA_NAME)
        if cursor is not None:
            created_at, saga_id = cursor
            wanted = wanted.where(
                (_Saga.created_at < created_at) | ((_Saga.created_at == created_at) & (_Saga.saga_id < saga_id))
            )
        wanted = wanted.order_by(_Saga.created_at.desc(), _Saga.saga_id.desc()).limit(limit + 1)
        async with self.session() as session:
            sagas = (await session.scalars(wanted)).all()
        states = [msgspec.convert(saga.state, OrderState) for saga in sagas[:limit]]
        return states, (sagas[limit - 1].created_at, sagas[limit - 1].saga_id) if len(sagas) > limit else None


_PEERS: dict[str, type[PoolSubject | ConnectionSubject | SqlAlchemySubject]] = {
    "asyncpg pool": PoolSubject,
    "asyncpg held": ConnectionSubject,
    "sqlalchemy": SqlAlchemySubject,
}
_GETS_AND_CYCLES = ("get_by_id", "get_by_correlation_id", "cycle")


class PostgresBackend:
    """Sagas in PostgreSQL."""

    name = "postgres"
    server = "postgres"
    variants = ("default",)
    peers = tuple(_PEERS)
    packages = ("saga-bus-store-postgres", "asyncpg", "sqlalchemy")
    targets = (
        *(Target("ratio", 0.95, each, "default", 1, "asyncpg held") for each in _GETS_AND_CYCLES),
        *(Target("ratio", 2.5, each, "default", 16, "asyncpg pool") for each in _GETS_AND_CYCLES),
        *(Target("ratio", 4, each, "default", 64, "asyncpg pool") for each in _GETS_AND_CYCLES),
        *(Target("ratio", 8, each, "default", 64, "sqlalchemy") for each in _GETS_AND_CYCLES),
        *(
            Target("growth", 0.75, each, "default", callers, rows=1_000_000)
            for callers in (1, 64)
            for each in ("get_by_id", "get_by_correlation_id", "update", "cycle", "find", "insert")
        ),
    )

    def versions(self) -> dict[str, str]:
        async def ask() -> str:
            connection = await asyncpg.connect(os.environ["SAGA_TEST_POSTGRES_URL"])
            version: str = await connection.fetchval("SHOW server_version")
            await connection.close()
            return version

        return {"PostgreSQL": asyncio.run(ask())}

    async def prepare(self, directory: Path, rows: int) -> None:
        """Fill a template database; the directory holds only its name."""
        name = _name_of(directory)
        await fill(name, rows)
        (directory / "template").write_text(name)

    def subject(self, name: str, variant: str, directory: Path, rows: int) -> Subject:  # noqa: ARG002
        template = (directory / "template").read_text()
        return PostgresSubject(directory, template) if name == "store" else _PEERS[name](directory, template)

    @asynccontextmanager
    async def locked(self, directory: Path, saga_id: str) -> AsyncIterator[None]:
        connection = await asyncpg.connect(database_url(_name_of(directory)))
        try:
            async with connection.transaction():
                if await connection.fetchval(_HOLD, SAGA_NAME, saga_id) is None:
                    raise LookupError(f"{saga_id} is not there to be locked")
                yield
        finally:
            await connection.close()


BACKEND = PostgresBackend()

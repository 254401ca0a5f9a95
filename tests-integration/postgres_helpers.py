"""What the tests of the PostgreSQL store share."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg  # type: ignore[import-untyped]

from saga_bus.store import SagaState
from saga_bus.store_postgres import PostgresSagaStore, drop_schema

SAGA = "OrderSaga"


class OrderState(SagaState, kw_only=True):
    note: str = ""


def new_table() -> str:
    return f"t_{uuid.uuid4().hex[:12]}"


def follow(state: OrderState, note: str = "") -> OrderState:
    return OrderState(metadata=state.metadata.next(), note=note)


def with_user(url: str, user: str, password: str) -> str:
    """The same database for another user."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.netloc.rpartition('@')[2]}"))


@asynccontextmanager
async def store_on(url: str, **options: Any) -> AsyncIterator[PostgresSagaStore[OrderState]]:
    """A store on a table of its own, which is dropped at the end."""
    table = options.pop("table", None) or new_table()
    opened: PostgresSagaStore[OrderState] = PostgresSagaStore(
        url, table=table, state_types={SAGA: OrderState}, **options
    )
    async with opened as store:
        await store.create_schema()
        try:
            yield store
        finally:
            await drop_schema(url, table=table, schema=options.get("schema", "public"))


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url, **options)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def locked(url: str, store: PostgresSagaStore[Any], saga_id: str) -> AsyncIterator[Any]:
    """The row of a saga, locked by another transaction."""
    async with connected(url) as connection, connection.transaction():
        await connection.fetchval(f"SELECT version FROM {store._quoted} WHERE saga_id = $1 FOR UPDATE", saga_id)
        yield connection

"""What the tests share that need a SQL Server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from providers.sqlserver import connected
from saga_bus.store import SagaMetadata, SagaState
from saga_bus.store_sqlserver import SqlServerSagaStore

NAME = "OrderSaga"


def state(saga_id: str, version: int = 0) -> SagaState:
    metadata = SagaMetadata.fresh(saga_id)
    for _ in range(version):
        metadata = metadata.next()
    return SagaState(metadata=metadata)


@asynccontextmanager
async def opened(url: str, table: str, *saga_ids: str, **options: Any) -> AsyncIterator[SqlServerSagaStore[SagaState]]:
    """A store on a table with new sagas of these ids."""
    store: SqlServerSagaStore[SagaState]
    async with SqlServerSagaStore(url, table=table, state_types={NAME: SagaState}, **options) as store:
        await store.create_schema()
        for saga_id in saga_ids:
            await store.insert(NAME, f"order-{saga_id}", state(saga_id))
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

"""The operations on a pool, each in a transaction of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, Literal

from saga_bus.store import SagaRow
from saga_bus.store_postgres._alone import retried
from saga_bus.store_postgres._connections import Connections
from saga_bus.store_postgres._groups import Groups
from saga_bus.store_postgres._statements import Statements

__all__ = ["PoolEngine"]


class PoolEngine:
    """Works on a pool.

    Args:
        connections: The pool.
        statements: The statements.
    """

    def __init__(self, connections: Connections, statements: Statements) -> None:
        self._connections = connections
        self._groups = Groups(connections, statements)

    async def open(self) -> None:
        """Open the own pool."""
        await self._connections.open()

    async def close(self) -> None:
        """Finish what is in hand and close the own pool."""
        await self._groups.close()
        await self._connections.close()

    def get(self, key: Literal["saga_id", "correlation_id"], saga_name: str, value: str) -> Awaitable[bytes | None]:
        """Fetch a document."""
        return self._groups.get(key, saga_name, value)

    def insert(self, row: SagaRow, correlation_id: str) -> Awaitable[None]:
        """Insert a row."""
        return self._groups.insert(row, correlation_id)

    def update(self, row: SagaRow, expected_version: int) -> Awaitable[None]:
        """Update a row."""
        return self._groups.update(row, expected_version)

    def delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> Awaitable[None]:
        """Delete a row."""
        return self._groups.delete(saga_name, saga_id, expected_version)

    async def fetch(self, statement: str, *parameters: Any) -> list[Any]:
        """Run a statement that changes nothing, and return its rows."""

        async def attempt() -> tuple[list[Any]]:
            async with self._connections.connection(writing=False) as connection:
                return (await connection.fetch(statement, *parameters),)

        (rows,) = await retried(attempt)
        return rows

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """A connection for statements that change nothing."""
        async with self._connections.connection(writing=False) as connection:
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A connection inside a transaction, which is committed at the end."""
        # Whatever the default is: what waited for a lock must see what the others did before.
        async with (
            self._connections.connection(writing=True) as connection,
            connection.transaction(isolation="read_committed"),
        ):
            yield connection

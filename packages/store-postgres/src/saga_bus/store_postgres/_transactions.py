"""The operations inside the caller's transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import asyncpg  # type: ignore[import-untyped]
from asyncpg.pool import PoolConnectionProxy  # type: ignore[import-untyped]

from saga_bus.store import InvalidSagaError, SagaRow, StoreUnavailableError
from saga_bus.store_postgres import _alone as alone
from saga_bus.store_postgres._connections import is_usable
from saga_bus.store_postgres._errors import DRIVER_ERRORS, translated
from saga_bus.store_postgres._statements import Statements

__all__ = ["BoundEngine"]


class BoundEngine:
    """Works on the caller's connection, one operation at a time, and never commits or rolls back what is not its own.

    Args:
        connection: An asyncpg connection with an open transaction.
        statements: The statements.

    Raises:
        InvalidSagaError: It is none, or no transaction is open.
        StoreUnavailableError: It is closed.
    """

    def __init__(self, connection: Any, statements: Statements) -> None:
        if not isinstance(connection, asyncpg.Connection | PoolConnectionProxy):
            raise InvalidSagaError(f"bind takes an asyncpg connection, not {type(connection).__name__}")
        self._connection = connection
        self._statements = statements
        self._turn = asyncio.Lock()
        self._check_transaction()

    async def open(self) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        """The connection is the caller's."""

    async def get(self, key: Literal["saga_id", "correlation_id"], saga_name: str, value: str) -> bytes | None:
        """Fetch a document, as the transaction sees it."""
        rows = await self.fetch(self._statements.get_one[key], saga_name, value)
        return rows[0][0].encode() if rows else None

    async def insert(self, row: SagaRow, correlation_id: str) -> None:
        """Insert a row."""
        async with self.transaction() as connection:
            await alone.insert(connection.fetch, self._statements, row, correlation_id)

    async def update(self, row: SagaRow, expected_version: int) -> None:
        """Update a row."""
        async with self.transaction() as connection:
            await alone.retried(lambda: alone.update(connection.fetch, self._statements, row, expected_version))

    async def delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        """Delete a row."""
        async with self.transaction() as connection:
            await alone.retried(
                lambda: alone.delete(connection.fetch, self._statements, saga_name, saga_id, expected_version)
            )

    async def fetch(self, statement: str, *parameters: Any) -> list[Any]:
        """Run a statement that changes nothing, and return its rows."""
        async with self.connection() as connection:
            rows: list[Any] = await connection.fetch(statement, *parameters)
        return rows

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """The connection, when it is this operation's turn.

        Raises:
            InvalidSagaError: The transaction has ended.
            StoreUnavailableError: The connection is lost.
        """
        async with self._turn:
            self._check_transaction()
            try:
                yield self._connection
            except DRIVER_ERRORS as error:  # nothing is committed, so nothing can be half known
                raise translated(error, writing=False) from error

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """The connection inside a savepoint, so that a failed write leaves the transaction usable."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    def _check_transaction(self) -> None:
        if not is_usable(self._connection):
            raise StoreUnavailableError("the connection of the transaction is closed")
        if not self._connection.is_in_transaction():
            raise InvalidSagaError("the connection has no open transaction: begin one, and bind inside it")

"""Where operations run: in threads with connections of their own, or at once in the caller's transaction."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from saga_bus.store import Coalescer, UnsupportedOperationError
from saga_bus.store_sqlite import _schema as schema
from saga_bus.store_sqlite._connections import (
    GivenConnection,
    Settings,
    open_file,
    open_memory,
    prepare_file,
    use_wal,
)
from saga_bus.store_sqlite._driver import ConnectionThread
from saga_bus.store_sqlite._errors import driver_errors
from saga_bus.store_sqlite._transactions import Operation, read_group, transaction, write_group

__all__ = ["BoundEngine", "Engine", "FileEngine", "GivenEngine", "MemoryEngine", "SchemaWork"]

SchemaWork = Literal["create", "check", "drop"]

_THREAD = "saga-bus-sqlite"


class Engine(Protocol):
    """What a store needs to get its operations done."""

    async def open(self) -> None:
        """Get ready, as far as that cannot wait for the first operation."""
        ...

    async def write(self, operation: Operation) -> Any:
        """Run one write; when this returns it is committed, if committing is the engine's affair."""
        ...

    async def read(self, operation: Operation) -> Any:
        """Run one short read."""
        ...

    async def query(self, operation: Operation) -> Any:
        """Run one read that may take long."""
        ...

    async def schema(self, work: SchemaWork) -> None:
        """Create, check or drop the schema."""
        ...

    async def close(self) -> None:
        """Finish what is in hand and close what the engine opened."""
        ...


class _ThreadedEngine:
    """A writer, a reader and a thread for queries, which may all be the same one."""

    def __init__(
        self,
        writer: ConnectionThread,
        reader: ConnectionThread,
        queries: ConnectionThread,
        settings: Settings,
        patience: float,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._queries = queries
        self._settings = settings
        self._patience = patience
        self._writes: Coalescer[Operation, Any] = Coalescer(self._write_group)
        self._reads: Coalescer[Operation, Any] = Coalescer(self._read_group)

    async def open(self) -> None:
        """Nothing: each thread opens its connection when it is first needed."""

    async def write(self, operation: Operation) -> Any:
        return await self._writes.call(operation)

    async def read(self, operation: Operation) -> Any:
        return await self._reads.call(operation)

    async def query(self, operation: Operation) -> Any:
        (result,) = await self._queries.run(partial(read_group, (operation,)))
        return result

    async def schema(self, work: SchemaWork) -> None:
        # Without preparation: that is a check, which must not come before the schema is made.
        await self._writer.run(partial(_work_on_schema, work, self._settings), prepared=False)

    async def close(self) -> None:
        await asyncio.shield(self._close_all())  # to its end, also when the caller is cancelled

    async def _close_all(self) -> None:
        await self._writes.join()
        await self._reads.join()
        # One after the other: the last connection to close tidies the write-ahead log away, and two that close
        # at the same moment each take the other one for the last.
        for thread in (self._queries, self._reader, self._writer):
            await thread.close()

    async def _write_group(self, operations: Sequence[Operation]) -> Sequence[Any]:
        return await self._writer.run(partial(write_group, operations, self._patience))

    async def _read_group(self, operations: Sequence[Operation]) -> Sequence[Any]:
        return await self._reader.run(partial(read_group, operations))


class FileEngine(_ThreadedEngine):
    """A database file: writes, reads and queries do not wait for each other.

    Args:
        path: The file, absolute.
        settings: The store's settings.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        def thread(role: str, *, writes: bool = False) -> ConnectionThread:
            return ConnectionThread(
                partial(open_file, path, settings),
                partial(prepare_file, settings=settings, writes=writes),
                name=f"{_THREAD}-{role}",
            )

        super().__init__(
            thread("writer", writes=True), thread("reader"), thread("queries"), settings, settings.busy_timeout
        )
        self._path = path

    async def schema(self, work: SchemaWork) -> None:
        # On a connection of its own: the others refuse a schema that is not there yet.
        if work == "drop" and not self._path.exists():
            return
        thread = ConnectionThread(
            partial(open_file, self._path, self._settings, create=work == "create"),
            partial(use_wal, settings=self._settings),
            name=f"{_THREAD}-schema",
        )
        try:
            await thread.run(partial(_work_on_schema, work, self._settings), prepared=work == "create")
        finally:
            await thread.close()


class MemoryEngine(_ThreadedEngine):
    """A database in memory, which has one connection, so one thread does everything.

    Args:
        settings: The store's settings.
    """

    def __init__(self, settings: Settings) -> None:
        thread = ConnectionThread(open_memory, partial(_check_schema, settings=settings), name=f"{_THREAD}-memory")
        super().__init__(thread, thread, thread, settings, patience=0)


class GivenEngine(_ThreadedEngine):
    """The caller's connection: one thread does everything, and the connection stays open.

    Args:
        connection: The caller's connection.
        settings: The store's settings.
    """

    def __init__(self, connection: sqlite3.Connection, settings: Settings) -> None:
        given = GivenConnection.of(connection)
        thread = ConnectionThread(
            given.usable,
            partial(_check_schema, settings=settings),
            name=f"{_THREAD}-given",
            owned=False,
            lock=given.lock,
        )
        super().__init__(thread, thread, thread, settings, patience=0)
        self._given = given  # as long as an engine has it, the others find the same one


class BoundEngine:
    """The caller's transaction: operations run at once, in the caller's thread, and nothing is ever committed.

    Args:
        connection: The caller's connection, with an open transaction.
        settings: The store's settings.

    Raises:
        UnsupportedOperationError: There is no open transaction.
    """

    def __init__(self, connection: sqlite3.Connection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._require_transaction()

    async def open(self) -> None:
        self._require_transaction()
        _check_schema(self._connection, self._settings)

    async def write(self, operation: Operation) -> Any:
        self._require_transaction()
        with driver_errors():
            return operation(self._connection)

    read = query = write

    async def schema(self, work: SchemaWork) -> None:
        self._require_transaction()
        with driver_errors():
            _SCHEMA_WORKS[work](self._connection, self._settings.table)

    async def close(self) -> None:
        """Nothing: the connection is the caller's."""

    def _require_transaction(self) -> None:
        with driver_errors():  # a closed connection cannot even say this
            is_open = self._connection.in_transaction
        if not is_open:
            raise UnsupportedOperationError(
                "the connection has no open transaction (any more): execute BEGIN IMMEDIATE before bind(connection)"
            )


_SCHEMA_WORKS = {"create": schema.create, "check": schema.check, "drop": schema.drop}


def _check_schema(connection: sqlite3.Connection, settings: Settings) -> None:
    with driver_errors():
        schema.check(connection, settings.table)


def _work_on_schema(work: SchemaWork, settings: Settings, connection: sqlite3.Connection) -> None:
    if work == "check":
        _check_schema(connection, settings)
        return
    with transaction(connection, settings.busy_timeout):
        _SCHEMA_WORKS[work](connection, settings.table)

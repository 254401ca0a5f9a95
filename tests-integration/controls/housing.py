"""SQLite stores with a fault in their schema or in the caller's transaction."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Self

from controls.registry import fails
from saga_bus.store import DuplicateSagaError, SagaFilter, SagaRow, SchemaError
from saga_bus.store_sqlite import SqliteSagaStore


@fails("lifecycle_create_schema_twice", says="after create_schema was called again, by id: the saga is not there")
class CreateStartsOver(SqliteSagaStore[Any]):
    """create_schema drops what is there."""

    async def _create_schema(self) -> None:
        await super()._drop_schema()
        await super()._create_schema()


@fails("lifecycle_create_schema_twice", says="SchemaError: there is a table already")
class SecondCreateRaises(SqliteSagaStore[Any]):
    """create_schema is an error where the schema is there."""

    async def _create_schema(self) -> None:
        if await self._is_there():
            raise SchemaError("there is a table already")
        await super()._create_schema()

    async def _is_there(self) -> bool:
        try:
            await super()._check_schema()
        except SchemaError:
            return False
        return True


@fails("lifecycle_create_schema_from_many_tasks", says="SchemaError: there is a table already")
class CheckThenCreate(SecondCreateRaises):
    """create_schema looks whether the table is there, and creates it later."""

    _made: ClassVar[set[str]] = set()

    async def _create_schema(self) -> None:
        if await self._is_there():
            return
        await asyncio.sleep(0.05)
        if self._place in self._made:
            raise SchemaError("there is a table already")
        self._made.add(self._place)
        await super()._create_schema()


@fails(
    "lifecycle_missing_schema_is_a_schema_error", says="get_by_id without a schema: expected SchemaError, but nothing"
)
class CreatesByItself(SqliteSagaStore[Any]):
    """A missing schema is not reported but created by the first operation."""

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        await self._create_schema()
        return await super()._get_by_id(saga_name, saga_id)


@fails("lifecycle_missing_schema_is_a_schema_error", says="get_by_id without a schema: expected SchemaError, got Oper")
class DriverErrorEscapes(SqliteSagaStore[Any]):
    """A missing table is the driver's own error."""

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        try:
            return await super()._get_by_id(saga_name, saga_id)
        except SchemaError as error:
            raise sqlite3.OperationalError("no such table") from error


@fails("lifecycle_missing_schema_is_a_schema_error", says="the message does not say what to run")
class SilentAboutTheRemedy(SqliteSagaStore[Any]):
    """The error on a missing schema does not say what to run."""

    async def _check_schema(self) -> None:
        try:
            await super()._check_schema()
        except SchemaError as error:
            raise SchemaError("no such table") from error


@fails(
    "lifecycle_drop_schema_removes_all",
    says="check_schema after drop_schema: expected SchemaError, but nothing was raised",
)
class DropsNothing(SqliteSagaStore[Any]):
    """drop_schema reports success and removes nothing."""

    async def _drop_schema(self) -> None:
        pass


@fails("lifecycle_drop_schema_removes_all", says="SchemaError: there is no saga table")
class SecondDropRaises(SqliteSagaStore[Any]):
    """drop_schema is an error where there is no schema."""

    async def _drop_schema(self) -> None:
        await self._check_schema()
        await super()._drop_schema()


def own_copy(database: Path) -> Path:
    """Copy a database to a file that only this process knows."""
    copy = database.with_name(f"{database.stem}-{os.getpid()}.db")
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


@fails("processes_share_the_sagas", says="the races that some process says it won: expected [0, 1, 2, 3, 4], got [0, 0")
class ProcessesApart(SqliteSagaStore[Any]):
    """Several processes are declared, and each works on its own copy of the data."""

    def __init__(self, database: Path, **options: Any) -> None:
        super().__init__(own_copy(database) if multiprocessing.parent_process() else database, **options)


class _Bound(SqliteSagaStore[Any]):
    """Knows the caller's connection and the store that it was bound from."""

    _caller: sqlite3.Connection | None = None
    _outside: SqliteSagaStore[Any] | None = None

    def _bind(self, connection: Any) -> Self:
        bound = super()._bind(connection)
        bound._caller, bound._outside = connection, self
        return bound

    def _end(self, statement: str) -> None:
        if self._caller is not None:
            self._caller.execute(statement)
            self._caller.execute("BEGIN IMMEDIATE")


@fails("transactions_rollback_undoes_everything", says="an update after the rollback, by id: the state differs")
class BoundCommits(_Bound):
    """The bound store commits after every update."""

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        await super()._update(row, expected_version)
        self._end("COMMIT")


@fails("transactions_together_with_business_rows", says="whether the business row is there after the rollback")
class BoundCommitsFirst(_Bound):
    """The bound store commits what was done before its insert."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        self._end("COMMIT")
        await super()._insert(row, correlation_id)


@fails("transactions_commit_keeps_everything", says="a delete after the commit, by id: expected None")
class BoundForgets(_Bound):
    """The bound store ignores deletes."""

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        if self._caller is None:
            await super()._delete(saga_name, saga_id, expected_version)


@fails("transactions_sees_its_own_writes", says="by id, inside: the saga is not there")
class BoundReadsOutside(_Bound):
    """The bound store reads outside the transaction."""

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        if self._outside is not None:
            return await self._outside._get_by_id(saga_name, saga_id)
        return await super()._get_by_id(saga_name, saga_id)


@fails("transactions_queries_inside", says="what count sees inside: expected 2, got 1")
class BoundCountsOutside(_Bound):
    """The bound store counts outside the transaction."""

    async def _count(self, where: SagaFilter) -> int:
        return await (super()._count(where) if self._outside is None else self._outside._count(where))


@fails("transactions_queries_inside", says="the number of sagas purged inside: expected 1, got 0")
class BoundPurgesNothing(_Bound):
    """The bound store purges nothing."""

    async def _purge(self, saga_name: str, before: datetime, batch_size: int) -> int:
        return 0 if self._caller is not None else await super()._purge(saga_name, before, batch_size)


@fails(
    "transactions_refused_writes_leave_it_usable",
    says="what was written before the refused writes, by id: the saga is not there",
)
class DuplicateBreaksTransaction(_Bound):
    """A duplicate undoes the caller's transaction."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        try:
            await super()._insert(row, correlation_id)
        except DuplicateSagaError:
            self._end("ROLLBACK")
            raise


@fails("transactions_closing_the_bound_store_ends_nothing", says="after a bound store was closed, by id")
class CloseRollsBack(_Bound):
    """Closing the bound store rolls the caller's transaction back."""

    async def close(self) -> None:
        self._end("ROLLBACK")
        await super().close()

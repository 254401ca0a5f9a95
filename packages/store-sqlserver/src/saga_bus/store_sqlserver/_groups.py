"""Calls that are made at the same time: one statement, of which each caller gets its own outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from saga_bus.store import Activity, Coalescer, OutcomeUnknownError, SagaRow, SagaStoreError, StateCodecError
from saga_bus.store_sqlserver._driver import ConnectionPool
from saga_bus.store_sqlserver._errors import is_check_violation, is_duplicate, lost_connection, timed_out
from saga_bus.store_sqlserver._operations import Operations
from saga_bus.store_sqlserver._sessions import Session

__all__ = ["GroupedReads", "GroupedWrites", "Write"]

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
Key = tuple[str, str]
Write = tuple[SagaRow, Any]  # with the correlation id of an insert, or the expected version of an update

_MAX_GROUP = 32  # rows of 11 parameters each, of which a statement takes 2,100
_MAX_BYTES = 64 * 1024  # of a document in a group; a larger one costs more than the request that it would save
_PATIENCE = 3  # refusals in a row, after which the server is taken not to know such a statement: triggers forbid it
_IN_FLIGHT = 2  # while one group waits for the log to be written, the next one is sent


class _Groups(Generic[ItemT, ResultT]):
    """Calls of one kind, in groups where there are several at the same time.

    A group only ever succeeds for its callers: what it did not do, for whatever reason, its caller does alone, and
    that tells why not.

    Attributes:
        is_grouping: Whether there are groups at all.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        together: Callable[[Sequence[ItemT], Session], Sequence[ResultT | None]],
        activity: Activity,
        *,
        repeatable: bool = False,
        key: Callable[[ItemT], Any] | None = None,
    ) -> None:
        self.is_grouping = True
        self._refused = 0
        self._pool = pool
        self._together = together
        self._repeatable = repeatable
        self._coalescer: Coalescer[ItemT, ResultT | None] = Coalescer(
            self._run, max_size=_MAX_GROUP, max_in_flight=_IN_FLIGHT, key=key, alone=self._alone, activity=activity
        )

    async def join(self) -> None:
        """Wait until nothing is in flight."""
        await self._coalescer.join()

    async def _alone(self, item: ItemT) -> ResultT | None:
        raise NotImplementedError

    async def _run(self, items: Sequence[ItemT]) -> Sequence[ResultT | None]:
        undone: list[ResultT | None] = [None] * len(items)
        if len(items) == 1:
            return undone  # alone it may wait for its row, which must hold up no group
        try:
            outcomes = await self._pool.run(partial(self._together, items), repeatable=self._repeatable)
        except OutcomeUnknownError:
            raise
        except StateCodecError:
            return undone
        except SagaStoreError as error:
            cause = error.__cause__
            if cause is None or lost_connection(cause) or timed_out(cause):
                raise
            if not (error.retryable or is_duplicate(cause) or is_check_violation(cause)):
                self._refused += 1
                self.is_grouping = self._refused < _PATIENCE
            return undone
        self._refused = 0
        return outcomes


class GroupedReads(_Groups[Key, tuple[bytes | None]]):
    """Reads by one of the two keys.

    Args:
        pool: The connections.
        operations: The operations on the table.
        activity: Shared by all that use the pool.
        by_correlation_id: Whether it is the correlation id.
    """

    def __init__(
        self, pool: ConnectionPool, operations: Operations, activity: Activity, *, by_correlation_id: bool
    ) -> None:
        super().__init__(pool, self._get_group, activity, repeatable=True)
        self._fetch_group = partial(operations.get_group, by_correlation_id=by_correlation_id)
        self._fetch = operations.get_by_correlation_id if by_correlation_id else operations.get_by_id

    async def read(self, key: Key) -> bytes | None:
        """Fetch a document.

        Args:
            key: The saga's name, and its id or correlation id.
        """
        found = await self._coalescer.call(key) if self.is_grouping else None
        (document,) = await self._alone(key) if found is None else found
        return document

    async def _alone(self, item: Key) -> tuple[bytes | None]:
        return (await self._pool.run(partial(self._fetch, *item), repeatable=True, may_wait=True),)

    def _get_group(self, keys: Sequence[Key], session: Session) -> list[tuple[bytes | None] | None]:
        # What is missing may only have been locked, which a read that waits can tell.
        return [None if document is None else (document,) for document in self._fetch_group(keys, session)]


class GroupedWrites(_Groups[Write, bool]):
    """Writes of one kind, no two of one key at the same time; a large document goes its own way.

    Args:
        pool: The connections.
        together: Writes a group in a session; whether it wrote each of them.
        alone: Writes a row with what comes with it in a session, or says why not.
        key: What no two writes may share that are in flight at the same time.
        activity: Shared by all that use the pool.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        together: Callable[[Sequence[Write], Session], Sequence[bool]],
        alone: Callable[[SagaRow, Any, Session], None],
        key: Callable[[Write], tuple[str, str]],
        activity: Activity,
    ) -> None:
        super().__init__(pool, together, activity, key=key)
        self._write = alone

    async def write(self, row: SagaRow, other: Any) -> None:
        """Write a row or raise what the write alone raises.

        Args:
            row: The row.
            other: The correlation id of an insert, or the expected version of an update.
        """
        item = (row, other)
        is_groupable = self.is_grouping and len(row.document) <= _MAX_BYTES
        if not (is_groupable and await self._coalescer.call(item)):
            await self._alone(item)

    async def _alone(self, item: Write) -> bool:
        await self._pool.run(partial(self._write, *item), may_wait=True)
        return True

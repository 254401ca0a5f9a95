"""Calls that are made at the same time: one statement, of which each caller gets its own outcome."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from saga_bus.store import Activity, Coalescer, OutcomeUnknownError, SagaRow, SagaStoreError, StateCodecError
from saga_bus.store_sqlserver._driver import ConnectionPool
from saga_bus.store_sqlserver._errors import is_check_violation, is_duplicate, lost_connection, timed_out
from saga_bus.store_sqlserver._sessions import Session

__all__ = ["GroupedWrites", "Groups", "Write"]

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
Write = tuple[SagaRow, Any]  # with the correlation id of an insert, or the expected version of an update

_MAX_GROUP = 32  # rows of 11 parameters each, of which a statement takes 2,100
_MAX_BYTES = 64 * 1024  # of a document in a group; a larger one costs more than the request that it would save
_PATIENCE = 3  # refusals in a row, after which the server is taken not to know such a statement: triggers forbid it
_IN_FLIGHT = 2  # while one group waits for the log to be written, the next one is sent


class Groups(Generic[ItemT, ResultT]):
    """Calls of one kind, in groups where there are several at the same time.

    A group only ever succeeds for its callers: what it did not do, for whatever reason, its caller must do alone,
    and that tells why not.

    Args:
        pool: The connections.
        together: Does a group in a session; its outcome for each item, None or False for what it left undone.
        repeatable: Whether it only reads.
        alone: Does a lone item, so that no group has less than two.
        **options: For the coalescer.

    Attributes:
        is_grouping: Whether there are groups at all.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        together: Callable[[Sequence[ItemT], Session], Sequence[ResultT | None]],
        *,
        repeatable: bool = False,
        alone: Callable[[ItemT], Awaitable[ResultT]] | None = None,
        **options: Any,
    ) -> None:
        self.is_grouping = True
        self._refused = 0
        self._pool = pool
        self._together = together
        self._repeatable = repeatable
        self._alone = alone
        self._coalescer: Coalescer[ItemT, ResultT | None] = Coalescer(
            self._run, max_size=_MAX_GROUP, alone=alone, **options
        )

    async def call(self, item: ItemT) -> ResultT | None:
        """Do one item with others; None or False where it was left undone.

        Args:
            item: The item.
        """
        return await self._coalescer.call(item) if self.is_grouping else None

    async def join(self) -> None:
        """Wait until nothing is in flight."""
        await self._coalescer.join()

    async def _run(self, items: Sequence[ItemT]) -> Sequence[ResultT | None]:
        undone: list[ResultT | None] = [None] * len(items)
        if len(items) == 1 and self._alone is not None:
            return undone  # it may wait for its row, which must hold up no group
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


class GroupedWrites(Groups[Write, bool]):
    """Writes of one kind, no two of one key at the same time; a large document goes its own way.

    Args:
        pool: The connections.
        together: Writes a group in a session; whether it wrote each of them.
        alone: Writes a row with what comes with it in a session, or says why not.
        key: What no two writes may share that are in flight at the same time.
        activity: Shared by all that writes.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        together: Callable[[Sequence[Write], Session], Sequence[bool]],
        alone: Callable[[SagaRow, Any, Session], None],
        key: Callable[[Write], tuple[str, str]],
        activity: Activity,
    ) -> None:
        super().__init__(pool, together, alone=self._write_alone, key=key, max_in_flight=_IN_FLIGHT, activity=activity)
        self._write = alone

    async def write(self, row: SagaRow, other: Any) -> None:
        """Write a row or raise what the write alone raises.

        Args:
            row: The row.
            other: The correlation id of an insert, or the expected version of an update.
        """
        item = (row, other)
        if not (len(row.document) <= _MAX_BYTES and await self.call(item)):
            await self._write_alone(item)

    async def _write_alone(self, item: Write) -> bool:
        await self._pool.run(partial(self._write, *item))
        return True

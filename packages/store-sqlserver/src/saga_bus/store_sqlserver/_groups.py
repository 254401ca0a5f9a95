"""Updates that are made at the same time: one statement, of which each caller gets its own outcome."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from saga_bus.store import Coalescer, OutcomeUnknownError, SagaRow, SagaStoreError, StateCodecError
from saga_bus.store_sqlserver._driver import ConnectionPool
from saga_bus.store_sqlserver._errors import is_check_violation, lost_connection, timed_out
from saga_bus.store_sqlserver._operations import Operations

__all__ = ["GroupedUpdates"]

_MAX_GROUP = 32  # rows of 11 parameters each, of which a statement takes 2,100
_MAX_BYTES = 64 * 1024  # of a document in a group; a larger one costs more than the request that it would save
_PATIENCE = 3  # refusals in a row, after which the server is taken not to know such a statement: triggers forbid it
_IN_FLIGHT = 2  # while one group waits for the log to be written, the next one is sent


class _Update(NamedTuple):
    row: SagaRow
    expected_version: int


class GroupedUpdates:
    """Updates of sagas, in groups where there are several at the same time.

    A group only ever succeeds for its callers: what it did not write, for whatever reason, is written alone, and
    that tells why not.

    Args:
        pool: The connections.
        operations: The operations on the table.

    Attributes:
        is_grouping: Whether there are groups at all.
    """

    def __init__(self, pool: ConnectionPool, operations: Operations) -> None:
        self.is_grouping = True
        self._refused = 0
        self._pool = pool
        self._operations = operations
        self._coalescer: Coalescer[_Update, bool] = Coalescer(
            self._update_group, max_size=_MAX_GROUP, key=_key, max_in_flight=_IN_FLIGHT, alone=self._update_alone
        )

    async def update(self, row: SagaRow, expected_version: int) -> None:
        """Write the next version of a saga or raise `version_conflict(...)`.

        Args:
            row: The row.
            expected_version: The version that must be there.
        """
        update = _Update(row, expected_version)
        is_groupable = self.is_grouping and len(row.document) <= _MAX_BYTES
        if not (is_groupable and await self._coalescer.call(update)):
            await self._update_alone(update)

    async def join(self) -> None:
        """Wait until nothing is in flight."""
        await self._coalescer.join()

    async def _update_alone(self, update: _Update) -> bool:
        await self._pool.run(partial(self._operations.update, update.row, update.expected_version))
        return True

    async def _update_group(self, updates: Sequence[_Update]) -> Sequence[bool]:
        if len(updates) == 1:
            return [False]  # it may wait for its row, which must hold up no group
        try:
            written = await self._pool.run(partial(self._operations.update_group, updates))
        except OutcomeUnknownError:
            raise
        except StateCodecError:
            return [False] * len(updates)
        except SagaStoreError as error:
            cause = error.__cause__
            if cause is None or lost_connection(cause) or timed_out(cause):
                raise
            # The server wrote none of them.
            if not (error.retryable or is_check_violation(cause)):
                self._refused += 1
                self.is_grouping = self._refused < _PATIENCE
            return [False] * len(updates)
        self._refused = 0
        return written


def _key(update: _Update) -> tuple[str, str]:
    return update.row.saga_name, update.row.saga_id

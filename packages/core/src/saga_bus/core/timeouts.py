"""Timeouts: found in the store when they are due, and delivered once by whichever worker saves first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

from saga_bus.core.definition import SagaDefinition
from saga_bus.core.envelope import TRACE_PARENT, TRACE_STATE, Envelope
from saga_bus.core.handling import Handling
from saga_bus.core.outgoing import derived_id
from saga_bus.core.policies import Failures
from saga_bus.core.worker import Ending, SagaWorker
from saga_bus.store import SagaFilter, SagaMetadata

__all__ = ["Timeouts"]

_LOGGER = logging.getLogger("saga_bus.core")
_PAGE = 100
_AT_ONCE = 100
_NAME = "saga-bus.timeout"
_LAST_DOUBLING = 5


class _InStore:
    """A timeout that is in hand: the store keeps it, so there is nothing to acknowledge or to put aside."""

    async def ack(self) -> None: ...

    async def dead_letter(self, reason: str, details: Mapping[str, str]) -> None: ...


class Timeouts:
    """The timeouts of the sagas of one name.

    Args:
        definition: The saga.
        store: Its store, which can be searched.
        worker: Runs its handlers.
    """

    def __init__(self, definition: SagaDefinition[Any], store: Any, worker: SagaWorker) -> None:
        self._name = definition.name
        self._retry = definition.retry
        self._store = store
        self._worker = worker
        self._firing: dict[str, asyncio.Task[None]] = {}
        self._postponed: dict[str, tuple[float, int]] = {}

    async def settle(self) -> None:
        """Wait until no timeout is in hand."""
        if self._firing:
            await asyncio.wait(self._firing.values())

    def give_back(self) -> None:
        """Leave those in hand, which stay in the store."""
        for task in self._firing.values():
            task.cancel()

    async def fire_due(self, due_before: datetime) -> int:
        """Begin to deliver what is due, earliest first.

        Args:
            due_before: What is due before this moment (aware).

        Returns:
            How many were begun.

        Raises:
            SagaStoreError: They could not be searched.
        """
        begun, cursor = 0, None
        now = asyncio.get_running_loop().time()
        found: set[str] = set()
        search = SagaFilter(saga_name=self._name, timeout_due_before=due_before)
        while True:
            page = await self._store.find(search, limit=_PAGE, cursor=cursor)
            for record in page.items:
                saga_id = record.state.metadata.saga_id
                found.add(saga_id)
                if saga_id in self._firing or self._postponed.get(saga_id, (now, 0))[0] > now:
                    continue
                while len(self._firing) >= _AT_ONCE:
                    await asyncio.wait(self._firing.values(), return_when=asyncio.FIRST_COMPLETED)
                task = asyncio.create_task(self._fire(record.state, record.correlation_id))
                self._firing[saga_id] = task
                task.add_done_callback(partial(self._fired, saga_id))
                begun += 1
            cursor = page.cursor
            if cursor is None:
                for saga_id in self._postponed.keys() - found:
                    del self._postponed[saga_id]
                return begun

    def _fired(self, saga_id: str, _task: asyncio.Task[None]) -> None:
        self._firing.pop(saga_id, None)

    async def _fire(self, state: Any, correlation_id: str) -> None:
        metadata: SagaMetadata = state.metadata
        due = metadata.timeout_expires_at
        if due is None:  # a store that finds what it must not
            return
        saga_id = metadata.saga_id
        trace = {TRACE_PARENT: metadata.trace_parent, TRACE_STATE: metadata.trace_state}
        envelope = Envelope(
            id=derived_id(self._name, saga_id, due.isoformat()),
            name=_NAME,
            body=b"{}",
            sent_at=due,
            headers={name: value for name, value in trace.items() if value is not None},
        )
        attempt = self._postponed.get(saga_id, (0.0, 0))[1] + 1
        handling = Handling(
            saga_name=self._name,
            endpoint=self._worker.endpoint,
            envelope=envelope,
            attempt=attempt,
            kind="timeout",
        )
        handling.correlation_id = correlation_id
        handling.saga_id = saga_id
        ending = Ending(_InStore())
        once = partial(self._worker.cycle.time_out, handling, [state])
        run = partial(self._worker.run, handling, ending, Failures(self._retry), once)
        try:
            await self._worker.surround(handling, ending, run)
        except Exception:
            _LOGGER.exception("saga %s %s: its timeout failed", self._name, correlation_id)
            handling.outcome = "failed"
        if handling.outcome == "failed":
            # A timer is never lost: it stays in the store and is tried again, later each time.
            pause = self._retry.longest_pause.total_seconds() * 2 ** min(attempt - 1, _LAST_DOUBLING)
            self._postponed[saga_id] = (asyncio.get_running_loop().time() + pause, attempt)
        else:
            self._postponed.pop(saga_id, None)

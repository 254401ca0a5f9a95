"""Messages that wait for their time: each is a small saga of the bus's own, found by its timeout when it is due."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from saga_bus.core.configuration import register_type
from saga_bus.core.errors import ConfigurationError, SagaBusError
from saga_bus.core.groups import for_each
from saga_bus.core.outgoing import Outgoing
from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
    SagaFilter,
    SagaMetadata,
    SagaState,
    capabilities_of,
)

__all__ = ["ScheduledMessage", "Schedules"]

_LOGGER = logging.getLogger("saga_bus.core")
_PAGE = 200


class ScheduledMessage(SagaState, kw_only=True):
    """A message that waits in a store.

    Args:
        message: The message.
    """

    message: Outgoing


class Schedules:
    """The waiting messages of one store.

    A message is found by every worker when it is due. The one that moves its due time first, which is a
    compare-and-swap, sends it and deletes it; should that worker die, the message is due again after the lease.

    Args:
        store: The store.
        saga_name: The name of the waiting messages in it.
        lease: How long the others leave a message alone that one has taken.
    """

    def __init__(self, store: Any, saga_name: str, lease: timedelta) -> None:
        self._store = store
        self._saga_name = saga_name
        self._lease = lease
        # A codec that takes no types would not know this one either.
        self._can_find = capabilities_of(store).query and register_type(store, saga_name, ScheduledMessage)

    async def put(self, outgoing: Outgoing) -> None:
        """Save a message until it is due; one that is there already is no error.

        Args:
            outgoing: The message.

        Raises:
            ConfigurationError: The store cannot find what is due.
            SagaStoreError: It could not be saved.
        """
        if not self._can_find:
            raise ConfigurationError(
                f"{type(self._store).__qualname__} declares no query, or has a codec that takes no state types: "
                "it cannot find scheduled messages when they are due"
            )
        now = datetime.now(UTC)
        due = outgoing.due or now
        metadata = SagaMetadata(
            saga_id=outgoing.id, version=0, created_at=now, updated_at=now, timeout=due - now, timeout_expires_at=due
        )
        try:
            await self._store.insert(
                self._saga_name, outgoing.id, ScheduledMessage(metadata=metadata, message=outgoing)
            )
        except DuplicateSagaError:
            return

    async def send_due(self, send: Callable[[Outgoing], Awaitable[None]], due_before: datetime) -> int:
        """Send what is due, a group at a time in the order of the due times, and delete it.

        Args:
            send: Sends one message; returns when the broker has it.
            due_before: What is due before this moment (aware).

        Returns:
            How many were sent.

        Raises:
            SagaStoreError: The store failed; what was not sent stays due.
            TransportError: The transport failed; likewise.
        """
        if not self._can_find:
            return 0
        sent, cursor = 0, None
        search = SagaFilter(saga_name=self._saga_name, timeout_due_before=due_before)
        while True:
            page = await self._store.find(search, limit=_PAGE, cursor=cursor)
            sent += await for_each([record.state for record in page.items], partial(self._send, send))
            cursor = page.cursor
            if cursor is None:
                return sent

    async def _send(self, send: Callable[[Outgoing], Awaitable[None]], state: ScheduledMessage) -> int:
        version = state.metadata.version
        now = datetime.now(UTC)
        state.metadata = state.metadata.next(now=now, timeout=self._lease, timeout_expires_at=now + self._lease)
        try:
            await self._store.update(self._saga_name, state, version)
        except ConcurrencyError:
            return 0  # another worker has it
        try:
            await send(state.message)
        except SagaBusError as error:
            if error.retryable:
                raise
            _LOGGER.exception(
                "scheduled message %s (%s) cannot be sent and stays", state.message.id, state.message.name
            )
            return 0
        await self._store.delete(self._saga_name, state.metadata.saga_id)
        return 1

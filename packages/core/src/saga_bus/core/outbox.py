"""Sending what a saga's document says is to be sent, and taking it out of the document later.

The outgoing messages of a handler are saved with the state, then sent, then confirmed, which means taken out of the
document. Confirming is lazy: this process remembers what it sent, and the saga's next write leaves it out. What no
later write took along is cleared when the saga has been quiet for a moment. So confirming costs a busy saga nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from saga_bus.core.errors import SagaBusError
from saga_bus.core.groups import for_each
from saga_bus.core.outgoing import Outgoing
from saga_bus.store import ConcurrencyError, SagaFilter, SagaMetadata, SagaStoreError, capabilities_of, with_metadata

__all__ = ["Outbox"]

_LOGGER = logging.getLogger("saga_bus.core")
_PAGE = 100
_AT_ONCE = 64
_MOST_UNCONFIRMED = 20_000  # beyond it, who sends also confirms, so that memory stays bounded


class _Sent:
    """What this process sent of one saga and did not confirm yet."""

    __slots__ = ("at", "ids", "turn")

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.turn = asyncio.Lock()  # one sender at a time, so that a saga's messages keep their order
        self.at = 0.0


class Outbox:
    """The outgoing messages of the sagas of one name.

    Args:
        saga_name: The name.
        store: The store of the sagas.
        send: Sends one message; returns when the broker has it.
        sender: This worker's name in the entries.
        grace: How long an entry of another worker is left to that worker.
        delete_completed: Whether completed sagas are deleted once their messages are sent.
    """

    def __init__(
        self,
        *,
        saga_name: str,
        store: Any,
        send: Callable[[Outgoing], Awaitable[None]],
        sender: str,
        grace: timedelta,
        delete_completed: bool,
    ) -> None:
        self._saga_name = saga_name
        self._store = store
        self._send = send
        self._sender = sender
        self._grace = grace
        self._delete_completed = delete_completed
        self._can_find = capabilities_of(store).query
        self._sent: dict[str, _Sent] = {}

    def __len__(self) -> int:
        return len(self._sent)

    def kept(self, metadata: SagaMetadata) -> tuple[dict[str, Any], ...]:
        """The entries that the saga's next version must still carry.

        Args:
            metadata: The metadata of the version that was loaded.
        """
        if not metadata.outbox:
            return ()
        record = self._sent.get(metadata.saga_id)
        if record is None:
            return metadata.outbox
        return tuple(entry for entry in metadata.outbox if entry.get("id") not in record.ids)

    def was_saved(self, before: SagaMetadata, after: SagaMetadata) -> None:
        """Note that a version was saved: what it left out needs no confirming any more.

        Args:
            before: The metadata of the version that was loaded.
            after: The metadata of the version that was saved.
        """
        if not before.outbox:
            return
        record = self._sent.get(before.saga_id)
        if record is not None:
            carried = {entry.get("id") for entry in after.outbox}
            record.ids.difference_update(entry["id"] for entry in before.outbox if entry.get("id") not in carried)
            self._forget(before.saga_id, record)

    async def send_saved(self, kept: Iterable[dict[str, Any]], saga_id: str, new: Iterable[Outgoing]) -> None:
        """Send what a handler left, after older entries that are this worker's or whose worker seems to be gone.

        Args:
            kept: The entries that were there before.
            saga_id: The saga's id.
            new: The handler's messages, as they were saved.

        Raises:
            SagaBusError: The transport failed; the entries stay.
            SagaStoreError: A message that waits could not be saved; likewise.
        """
        messages = [*self._due_here(kept, saga_id), *new] if kept else list(new)
        if messages:
            await self._send_in_order(saga_id, messages)

    async def send_again(self, metadata: SagaMetadata, *, of_others: bool) -> None:
        """Send what is left of a saga whose message was handled before.

        Args:
            metadata: The saga's metadata, just loaded.
            of_others: Whether to send what another worker left, however young it is.

        Raises:
            SagaBusError: The transport failed; the entries stay.
            SagaStoreError: A message that waits could not be saved; likewise.
        """
        if of_others or not self._can_find:  # without a search nobody else ever would
            await self.send_all(metadata)
        else:
            await self.send_saved(self.kept(metadata), metadata.saga_id, ())

    async def send_all(self, metadata: SagaMetadata) -> int:
        """Send every entry of a saga that this process has not sent.

        Args:
            metadata: The saga's metadata, just loaded.

        Returns:
            How many were sent.

        Raises:
            SagaBusError: The transport failed; the entries stay.
            SagaStoreError: A message that waits could not be saved; likewise.
        """
        messages = self._read(self.kept(metadata), metadata.saga_id)
        return await self._send_in_order(metadata.saga_id, messages) if messages else 0

    async def send_unsaved(self, messages: Iterable[Outgoing]) -> None:
        """Send messages that belong to no saga.

        Args:
            messages: The messages.

        Raises:
            SagaBusError: The transport failed.
            SagaStoreError: A message that waits could not be saved.
        """
        for message in messages:
            await self._send(message)

    async def confirm(self, idle: float) -> int:
        """Clear what was sent of sagas that were not written for a while.

        Args:
            idle: For how long, in seconds.

        Returns:
            How many sagas were written, or deleted because they have ended.
        """
        latest = time.monotonic() - idle
        quiet = []
        for saga_id, record in self._sent.items():
            if record.at > latest:
                break  # those that follow are younger
            if not record.turn.locked():
                quiet.append(saga_id)
        return await for_each(quiet, self._confirm_one, at_once=_AT_ONCE)

    async def recover(self, grace: timedelta) -> int:
        """Send what workers that are gone did not send, and confirm it.

        Args:
            grace: Sagas that were written within this time are left to their workers.

        Returns:
            How many messages were sent.

        Raises:
            SagaStoreError: The sagas could not be searched.
            TransportError: A message could not be sent.
        """
        if not self._can_find:
            return 0
        before = datetime.now(UTC) - grace
        sent, cursor = 0, None
        search = SagaFilter(saga_name=self._saga_name, outbox_pending=True, updated_before=before, order="stalest")
        while True:
            page = await self._store.find(search, limit=_PAGE, cursor=cursor)
            sent += await for_each([record.state.metadata for record in page.items], self._recover_one)
            cursor = page.cursor
            if cursor is None:
                break
        if self._delete_completed:
            await self._delete_leftovers(before)
        return sent

    async def _recover_one(self, metadata: SagaMetadata) -> int:
        try:
            sent = await self.send_all(metadata)
        except SagaBusError as error:
            if error.retryable:
                raise
            _LOGGER.exception("saga %s %s: its messages cannot be sent and stay", self._saga_name, metadata.saga_id)
            return 0
        await self._confirm_one(metadata.saga_id)
        return sent

    async def delete(self, metadata: SagaMetadata) -> bool:
        """Delete a saga that has ended, if all its messages are sent and nobody wrote it since.

        What stays is deleted by `confirm` or `recover`.

        Args:
            metadata: The metadata of the version that ended it.

        Returns:
            Whether it is deleted.
        """
        if self.kept(metadata):
            return False
        try:
            await self._store.delete(self._saga_name, metadata.saga_id, metadata.version)
        except ConcurrencyError:
            return False
        self._sent.pop(metadata.saga_id, None)
        return True

    # -- the parts ---------------------------------------------------------------------------------------

    async def _send_in_order(self, saga_id: str, messages: list[Outgoing]) -> int:
        record = self._sent.get(saga_id)
        if record is None:
            record = self._sent[saga_id] = _Sent()
        number = 0
        async with record.turn:
            try:
                for message in messages:
                    if message.id not in record.ids:
                        await self._send(message)
                        record.ids.add(message.id)
                        number += 1
            finally:
                record.at = time.monotonic()
                # The oldest stand first, and a record that was in use again is no longer one of them.
                other = self._sent.pop(saga_id, record)
                record.ids |= other.ids
                self._sent[saga_id] = record
        if len(self._sent) > _MOST_UNCONFIRMED:
            await self._confirm_one(next(iter(self._sent)))
        self._forget(saga_id, record)
        return number

    def _due_here(self, entries: Iterable[dict[str, Any]], saga_id: str) -> list[Outgoing]:
        overdue = datetime.now(UTC) - self._grace
        return [out for out in self._read(entries, saga_id) if out.by == self._sender or out.at <= overdue]

    def _forget(self, saga_id: str, record: _Sent) -> None:
        if not record.ids and not record.turn.locked() and self._sent.get(saga_id) is record:
            del self._sent[saga_id]

    def _read(self, entries: Iterable[dict[str, Any]], saga_id: str) -> list[Outgoing]:
        messages = []
        for entry in entries:
            try:
                messages.append(Outgoing.read(entry))
            except msgspec.ValidationError:
                _LOGGER.exception("saga %s %s: an entry of the outbox cannot be read", self._saga_name, saga_id)
        return messages

    async def _confirm_one(self, saga_id: str) -> bool:
        record = self._sent.get(saga_id)
        if record is None:
            return False
        ids = set(record.ids)
        try:
            state = await self._store.get_by_id(self._saga_name, saga_id)
            written = state is not None and await self._clear(state, ids)
        except ConcurrencyError:
            return False  # somebody wrote it just now; it is looked at again when it is quiet
        except SagaStoreError as error:
            _LOGGER.warning("saga %s %s: what was sent could not be confirmed yet: %s", self._saga_name, saga_id, error)
            return False
        record.ids -= ids
        self._forget(saga_id, record)
        return written

    async def _clear(self, state: Any, ids: set[str]) -> bool:
        metadata: SagaMetadata = state.metadata
        left = tuple(entry for entry in metadata.outbox if entry.get("id") not in ids)
        if self._delete_completed and metadata.is_completed and not left:
            await self._store.delete(self._saga_name, metadata.saga_id, metadata.version)
            return True
        if len(left) == len(metadata.outbox):
            return False
        await self._store.update(self._saga_name, with_metadata(state, metadata.next(outbox=left)), metadata.version)
        return True

    async def _delete_leftovers(self, before: datetime) -> None:
        # Sagas that ended when their worker died between the acknowledgement and the delete.
        search = SagaFilter(
            saga_name=self._saga_name, completed=True, outbox_pending=False, updated_before=before, order="stalest"
        )
        cursor = None
        while True:
            page = await self._store.find(search, limit=_PAGE, cursor=cursor)
            await for_each([record.state.metadata for record in page.items], self.delete)
            cursor = page.cursor
            if cursor is None:
                return

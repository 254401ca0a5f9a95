"""One attempt at one message: load the saga, run its handler, save it once, send what it left."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import replace

from saga_bus.core.context import MessageContext, SagaContext
from saga_bus.core.definition import Route, SagaDefinition
from saga_bus.core.envelope import TRACE_PARENT, TRACE_STATE
from saga_bus.core.errors import SagaCompletedError, SagaMissingError
from saga_bus.core.handling import Handling, Outcome
from saga_bus.core.outbox import Outbox
from saga_bus.store import OutcomeUnknownError, SagaMetadata, with_metadata
from saga_bus.store.checks import metadata_of
from saga_bus.store.state import MetadataChanges

__all__ = ["SagaCycle"]

_LOGGER = logging.getLogger("saga_bus.core")


class SagaCycle:
    """The load, change and save of one saga's messages and timeouts.

    Every attempt begins with a load, and the ids of handled messages are saved with the state. So an attempt after
    any failure, in this process or in another one, goes on where the last one stopped.

    Args:
        definition: The saga.
        store: Its store.
        outbox: Its outgoing messages.
        sender: This process's name in outboxes.
    """

    def __init__(self, *, definition: SagaDefinition[Any], store: Any, outbox: Outbox, sender: str) -> None:
        self._definition = definition
        self._name = definition.name
        self._store = store
        self._outbox = outbox
        self._sender = sender

    async def handle(self, handling: Handling, route: Route[Any], message: Any) -> tuple[Outcome, SagaMetadata | None]:
        """Make one attempt at a message.

        Args:
            handling: What is known of it.
            route: What the saga does with it.
            message: The message.

        Returns:
            How it ended, and the metadata of a saga that ended with it.

        Raises:
            Exception: Whatever the store, the handler or the transport raised.
        """
        correlation_id = handling.correlation_id or ""
        state = await self._store.get_by_correlation_id(self._name, correlation_id)
        if state is None:
            if route.new is None:
                await self._missing(handling, message)
                return "ignored", None
            state = route.new(message)
            before, own = None, metadata_of(state)
            handling.saga_id = own.saga_id
        else:
            before = own = metadata_of(state)
            handling.saga_id = own.saga_id
            if handling.envelope.id in before.handled:
                return await self._again(handling, before)
            if before.is_completed:
                if self._definition.on_completed == "ignore":
                    _LOGGER.info("saga %s %s has ended: %s is ignored", self._name, correlation_id, route.name)
                    return "ignored", None
                if self._definition.on_completed != "restart" or route.new is None:
                    raise SagaCompletedError(f"saga {self._name!r} {correlation_id!r} has ended")
                state = route.new(message)
        ctx = SagaContext(
            handling,
            self._sender,
            is_new=before is None or before.is_completed,
            has_timeouts=self._definition.timeout_handler is not None,
        )
        answer = await route.handler(message, state, ctx)
        ctx.seal()
        after = await self._save(handling, ctx, self._chosen(state, answer), before, own)
        return "handled", after if after.is_completed else None

    async def time_out(self, handling: Handling, loaded: list[Any]) -> tuple[Outcome, SagaMetadata | None]:
        """Make one attempt at a timeout.

        Args:
            handling: What is known of it; its envelope's ``sent_at`` is the moment when it was due.
            loaded: The state, just loaded, for the first attempt; the attempt takes it out.

        Returns:
            How it ended, and the metadata of a saga that ended with it.

        Raises:
            Exception: Whatever the store, the handler or the transport raised.
        """
        state = loaded.pop() if loaded else await self._store.get_by_id(self._name, handling.saga_id or "")
        handler = self._definition.timeout_handler
        if state is None or handler is None:
            return "ignored", None
        before = metadata_of(state)
        if handling.envelope.id in before.handled:
            return await self._again(handling, before)
        if before.is_completed or before.timeout_expires_at != handling.envelope.sent_at:
            return "ignored", None  # it ended, or its timeout was cleared or set anew
        ctx = SagaContext(handling, self._sender, is_new=False, has_timeouts=True)
        answer = await handler(state, ctx)
        ctx.seal()
        after = await self._save(handling, ctx, self._chosen(state, answer), before, before)
        return "handled", after if after.is_completed else None

    async def _again(self, handling: Handling, metadata: SagaMetadata) -> tuple[Outcome, SagaMetadata | None]:
        # Its state is saved. If the message was delivered before, whoever saved it may have died before the messages
        # were sent; else another worker has it in hand just now, and sends them itself.
        await self._outbox.send_again(metadata, of_others=handling.redelivered and handling.kind == "message")
        outcome: Outcome = "handled" if handling.saved else "duplicate"
        return outcome, metadata if metadata.is_completed else None

    async def _missing(self, handling: Handling, message: Any) -> None:
        policy = self._definition.on_missing
        if callable(policy):
            ctx = MessageContext(handling, self._sender)
            await policy(message, ctx)
            ctx.seal()
            await self._outbox.send_unsaved(ctx.outgoing)
        elif policy == "ignore":
            _LOGGER.info(
                "saga %s %s is missing: %s is ignored", self._name, handling.correlation_id, handling.envelope.name
            )
        else:
            raise SagaMissingError(f"there is no saga {self._name!r} {handling.correlation_id!r}")

    def _chosen(self, state: Any, answer: Any) -> Any:
        if answer is None:
            return state
        if not isinstance(answer, self._definition.state_type):
            raise TypeError(
                f"a handler of saga {self._name!r} returned a {type(answer).__qualname__}, "
                f"not a {self._definition.state_type.__qualname__} or None"
            )
        return answer

    async def _save(
        self, handling: Handling, ctx: SagaContext, state: Any, before: SagaMetadata | None, own: SagaMetadata
    ) -> SagaMetadata:
        kept = () if before is None else self._outbox.kept(before)
        changes = self._changes(handling, ctx, before, kept)
        after = replace(own.next(**changes), version=0) if before is None else before.next(**changes)
        state = with_metadata(state, after)
        try:
            if before is None:
                await self._store.insert(self._name, handling.correlation_id, state)
            else:
                await self._store.update(self._name, state, before.version)
        except OutcomeUnknownError:
            handling.saved = True  # the next attempt finds out
            raise
        handling.saved = True
        if before is not None:
            self._outbox.was_saved(before, after)
        if kept or ctx.outgoing:
            await self._outbox.send_saved(kept, after.saga_id, ctx.outgoing)
        return after

    def _changes(
        self, handling: Handling, ctx: SagaContext, before: SagaMetadata | None, kept: tuple[dict[str, Any], ...]
    ) -> MetadataChanges:
        headers = handling.envelope.headers
        handled = () if before is None else before.handled
        changes: MetadataChanges = {
            "outbox": (*kept, *[message.entry() for message in ctx.outgoing]) if ctx.outgoing else kept,
            "handled": (*handled, handling.envelope.id)[-self._definition.remember :],
            "trace_parent": headers.get(TRACE_PARENT),
            "trace_state": headers.get(TRACE_STATE),
        }
        if before is not None and before.is_completed:  # the saga begins anew in the place of the old one
            changes.update({"is_completed": False, "archived_at": None, "timeout": None})
        if handling.kind == "timeout":
            changes["timeout"] = None
        if ctx.timeout_changed:
            changes["timeout"] = ctx.timeout
        if ctx.completed:
            changes.update({"is_completed": True, "timeout": None})
            if self._definition.completed == "archive":
                changes["archived_at"] = datetime.now(UTC)
        return changes

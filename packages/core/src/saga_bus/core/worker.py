"""One saga at work: a message comes in, its saga is loaded, changed and saved once, and what it sends leaves after."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from msgspec.structs import replace

from saga_bus.core.context import MessageContext, SagaContext
from saga_bus.core.definition import Route, SagaDefinition
from saga_bus.core.envelope import TRACE_PARENT, TRACE_STATE, Envelope
from saga_bus.core.errors import (
    ConfigurationError,
    MessageDecodeError,
    SagaCompletedError,
    SagaMissingError,
)
from saga_bus.core.handling import Handling, Middleware, Outcome
from saga_bus.core.messages import decode_message
from saga_bus.core.outbox import Outbox
from saga_bus.core.outgoing import derived_id
from saga_bus.core.policies import Failures
from saga_bus.core.transport import Delivery
from saga_bus.store import SagaFilter, SagaMetadata, capabilities_of, with_metadata
from saga_bus.store.checks import metadata_of
from saga_bus.store.state import MetadataChanges

__all__ = ["SagaWorker"]

_LOGGER = logging.getLogger("saga_bus.core")
_LONGEST_TRACEBACK = 8000  # characters, of its end
_PAGE = 100
_TIMEOUT_NAME = "saga-bus.timeout"


class SagaWorker:
    """Runs one saga of a bus.

    Args:
        definition: The saga.
        store: Its store.
        outbox: Its outgoing messages.
        middleware: What is around each handling, the first outermost.
        sender: This process's name in outboxes.
        counts: Counts what happens, by name.
    """

    def __init__(
        self,
        *,
        definition: SagaDefinition[Any],
        store: Any,
        outbox: Outbox,
        middleware: Sequence[Middleware],
        sender: str,
        counts: Counter[str],
    ) -> None:
        self.name = definition.name
        self.endpoint = definition.endpoint
        self.outbox = outbox
        self.message_names: tuple[str, ...] = ()
        self._definition = definition
        self._routes: dict[str, Route[Any]] = definition.use()
        self.message_names = tuple(self._routes)
        self._timeout_handler = definition.timeout_handler
        self._store = store
        self._middleware = tuple(middleware)
        self._sender = sender
        self._counts = counts
        self._deletes = definition.completed == "delete"
        self._in_hand: dict[asyncio.Timeout, None] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._firing: dict[str, asyncio.Task[None]] = {}
        self._postponed: dict[str, tuple[float, int]] = {}

    # -- life --------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Wait until nothing is in hand."""
        await self._idle.wait()
        if self._firing:
            await asyncio.wait(self._firing.values())

    def give_back(self) -> None:
        """Give back what is still in hand, wherever its handling stands."""
        now = asyncio.get_running_loop().time()
        for scope in list(self._in_hand):
            scope.reschedule(now)
        for task in self._firing.values():
            task.cancel()

    # -- messages ----------------------------------------------------------------------------------------

    async def receive(self, delivery: Delivery) -> None:
        """Handle one delivery, and end it.

        Args:
            delivery: The delivery.

        Raises:
            TransportError: It could not be ended; the transport gives it back.
        """
        handling = Handling(
            saga_name=self.name, endpoint=self.endpoint, envelope=delivery.envelope, attempt=delivery.attempt
        )
        ending = _Ending(delivery)
        scope = asyncio.timeout(None)
        self._in_hand[scope] = None
        self._idle.clear()
        try:
            async with scope:
                await self._surrounded(handling, ending, lambda: self._handle(handling, ending))
        except TimeoutError:
            if not scope.expired():
                raise
            if not ending.ended:
                await delivery.retry(timedelta(0))
        finally:
            del self._in_hand[scope]
            if not self._in_hand:
                self._idle.set()

    async def _surrounded(self, handling: Handling, ending: _Ending, handle: Callable[[], Awaitable[None]]) -> None:
        if not self._middleware:
            await handle()
            return
        failures = Failures(self._definition.retry)
        while True:
            try:
                await self._call(0, handling, handle)
            except Exception as error:
                if handling.outcome is not None:
                    if not ending.ended:
                        raise  # the transport could not end the delivery
                    _LOGGER.exception("saga %s: a middleware raised after the end of a message", self.name)
                    return
                pause = failures.pause_after(error)
                if pause is None:
                    await self._dead_letter(handling, ending, "a middleware raised", error, failures)
                    return
                await self._pause(handling, error, pause)
            else:
                if handling.outcome is None:
                    handling.outcome = "ignored"
                    _LOGGER.warning("saga %s: a middleware left out a message of %s", self.name, handling.envelope.name)
                    await ending.ack()
                return

    async def _call(self, position: int, handling: Handling, handle: Callable[[], Awaitable[None]]) -> None:
        if position == len(self._middleware):
            await handle()
        else:
            await self._middleware[position](handling, lambda: self._call(position + 1, handling, handle))

    async def _handle(self, handling: Handling, ending: _Ending) -> None:
        envelope = handling.envelope
        failures = Failures(self._definition.retry, retry_missing=self._definition.on_missing == "retry")
        try:
            route = self._route(envelope)
            message = handling.message = decode_message(route.message_type, envelope.body)
            handling.correlation_id = route.correlate(message)
        except MessageDecodeError as error:
            await self._dead_letter(handling, ending, "the message cannot be decoded", error, failures)
            return
        except Exception as error:  # noqa: BLE001 - the user's correlation function
            await self._dead_letter(handling, ending, "the message does not say which saga it is for", error, failures)
            return
        first = handling.attempt
        while True:
            handling.attempt = first + failures.count
            try:
                outcome, ended = await self._once(handling, route, message)
            except Exception as error:  # noqa: BLE001 - whatever it is, the policy decides
                pause = failures.pause_after(error)
                handling.conflicts = failures.conflicts
                if pause is None:
                    await self._dead_letter(handling, ending, _reason(error), error, failures)
                    return
                await self._pause(handling, error, pause)
            else:
                break
        handling.outcome = outcome
        self._counts[outcome] += 1
        await ending.ack()
        if ended is not None and self._deletes:
            await self._delete(ended)

    def _route(self, envelope: Envelope) -> Route[Any]:
        route = self._routes.get(envelope.name)
        if route is None:
            raise MessageDecodeError(f"saga {self.name!r} handles no message named {envelope.name!r}")
        return route

    async def _once(self, handling: Handling, route: Route[Any], message: Any) -> tuple[Outcome, SagaMetadata | None]:
        """One attempt, from the load to the last message sent.

        Returns:
            How it ended, and the metadata of a saga that ended with it.
        """
        correlation_id = handling.correlation_id or ""
        state = await self._store.get_by_correlation_id(self.name, correlation_id)
        before: SagaMetadata | None = None
        is_new = state is None
        if state is not None:
            before = metadata_of(state)
            if handling.envelope.id in before.handled:
                return await self._again(handling, before)
            if before.is_completed:
                if self._definition.on_completed == "ignore":
                    _LOGGER.info("saga %s %s has ended: %s ignored", self.name, correlation_id, route.name)
                    return "ignored", None
                if self._definition.on_completed != "restart" or route.new is None:
                    raise SagaCompletedError(f"saga {self.name!r} {correlation_id!r} has ended")
                is_new = True
        elif route.new is None:
            await self._missing(handling, message)
            return "ignored", None
        if is_new:
            state = route.new(message)  # type: ignore[misc]  # not None in either way here
        own = metadata_of(state)
        handling.saga_id = own.saga_id if before is None else before.saga_id
        ctx = SagaContext(handling, self._sender, is_new=is_new, has_timeouts=self._timeout_handler is not None)
        answer = await route.handler(message, state, ctx)
        after = await self._save(handling, ctx, self._chosen(state, answer), before, own)
        return "handled", after if after.is_completed else None

    async def _again(self, handling: Handling, metadata: SagaMetadata) -> tuple[Outcome, SagaMetadata | None]:
        # Its state is saved. Whoever saved it may have died before the messages were sent.
        handling.saga_id = metadata.saga_id
        await self.outbox.send_all(metadata)
        # A first run whose answer was lost is not a duplicate: this process handled it.
        outcome: Outcome = "handled" if handling.retries else "duplicate"
        return outcome, metadata if metadata.is_completed else None

    async def _missing(self, handling: Handling, message: Any) -> None:
        policy = self._definition.on_missing
        if callable(policy):
            ctx = MessageContext(handling, self._sender)
            await policy(message, ctx)
            await self.outbox.send_unsaved(ctx.outgoing)
        elif policy == "ignore":
            _LOGGER.info("saga %s %s is missing: ignored", self.name, handling.correlation_id)
        else:
            raise SagaMissingError(f"there is no saga {self.name!r} {handling.correlation_id!r}")

    def _chosen(self, state: Any, answer: Any) -> Any:
        if answer is None:
            return state
        if not isinstance(answer, self._definition.state_type):
            raise TypeError(
                f"a handler of saga {self.name!r} returned a {type(answer).__qualname__}, "
                f"not a {self._definition.state_type.__qualname__} or None"
            )
        return answer

    async def _save(
        self, handling: Handling, ctx: SagaContext, state: Any, before: SagaMetadata | None, own: SagaMetadata
    ) -> SagaMetadata:
        headers = handling.envelope.headers
        kept = () if before is None else self.outbox.kept(before)
        handled = () if before is None else before.handled
        changes: MetadataChanges = {
            "outbox": (*kept, *[message.entry() for message in ctx.outgoing]) if ctx.outgoing else kept,
            "handled": (*handled, handling.envelope.id)[-self._definition.remember :],
            "trace_parent": headers.get(TRACE_PARENT),
            "trace_state": headers.get(TRACE_STATE),
        }
        if ctx.completed:
            changes["is_completed"] = True
            changes["timeout"] = None
            if self._definition.completed == "archive":
                changes["archived_at"] = datetime.now(UTC)
        elif ctx.timeout_changed:
            changes["timeout"] = ctx.timeout
        elif handling.kind == "timeout" or (before is not None and before.is_completed):
            changes["timeout"] = None
        if before is None:
            after = replace(own.next(**changes), version=0)
            await self._store.insert(self.name, handling.correlation_id, with_metadata(state, after))
        else:
            if before.is_completed and not ctx.completed:  # it begins anew in the place of the old one
                changes["is_completed"] = False
                changes["archived_at"] = None
            after = before.next(**changes)
            await self._store.update(self.name, with_metadata(state, after), before.version)
            self.outbox.was_saved(before, after)
        if kept or ctx.outgoing:
            await self.outbox.send_saved(kept, after.saga_id, ctx.outgoing)
        return after

    async def _delete(self, metadata: SagaMetadata) -> None:
        try:
            await self.outbox.delete(metadata.saga_id, metadata.version)
        except Exception as error:  # noqa: BLE001 - the message is handled; recovery deletes what stays
            _LOGGER.warning("saga %s %s has ended and could not be deleted yet: %s", self.name, metadata.saga_id, error)

    async def _pause(self, handling: Handling, error: Exception, pause: float) -> None:
        handling.retries += 1
        handling.error = error
        self._counts["retried"] += 1
        _LOGGER.debug("saga %s %s: tried again in %.3f s: %r", self.name, handling.correlation_id, pause, error)
        await asyncio.sleep(pause)

    async def _dead_letter(
        self, handling: Handling, ending: _Ending, reason: str, error: Exception, failures: Failures
    ) -> None:
        handling.outcome = "dead-lettered"
        handling.error = error
        details = {
            "error": f"{type(error).__module__}.{type(error).__qualname__}",
            "message": str(error),
            "traceback": "".join(traceback.format_exception(error))[-_LONGEST_TRACEBACK:],
            "saga-name": self.name,
            "saga-id": handling.saga_id or "",
            "correlation-id": handling.correlation_id or "",
            "attempts": str(handling.attempt),
            "conflicts": str(failures.conflicts),
            "unavailable": str(failures.unavailable),
            "failed-at": datetime.now(UTC).isoformat(),
            "worker": f"{socket.gethostname()}:{os.getpid()}",
        }
        _LOGGER.error(
            "saga %s %s: message %s (%s) goes to the dead letters: %s: %s",
            self.name,
            handling.correlation_id,
            handling.envelope.id,
            handling.envelope.name,
            reason,
            error,
        )
        await ending.dead_letter(reason, details)
        self._counts["dead-lettered"] += 1

    # -- timeouts ----------------------------------------------------------------------------------------

    async def fire_due(self, due_before: datetime) -> int:
        """Begin to deliver the timeouts that are due, earliest first.

        Args:
            due_before: Those before this moment (aware).

        Returns:
            How many were begun.

        Raises:
            SagaStoreError: They could not be searched.
        """
        if self._timeout_handler is None or not capabilities_of(self._store).query:
            return 0
        begun, cursor, now = 0, None, asyncio.get_running_loop().time()
        seen: set[str] = set()
        search = SagaFilter(saga_name=self.name, timeout_due_before=due_before)
        while True:
            page = await self._store.find(search, limit=_PAGE, cursor=cursor)
            for record in page.items:
                saga_id = record.state.metadata.saga_id
                seen.add(saga_id)
                if saga_id in self._firing or self._postponed.get(saga_id, (now, 0))[0] > now:
                    continue
                while len(self._firing) >= _PAGE:
                    await asyncio.wait(self._firing.values(), return_when=asyncio.FIRST_COMPLETED)
                    await asyncio.sleep(0)
                task = asyncio.create_task(self._fire(record.state, record.correlation_id))
                self._firing[saga_id] = task
                task.add_done_callback(partial(self._fired, saga_id))
                begun += 1
            cursor = page.cursor
            if cursor is None:
                for saga_id in self._postponed.keys() - seen:
                    del self._postponed[saga_id]
                return begun

    def _fired(self, saga_id: str, _task: asyncio.Task[None]) -> None:
        self._firing.pop(saga_id, None)

    async def _fire(self, state: Any, correlation_id: str) -> None:
        metadata: SagaMetadata = state.metadata
        due = metadata.timeout_expires_at
        if due is None:
            return
        trace = {TRACE_PARENT: metadata.trace_parent, TRACE_STATE: metadata.trace_state}
        envelope = Envelope(
            id=derived_id(self.name, metadata.saga_id, due.isoformat()),
            name=_TIMEOUT_NAME,
            body=b"{}",
            sent_at=due,
            headers={name: value for name, value in trace.items() if value is not None},
        )
        attempt = self._postponed.get(metadata.saga_id, (0.0, 0))[1] + 1
        handling = Handling(
            saga_name=self.name, endpoint=self.endpoint, envelope=envelope, attempt=attempt, kind="timeout"
        )
        handling.correlation_id = correlation_id
        handling.saga_id = metadata.saga_id
        ending = _Ending(_TimeoutDelivery(envelope, attempt))
        try:
            await self._surrounded(handling, ending, lambda: self._time_out(handling, state))
        except Exception:
            _LOGGER.exception("saga %s %s: its timeout failed", self.name, correlation_id)
            handling.outcome = "failed"
        if handling.outcome in ("failed", "dead-lettered"):
            # A timer is never lost: it stays in the store and is tried again, later each time.
            pause = self._definition.retry.longest_pause.total_seconds() * 2 ** min(attempt - 1, 5)
            self._postponed[metadata.saga_id] = (asyncio.get_running_loop().time() + pause, attempt)
        else:
            self._postponed.pop(metadata.saga_id, None)

    async def _time_out(self, handling: Handling, loaded: Any) -> None:
        failures = Failures(self._definition.retry)
        first = handling.attempt
        state: Any = loaded
        while True:
            handling.attempt = first + failures.count
            try:
                if state is None:
                    state = await self._store.get_by_id(self.name, handling.saga_id)
                outcome, ended = await self._time_out_once(handling, state)
            except Exception as error:
                state = None
                pause = failures.pause_after(error)
                handling.conflicts = failures.conflicts
                if pause is None:
                    handling.outcome = "failed"
                    handling.error = error
                    self._counts["timeouts-failed"] += 1
                    _LOGGER.exception(
                        "saga %s %s: its timeout failed and is tried again later", self.name, handling.correlation_id
                    )
                    return
                await self._pause(handling, error, pause)
            else:
                break
        handling.outcome = outcome
        if outcome == "handled":
            self._counts["timeouts"] += 1
        if ended is not None and self._deletes:
            await self._delete(ended)

    async def _time_out_once(self, handling: Handling, state: Any) -> tuple[Outcome, SagaMetadata | None]:
        if state is None:
            return "ignored", None
        before = metadata_of(state)
        if handling.envelope.id in before.handled:
            return await self._again(handling, before)
        due = before.timeout_expires_at
        if before.is_completed or due != handling.envelope.sent_at:
            return "ignored", None  # it ended, or its timeout was cleared or set anew
        ctx = SagaContext(handling, self._sender, is_new=False, has_timeouts=True)
        handler = self._timeout_handler
        if handler is None:
            return "ignored", None
        answer = await handler(state, ctx)
        after = await self._save(handling, ctx, self._chosen(state, answer), before, before)
        return "handled", after if after.is_completed else None


class _Ending:
    """Remembers whether a delivery was ended: it can be only once."""

    __slots__ = ("_delivery", "ended")

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self.ended = False

    async def ack(self) -> None:
        await self._delivery.ack()
        self.ended = True

    async def dead_letter(self, reason: str, details: dict[str, str]) -> None:
        await self._delivery.dead_letter(reason, details)
        self.ended = True


class _TimeoutDelivery:
    """A timeout has no broker behind it: its store keeps it until it is handled."""

    def __init__(self, envelope: Envelope, attempt: int) -> None:
        self.envelope = envelope
        self.attempt = attempt

    async def ack(self) -> None: ...

    async def retry(self, delay: timedelta) -> None: ...

    async def dead_letter(self, reason: str, details: Any) -> None: ...


def _reason(error: Exception) -> str:
    match error:
        case SagaMissingError():
            return "its saga is missing"
        case SagaCompletedError():
            return "its saga has ended"
        case ConfigurationError():
            return "it is used in a way that cannot work"
    return f"it failed: {type(error).__name__}"

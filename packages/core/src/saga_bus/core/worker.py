"""One saga at work: each delivery is decoded, tried as its policy says, and ended."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Protocol

from saga_bus.core.cycle import SagaCycle
from saga_bus.core.definition import Route, SagaDefinition
from saga_bus.core.envelope import Envelope
from saga_bus.core.errors import ConfigurationError, MessageDecodeError, SagaCompletedError, SagaMissingError
from saga_bus.core.handling import Handling, Middleware, Outcome
from saga_bus.core.messages import decode_message
from saga_bus.core.outbox import Outbox
from saga_bus.core.policies import Failures
from saga_bus.core.transport import Delivery
from saga_bus.store import SagaMetadata

__all__ = ["Ending", "SagaWorker"]

_LOGGER = logging.getLogger("saga_bus.core")
_LONGEST_TRACEBACK = 8000  # characters, of its end

Once = Callable[[], Awaitable[tuple[Outcome, SagaMetadata | None]]]


class Ends(Protocol):
    """What can be done with what is in hand; a `Delivery` is one."""

    async def ack(self) -> None:
        """It is done."""
        ...

    async def dead_letter(self, reason: str, details: Mapping[str, str]) -> None:
        """It is put aside."""
        ...


class Ending:
    """The end of what is in hand, remembered: it ends only once.

    Args:
        ends: What ends it.
    """

    __slots__ = ("_ends", "ended")

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self.ended = False

    async def ack(self) -> None:
        """It is done."""
        await self._ends.ack()
        self.ended = True

    async def dead_letter(self, reason: str, details: Mapping[str, str]) -> None:
        """It is put aside.

        Args:
            reason: One short sentence.
            details: What is known of the failure.
        """
        await self._ends.dead_letter(reason, details)
        self.ended = True


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
        self.cycle = SagaCycle(definition=definition, store=store, outbox=outbox, sender=sender)
        self._routes: dict[str, Route[Any]] = definition.use()
        self.message_names = tuple(self._routes)
        self._retry = definition.retry
        self._retry_missing = definition.on_missing == "retry"
        self._deletes = definition.completed == "delete"
        self._middleware = tuple(middleware)
        self._counts = counts
        self._in_hand: dict[asyncio.Timeout, None] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    async def settle(self) -> None:
        """Wait until no message is in hand."""
        await self._idle.wait()

    def give_back(self) -> None:
        """Give back the messages that are in hand, wherever their handling stands."""
        now = asyncio.get_running_loop().time()
        for scope in self._in_hand:
            scope.reschedule(now)

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
        ending = Ending(delivery)
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._in_hand[scope] = None
                self._idle.clear()
                await self.surround(handling, ending, partial(self._handle, handling, ending))
        except TimeoutError:
            if not scope.expired():
                raise
            if not ending.ended:
                await delivery.retry(timedelta(0))
        finally:
            self._in_hand.pop(scope, None)
            if not self._in_hand:
                self._idle.set()

    async def surround(self, handling: Handling, ending: Ending, handle: Callable[[], Awaitable[None]]) -> None:
        """Call the middleware around something.

        Args:
            handling: What the middleware sees.
            ending: What ends it.
            handle: What is surrounded.

        Raises:
            TransportError: It could not be ended.
        """
        if not self._middleware:
            await handle()
            return
        failures = Failures(self._retry)
        while True:
            try:
                await self._call(0, handling, handle)
            except Exception as error:
                if ending.ended:
                    _LOGGER.exception("saga %s: a middleware raised after the end of a message", self.name)
                    return
                if handling.outcome is not None:
                    raise  # the transport could not end the delivery
                pause = failures.pause_after(error)
                if pause is None:
                    await self._give_up(handling, ending, "a middleware raised", error, failures)
                    return
                await self._pause(handling, error, pause)
            else:
                if handling.outcome is None:
                    handling.outcome = "ignored"
                    self._counts["ignored"] += 1
                    _LOGGER.warning("saga %s: a middleware left out a %s", self.name, handling.envelope.name)
                    await ending.ack()
                return

    async def run(self, handling: Handling, ending: Ending, failures: Failures, once: Once) -> None:
        """Make attempts until one succeeds or the policy gives up.

        Args:
            handling: What is known of the message or the timeout.
            ending: What ends it.
            failures: The failures so far.
            once: One attempt.

        Raises:
            TransportError: It could not be ended.
        """
        first = handling.attempt
        while True:
            handling.attempt = first + failures.count
            try:
                outcome, ended = await once()
            except Exception as error:  # noqa: BLE001 - whatever it is, the policy decides
                pause = failures.pause_after(error)
                handling.conflicts = failures.conflicts
                if pause is None:
                    await self._give_up(handling, ending, _reason(error), error, failures)
                    return
                await self._pause(handling, error, pause)
            else:
                break
        handling.outcome = outcome
        self._counts["timeouts" if outcome == "handled" and handling.kind == "timeout" else outcome] += 1
        await ending.ack()
        if ended is not None and self._deletes:
            try:
                await self.outbox.delete(ended)
            except Exception as error:  # noqa: BLE001 - it is handled; recovery deletes what stays
                _LOGGER.warning("saga %s %s has ended and is not deleted yet: %s", self.name, ended.saga_id, error)

    async def _call(self, position: int, handling: Handling, handle: Callable[[], Awaitable[None]]) -> None:
        if position == len(self._middleware):
            await handle()
        else:
            await self._middleware[position](handling, partial(self._call, position + 1, handling, handle))

    async def _handle(self, handling: Handling, ending: Ending) -> None:
        failures = Failures(self._retry, retry_missing=self._retry_missing)
        try:
            route = self._route(handling.envelope)
            message = handling.message = decode_message(route.message_type, handling.envelope.body)
            handling.correlation_id = route.correlate(message)
        except MessageDecodeError as error:
            await self._give_up(handling, ending, "the message cannot be decoded", error, failures)
        except Exception as error:  # noqa: BLE001 - the user's correlation function
            await self._give_up(handling, ending, "the message does not say which saga it is for", error, failures)
        else:
            await self.run(handling, ending, failures, partial(self.cycle.handle, handling, route, message))

    def _route(self, envelope: Envelope) -> Route[Any]:
        route = self._routes.get(envelope.name)
        if route is None:
            raise MessageDecodeError(f"saga {self.name!r} handles no message named {envelope.name!r}")
        return route

    async def _pause(self, handling: Handling, error: Exception, pause: float) -> None:
        handling.retries += 1
        handling.error = error
        self._counts["retried"] += 1
        _LOGGER.debug("saga %s %s: tried again in %.3f s: %r", self.name, handling.correlation_id, pause, error)
        await asyncio.sleep(pause)

    async def _give_up(
        self, handling: Handling, ending: Ending, reason: str, error: Exception, failures: Failures
    ) -> None:
        handling.outcome = "dead-lettered" if handling.kind == "message" else "failed"
        handling.error = error
        _LOGGER.error(
            "saga %s %s: %s %s (%s) %s: %s: %s",
            self.name,
            handling.correlation_id,
            handling.kind,
            handling.envelope.id,
            handling.envelope.name,
            "goes to the dead letters" if handling.kind == "message" else "is tried again later",
            reason,
            error,
        )
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
        await ending.dead_letter(reason, details)
        self._counts[handling.outcome] += 1


def _reason(error: Exception) -> str:
    match error:
        case SagaMissingError():
            return "its saga is missing"
        case SagaCompletedError():
            return "its saga has ended"
        case ConfigurationError():
            return "the saga is used in a way that cannot work"
    return f"it failed: {type(error).__name__}"

"""What middleware sees: one message, or one timeout, on its way through one saga."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from saga_bus.core.envelope import TRACE_PARENT, TRACE_STATE, Envelope

__all__ = ["CallNext", "Handling", "Middleware", "Outcome"]

Outcome = Literal["handled", "duplicate", "ignored", "dead-lettered", "failed"]


class Handling:
    """One delivery of a message to a saga, or one timeout of it, from its arrival to its end.

    ``await call_next()`` returns when it has ended, however it ended: ``outcome`` tells.

    Attributes:
        kind: "message" or "timeout".
        saga_name: The saga's name.
        endpoint: The endpoint that it came to.
        envelope: The message; for a timeout one that the bus made.
        message: The decoded message; None for a timeout, and for what could not be decoded.
        correlation_id: What the message says about which saga it is for; None before that is known.
        saga_id: The saga's id; None before that is known.
        attempt: 1 at first; counts redeliveries and attempts here.
        redelivered: Whether the transport delivered it before, as far as it tells.
        conflicts: How often another worker was faster.
        retries: How often it was tried again, conflicts among them.
        saved: Whether an attempt here saved the saga, or may have.
        outcome: How it ended; None while it has not. "failed" is a timeout that is tried again later.
        error: The error that ended it, or that the last attempt met.
        outgoing_headers: Headers that every message sent by the handler gets; ``traceparent`` and ``tracestate``
            of the incoming message to begin with. A middleware may change them before ``call_next()``.
        started: When it arrived, in seconds of ``time.perf_counter()``.
    """

    __slots__ = (
        "attempt",
        "conflicts",
        "correlation_id",
        "endpoint",
        "envelope",
        "error",
        "kind",
        "message",
        "outcome",
        "outgoing_headers",
        "redelivered",
        "retries",
        "saga_id",
        "saga_name",
        "saved",
        "started",
    )

    def __init__(
        self,
        *,
        saga_name: str,
        endpoint: str,
        envelope: Envelope,
        attempt: int,
        kind: Literal["message", "timeout"] = "message",
    ) -> None:
        self.kind = kind
        self.saga_name = saga_name
        self.endpoint = endpoint
        self.envelope = envelope
        self.message: Any = None
        self.correlation_id: str | None = None
        self.saga_id: str | None = None
        self.attempt = attempt
        self.redelivered = attempt > 1
        self.conflicts = 0
        self.retries = 0
        self.saved = False
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        headers = envelope.headers
        self.outgoing_headers = {name: headers[name] for name in (TRACE_PARENT, TRACE_STATE) if name in headers}
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.perf_counter() - self.started


CallNext = Callable[[], Awaitable[None]]
Middleware = Callable[[Handling, CallNext], Awaitable[None]]

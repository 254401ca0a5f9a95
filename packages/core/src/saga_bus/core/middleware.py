"""The middleware that is built in: logging. OpenTelemetry is in `saga_bus.core.otel`."""

from __future__ import annotations

import logging

from saga_bus.core.handling import CallNext, Handling, Middleware

__all__ = ["log_messages"]

_LEVELS = {"dead-lettered": logging.ERROR, "failed": logging.ERROR, "duplicate": logging.INFO, "ignored": logging.INFO}


def log_messages(logger: logging.Logger | None = None, *, level: int = logging.INFO) -> Middleware:
    """Make a middleware that writes one line for each message and timeout when it has ended.

    The line names the message, the saga, how it ended, the attempts and the milliseconds; never the message's
    fields. The same stands in the record's ``extra`` fields.

    Args:
        logger: Where to; ``saga_bus.core.messages`` when left out.
        level: The level of what went well; dead letters and failures are errors.
    """
    target = logging.getLogger("saga_bus.core.messages") if logger is None else logger

    async def log(handling: Handling, call_next: CallNext) -> None:
        await call_next()
        outcome = handling.outcome or "ignored"
        chosen = max(level, _LEVELS.get(outcome, level))
        if not target.isEnabledFor(chosen):
            return
        milliseconds = round(handling.seconds * 1000, 3)
        target.log(
            chosen,
            "%s %s: %s %s, %s after %d attempts, %.3f ms",
            handling.saga_name,
            handling.correlation_id,
            handling.envelope.name,
            handling.envelope.id,
            outcome,
            handling.retries + 1,
            milliseconds,
            extra={
                "saga_name": handling.saga_name,
                "saga_id": handling.saga_id,
                "correlation_id": handling.correlation_id,
                "message_id": handling.envelope.id,
                "message_name": handling.envelope.name,
                "outcome": outcome,
                "attempts": handling.retries + 1,
                "conflicts": handling.conflicts,
                "milliseconds": milliseconds,
            },
        )

    return log

"""OpenTelemetry around the handling of messages: traces that go on from message to message, and metrics.

Needs the extra ``saga-bus-core[otel]``, which is the API alone: without an SDK that the application sets up, nothing
is recorded, and the trace headers of incoming messages are passed on as they are.

Names follow OpenTelemetry's conventions for messaging (https://opentelemetry.io/docs/specs/semconv/messaging/) where
they have one; what is our own begins with ``saga_bus``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version

from opentelemetry import metrics, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from saga_bus.core.envelope import TRACE_PARENT, TRACE_STATE
from saga_bus.core.handling import CallNext, Handling, Middleware

__all__ = ["current_trace_headers", "observe_messages"]

_SCOPE = "saga_bus.core"
_PROPAGATOR = TraceContextTextMapPropagator()
_UNENDED = "unended"  # the broker could not be told how it ended
_FAILED = frozenset({"dead-lettered", "failed", _UNENDED})


def current_trace_headers() -> Mapping[str, str]:
    """The trace context of the running code as headers, for ``create_bus(outgoing_headers=current_trace_headers)``.

    Returns:
        ``traceparent``, and ``tracestate`` where there is one; nothing outside of any span.
    """
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers)
    return headers


def observe_messages(
    *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> Middleware:
    """Make a middleware that records a span and metrics for each message and each timeout.

    A message's span is a child of the span that its headers name; what its handler sends carries the new span on. A
    timeout may come long after the message that set it: its span begins a trace of its own, with a link to that one.

    Metrics: the counters ``saga_bus.messages.handled``, ``saga_bus.messages.retried`` (every new attempt, conflicts
    among them), ``saga_bus.messages.conflicted`` and ``saga_bus.messages.dead_lettered``, and the histogram
    ``saga_bus.message.duration`` in seconds, which has the outcome as an attribute.

    Args:
        tracer_provider: Instead of the global one.
        meter_provider: Instead of the global one.
    """
    observer = _Observer(tracer_provider, meter_provider)
    return observer.observe


class _Observer:
    """One tracer and its instruments."""

    def __init__(self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        own = version("saga-bus-core")
        self._tracer = trace.get_tracer(_SCOPE, own, tracer_provider)
        meter = metrics.get_meter(_SCOPE, own, meter_provider)
        self._handled = meter.create_counter(
            "saga_bus.messages.handled", unit="{message}", description="Messages and timeouts that changed a saga"
        )
        self._retried = meter.create_counter(
            "saga_bus.messages.retried", unit="{attempt}", description="New attempts after a failure or a conflict"
        )
        self._conflicted = meter.create_counter(
            "saga_bus.messages.conflicted",
            unit="{attempt}",
            description="New attempts because another worker was faster",
        )
        self._dead_lettered = meter.create_counter(
            "saga_bus.messages.dead_lettered", unit="{message}", description="Messages that went to the dead letters"
        )
        self._duration = meter.create_histogram(
            "saga_bus.message.duration", unit="s", description="From the arrival of a message to its end"
        )

    async def observe(self, handling: Handling, call_next: CallNext) -> None:
        retries, conflicts = handling.retries, handling.conflicts
        with self._begin(handling) as span:
            if span.get_span_context().is_valid:
                handling.outgoing_headers.pop(TRACE_PARENT, None)
                handling.outgoing_headers.pop(TRACE_STATE, None)
                _PROPAGATOR.inject(handling.outgoing_headers)
            try:
                await call_next()
            except Exception as error:
                if handling.outcome is None:
                    handling.error = error
                raise
            finally:
                self._count(handling, handling.retries - retries, handling.conflicts - conflicts)
                _end(handling, span)

    def _begin(self, handling: Handling) -> AbstractContextManager[Span]:
        incoming = _PROPAGATOR.extract(handling.envelope.headers)
        before = trace.get_current_span(incoming).get_span_context()
        is_timeout = handling.kind == "timeout"
        return self._tracer.start_as_current_span(
            "timeout" if is_timeout else f"process {handling.envelope.name}",
            context=trace.set_span_in_context(trace.INVALID_SPAN) if is_timeout else incoming,
            kind=SpanKind.INTERNAL if is_timeout else SpanKind.CONSUMER,
            links=[Link(before)] if is_timeout and before.is_valid else None,
            attributes={
                "messaging.system": "saga-bus",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": handling.endpoint,
                "messaging.message.id": handling.envelope.id,
                "saga_bus.saga.name": handling.saga_name,
                "saga_bus.message.name": handling.envelope.name,
                "saga_bus.message.attempt": handling.attempt,
            },
            record_exception=False,  # `_end` does, also for an error that ended in the dead letters
            set_status_on_exception=False,
        )

    def _count(self, handling: Handling, retries: int, conflicts: int) -> None:
        known = handling.kind == "timeout" or handling.message is not None
        labels = {
            "saga_bus.saga.name": handling.saga_name,
            # A name that nobody here knows came from outside: as a label it could be one of endlessly many.
            "saga_bus.message.name": handling.envelope.name if known else "unknown",
        }
        outcome = handling.outcome or _UNENDED
        if outcome == "handled":
            self._handled.add(1, labels)
        if outcome == "dead-lettered":
            self._dead_lettered.add(1, labels)
        if retries:
            self._retried.add(retries, labels)
        if conflicts:
            self._conflicted.add(conflicts, labels)
        self._duration.record(handling.seconds, {**labels, "saga_bus.outcome": outcome})


def _end(handling: Handling, span: Span) -> None:
    outcome, error = handling.outcome or _UNENDED, handling.error
    span.set_attributes(
        {
            "messaging.message.conversation_id": handling.correlation_id or "",
            "saga_bus.saga.id": handling.saga_id or "",
            "saga_bus.outcome": outcome,
            "saga_bus.retries": handling.retries,
            "saga_bus.conflicts": handling.conflicts,
        }
    )
    if outcome in _FAILED:
        span.set_status(Status(StatusCode.ERROR, outcome if error is None else f"{outcome}: {error}"))
        if error is not None:
            span.set_attribute("error.type", type(error).__qualname__)
            span.record_exception(error)

"""Traces and metrics, as an application's SDK gets them."""

import asyncio
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from saga_bus.core import (
    Envelope,
    InMemoryTransport,
    PermanentError,
    RetryPolicy,
    SagaContext,
    SagaDefinition,
    create_bus,
)
from saga_bus.core.otel import current_trace_headers, observe_messages
from saga_bus.store import ConcurrencyError, SagaState
from saga_bus.store_inmemory import InMemorySagaStore

INCOMING = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID, SPAN_ID = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331


class Placed(msgspec.Struct):
    order_id: str
    do: str = ""


class Paid(msgspec.Struct):
    order_id: str


class OrderState(SagaState, kw_only=True):
    order_id: str = ""


def saga():
    orders = SagaDefinition("OrderSaga", OrderState, correlate="order_id", retry=RetryPolicy(first_pause=timedelta(0)))
    attempts = []

    @orders.starts(Placed)
    async def place(message: Placed, state: OrderState, ctx: SagaContext) -> None:
        attempts.append(message.do)
        match message.do:
            case "fail":
                raise PermanentError("it cannot be done")
            case "fail once" if len(attempts) == 1:
                raise LookupError("not yet")
            case "wait":
                ctx.set_timeout(timedelta(hours=1))
                return
        ctx.publish(Paid(order_id=message.order_id))

    @orders.continues(Paid)
    async def pay(message: Paid, state: OrderState, ctx: SagaContext) -> None:
        ctx.complete()

    @orders.on_timeout
    async def give_up(state: OrderState, ctx: SagaContext) -> None:
        ctx.complete()

    return orders


class ContestedStore(InMemorySagaStore):
    """Loses the first race for each saga whose correlation id says so."""

    async def insert(self, saga_name, correlation_id, state):
        if correlation_id == "contested" and not self.has_lost:
            self.has_lost = True
            raise ConcurrencyError(saga_name=saga_name, saga_id=state.metadata.saga_id)
        await super().insert(saga_name, correlation_id, state)

    has_lost = False


class Observed:
    """A bus with the middleware, and what an SDK recorded of it."""

    def __init__(self):
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

    def run(self, *messages, headers=None, then=None):
        self.transport = InMemoryTransport()

        async def work():
            middleware = observe_messages(tracer_provider=self.tracers, meter_provider=self.meters)
            async with create_bus(
                transport=self.transport,
                store=ContestedStore(),
                sagas=[saga()],
                middleware=[middleware],
                outgoing_headers=current_trace_headers,
            ) as bus:
                for message in messages:
                    await bus.publish(message, headers=headers)
                    await self.transport.drain()
                if then is not None:
                    await then(bus)

        asyncio.run(work())
        return self

    def spans(self, name):
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def metrics(self):
        """Each metric's points: the labels without the saga's name, and the value or the count."""
        found = {}
        data = self.reader.get_metrics_data()
        for metric in data.resource_metrics[0].scope_metrics[0].metrics:
            for point in metric.data.data_points:
                labels = {name.removeprefix("saga_bus."): value for name, value in point.attributes.items()}
                assert labels.pop("saga.name") == "OrderSaga"
                value = point.count if hasattr(point, "count") else point.value
                found[metric.name, labels["message.name"], labels.get("outcome")] = value
        return found


def test_a_trace_goes_on_from_message_to_message():
    observed = Observed().run(Placed("1"), headers={"traceparent": INCOMING, "tracestate": "vendor=1"})
    (placed,), (paid,) = observed.spans("process Placed"), observed.spans("process Paid")
    assert (placed.context.trace_id, placed.parent.span_id) == (TRACE_ID, SPAN_ID)
    assert placed.parent.is_remote
    assert (paid.context.trace_id, paid.parent.span_id) == (TRACE_ID, placed.context.span_id)
    assert paid.context.trace_state.get("vendor") == "1"
    assert placed.kind is SpanKind.CONSUMER
    assert placed.status.status_code is StatusCode.UNSET
    attributes = dict(placed.attributes)
    assert attributes.pop("messaging.message.id")
    assert attributes.pop("saga_bus.saga.id")
    assert attributes == {
        "messaging.system": "saga-bus",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "OrderSaga",
        "messaging.message.conversation_id": "1",
        "saga_bus.saga.name": "OrderSaga",
        "saga_bus.message.name": "Placed",
        "saga_bus.message.attempt": 1,
        "saga_bus.outcome": "handled",
        "saga_bus.retries": 0,
        "saga_bus.conflicts": 0,
    }


def test_a_message_without_a_trace_begins_one_and_the_running_span_is_taken_along():
    observed = Observed().run(Placed("1"))
    assert observed.spans("process Placed")[0].parent is None
    with observed.tracers.get_tracer("application").start_as_current_span("request") as request:
        observed.run(Placed("2"))
    assert observed.spans("process Placed")[1].parent.span_id == request.get_span_context().span_id


def test_a_timeout_begins_a_trace_with_a_link_to_the_one_that_set_it():
    async def later(bus):
        await bus.deliver_due(datetime.now(UTC) + timedelta(hours=2))

    observed = Observed().run(Placed("1", "wait"), headers={"traceparent": INCOMING}, then=later)
    (timeout,) = observed.spans("timeout")
    assert timeout.parent is None
    assert timeout.context.trace_id != TRACE_ID
    assert [(link.context.trace_id, link.context.span_id) for link in timeout.links] == [(TRACE_ID, SPAN_ID)]
    assert observed.metrics()["saga_bus.messages.handled", "saga-bus.timeout", None] == 1


def test_metrics_of_what_went_well():
    found = Observed().run(Placed("1"), Placed("2")).metrics()
    assert found == {
        ("saga_bus.messages.handled", "Placed", None): 2,
        ("saga_bus.messages.handled", "Paid", None): 2,
        ("saga_bus.message.duration", "Placed", "handled"): 2,
        ("saga_bus.message.duration", "Paid", "handled"): 2,
    }


@pytest.mark.parametrize(("message", "conflicts"), [(Placed("1", "fail once"), 0), (Placed("contested"), 1)])
def test_metrics_of_a_retry_and_of_a_conflict(message, conflicts):
    observed = Observed().run(message)
    found = observed.metrics()
    assert found["saga_bus.messages.retried", "Placed", None] == 1
    assert found.get(("saga_bus.messages.conflicted", "Placed", None), 0) == conflicts
    assert found["saga_bus.messages.handled", "Placed", None] == 1
    (span,) = observed.spans("process Placed")
    assert (span.attributes["saga_bus.retries"], span.attributes["saga_bus.conflicts"]) == (1, conflicts)
    assert span.status.status_code is StatusCode.UNSET
    # The message that the second attempt published belongs to the one span of both.
    assert observed.spans("process Paid")[0].parent.span_id == span.context.span_id


def test_a_dead_letter_is_an_error_with_its_cause():
    observed = Observed().run(Placed("1", "fail"))
    (span,) = observed.spans("process Placed")
    assert span.status.status_code is StatusCode.ERROR
    assert "it cannot be done" in span.status.description
    assert span.attributes["error.type"] == "PermanentError"
    assert [event.name for event in span.events] == ["exception"]
    found = observed.metrics()
    assert found["saga_bus.messages.dead_lettered", "Placed", None] == 1
    assert found["saga_bus.message.duration", "Placed", "dead-lettered"] == 1
    assert ("saga_bus.messages.handled", "Placed", None) not in found


def test_a_name_from_outside_is_no_label():
    async def intrude(bus):
        envelope = Envelope(id="1", name="Made up", body=b"{}", sent_at=datetime.now(UTC))
        await observed.transport.send("OrderSaga", envelope)
        await observed.transport.drain()

    observed = Observed()
    observed.run(then=intrude)
    assert observed.metrics()["saga_bus.messages.dead_lettered", "unknown", None] == 1


def test_without_an_sdk_the_incoming_trace_is_passed_on():
    seen = []

    async def work():
        transport = InMemoryTransport()

        async def note(delivery):
            seen.append(delivery.envelope.headers.get("traceparent"))
            await delivery.ack()

        nothing = trace.NoOpTracerProvider()
        async with create_bus(
            transport=transport,
            store=InMemorySagaStore(),
            sagas=[saga()],
            middleware=[observe_messages(tracer_provider=nothing)],
            outgoing_headers=current_trace_headers,
        ) as bus:
            await transport.listen("Watcher", ["Paid"], note, concurrency=1)
            await bus.publish(Placed("1"), headers={"traceparent": INCOMING})
            await transport.drain()

    asyncio.run(work())
    assert seen == [INCOMING]

"""The message bus: saga definitions, and the runtime that drives them on a store and a transport."""

from saga_bus.core.bus import Bus, create_bus
from saga_bus.core.configuration import Intervals, Owned, SagaRegistration
from saga_bus.core.context import MessageContext, SagaContext
from saga_bus.core.definition import SagaDefinition
from saga_bus.core.envelope import Envelope
from saga_bus.core.errors import (
    BusStoppedError,
    ConfigurationError,
    CorrelationError,
    MessageDecodeError,
    MessageEncodeError,
    MessageError,
    PermanentError,
    SagaBusError,
    SagaCompletedError,
    SagaMissingError,
    TransportClosedError,
    TransportError,
    TransportUnavailableError,
)
from saga_bus.core.handling import CallNext, Handling, Middleware, Outcome
from saga_bus.core.inmemory import DeadLetter, InMemoryTransport
from saga_bus.core.messages import message_name
from saga_bus.core.middleware import log_messages
from saga_bus.core.policies import CompletedPolicy, OnCompleted, OnMissing, RetryPolicy
from saga_bus.core.transport import Delivery, Receiver, Transport

__all__ = [
    "Bus",
    "BusStoppedError",
    "CallNext",
    "CompletedPolicy",
    "ConfigurationError",
    "CorrelationError",
    "DeadLetter",
    "Delivery",
    "Envelope",
    "Handling",
    "InMemoryTransport",
    "Intervals",
    "MessageContext",
    "MessageDecodeError",
    "MessageEncodeError",
    "MessageError",
    "Middleware",
    "OnCompleted",
    "OnMissing",
    "Outcome",
    "Owned",
    "PermanentError",
    "Receiver",
    "RetryPolicy",
    "SagaBusError",
    "SagaCompletedError",
    "SagaContext",
    "SagaDefinition",
    "SagaMissingError",
    "SagaRegistration",
    "Transport",
    "TransportClosedError",
    "TransportError",
    "TransportUnavailableError",
    "create_bus",
    "log_messages",
    "message_name",
]

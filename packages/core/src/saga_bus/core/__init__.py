"""The message bus: saga definitions, and the runtime that drives them on a store and a transport."""

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
from saga_bus.core.transport import Delivery, Receiver, Transport

__all__ = [
    "BusStoppedError",
    "ConfigurationError",
    "CorrelationError",
    "Delivery",
    "Envelope",
    "MessageDecodeError",
    "MessageEncodeError",
    "MessageError",
    "PermanentError",
    "Receiver",
    "SagaBusError",
    "SagaCompletedError",
    "SagaMissingError",
    "Transport",
    "TransportClosedError",
    "TransportError",
    "TransportUnavailableError",
]

"""The bus's own errors; those of stores are in `saga_bus.store`.

::

    SagaBusError
    ├─ ConfigurationError             a definition or a bus that cannot work; also a ValueError
    ├─ BusStoppedError                the bus is not running (any more)
    ├─ MessageError
    │  ├─ MessageEncodeError
    │  ├─ MessageDecodeError
    │  └─ CorrelationError            the message does not say which saga it is for
    ├─ SagaMissingError               no saga for a message that does not start one
    ├─ SagaCompletedError             the saga of the message has ended
    ├─ PermanentError                 raised by handlers: do not try again
    └─ TransportError
       ├─ TransportUnavailableError   retryable
       └─ TransportClosedError

``retryable`` says whether trying again may help. `PermanentError` is for handlers: it sends the message to the dead
letters at once.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BusStoppedError",
    "ConfigurationError",
    "CorrelationError",
    "MessageDecodeError",
    "MessageEncodeError",
    "MessageError",
    "PermanentError",
    "SagaBusError",
    "SagaCompletedError",
    "SagaMissingError",
    "TransportClosedError",
    "TransportError",
    "TransportUnavailableError",
]


class SagaBusError(Exception):
    """The root of the bus's own errors."""

    retryable: ClassVar[bool] = False


class ConfigurationError(SagaBusError, ValueError):
    """A saga definition or a bus that cannot work as it is written; raised when it is made."""


class BusStoppedError(SagaBusError):
    """The bus was not started yet, or is stopped."""


class MessageError(SagaBusError):
    """A message that cannot be sent or understood."""


class MessageEncodeError(MessageError):
    """A message could not be turned into JSON that reads back as the same type."""


class MessageDecodeError(MessageError):
    """A body does not fit the type that the message's name stands for, or the name is unknown."""


class CorrelationError(MessageError):
    """A message does not say which saga it is for."""


class SagaMissingError(SagaBusError):
    """There is no saga for a message that does not start one."""


class SagaCompletedError(SagaBusError):
    """The saga of a message has ended."""


class PermanentError(SagaBusError):
    """Raised by a handler when trying again cannot help: the message goes to the dead letters at once."""


class TransportError(SagaBusError):
    """The root of every error that a transport raises."""


class TransportUnavailableError(TransportError):
    """The broker could not be reached or did not confirm; it may have the message all the same."""

    retryable = True


class TransportClosedError(TransportError):
    """The transport was used after ``close()``, or before ``start()``."""

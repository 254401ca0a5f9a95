"""What a handler gets beside the message and the state."""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from datetime import timedelta
from typing import Any

from saga_bus.core.errors import ConfigurationError, PermanentError
from saga_bus.core.handling import Handling
from saga_bus.core.outgoing import Outgoing, check_delay, check_endpoint, check_headers, derived_id

__all__ = ["MessageContext", "SagaContext"]

_LOGGER = logging.getLogger("saga_bus.core.handlers")


class _SagaLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds which saga and which message it was to every record, as fields and in front of the text."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        extra: Mapping[str, object] = self.extra or {}
        kwargs["extra"] = {**extra, **(kwargs.get("extra") or {})}
        return f"{extra['saga_name']} {extra['correlation_id']}: {msg}", kwargs


class MessageContext:
    """What is known of a message in hand, and how to send others.

    What is published, sent or scheduled here leaves after the handler has returned and its state is saved; a
    handler that raises sends nothing.
    """

    __slots__ = ("_handling", "_logger", "_sealed", "_sender", "outgoing")

    def __init__(self, handling: Handling, sender: str) -> None:
        self._handling = handling
        self._sender = sender
        self._sealed = False
        self._logger: logging.LoggerAdapter[logging.Logger] | None = None
        self.outgoing: list[Outgoing] = []  # for the bus, and for unit tests of handlers

    @property
    def saga_name(self) -> str:
        """The saga's name."""
        return self._handling.saga_name

    @property
    def correlation_id(self) -> str:
        """What says which saga the message is for."""
        return self._handling.correlation_id or ""

    @property
    def message_id(self) -> str:
        """The message's id, the same however often it is delivered."""
        return self._handling.envelope.id

    @property
    def headers(self) -> Mapping[str, str]:
        """The message's headers."""
        return self._handling.envelope.headers

    @property
    def attempt(self) -> int:
        """1 at first; more when the message is delivered again or tried again."""
        return self._handling.attempt

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that says which saga and which message it was."""
        if self._logger is None:
            handling = self._handling
            self._logger = _SagaLogger(
                _LOGGER,
                {
                    "saga_name": handling.saga_name,
                    "saga_id": handling.saga_id,
                    "correlation_id": handling.correlation_id,
                    "message_id": handling.envelope.id,
                    "message_name": handling.envelope.name,
                    "attempt": handling.attempt,
                },
            )
        return self._logger

    def publish(self, message: Any, *, headers: Mapping[str, str] | None = None) -> None:
        """Give a copy to every saga and service that listens to the message's type.

        Args:
            message: An object of a message type.
            headers: Headers of your own.

        Raises:
            MessageEncodeError: It cannot be encoded.
        """
        self._add(message, headers)

    def send(self, endpoint: str, message: Any, *, headers: Mapping[str, str] | None = None) -> None:
        """Give a message to one endpoint.

        Args:
            endpoint: The endpoint's name.
            message: An object of a message type.
            headers: Headers of your own.

        Raises:
            MessageEncodeError: It cannot be encoded.
        """
        self._add(message, headers, to=check_endpoint(endpoint))

    def schedule(
        self,
        message: Any,
        delay: timedelta,
        *,
        endpoint: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Publish a message later, or send it to one endpoint later. It is durable, and cannot be taken back.

        Args:
            message: An object of a message type.
            delay: How long it waits, from now on.
            endpoint: The endpoint that it is for; None to publish it.
            headers: Headers of your own.

        Raises:
            MessageEncodeError: It cannot be encoded.
        """
        to = None if endpoint is None else check_endpoint(endpoint)
        self._add(message, headers, to=to, delay=check_delay(delay))

    def seal(self) -> None:
        """Refuse any further use, as the bus does when the handler has returned: it would be lost."""
        self._sealed = True

    def _refuse_late_use(self) -> None:
        if self._sealed:
            raise PermanentError("the context was used after its handler had returned: that would be lost")

    def _add(
        self,
        message: Any,
        headers: Mapping[str, str] | None,
        *,
        to: str | None = None,
        delay: timedelta | None = None,
    ) -> None:
        self._refuse_late_use()
        handling = self._handling
        carried = dict(handling.outgoing_headers)
        carried["saga-name"] = handling.saga_name
        if handling.saga_id is not None:
            carried["saga-id"] = handling.saga_id
        carried["caused-by"] = handling.envelope.id
        if headers:
            check_headers(headers)
            carried.update(headers)
        # Derived, so that a handler that runs again makes the same messages again.
        number = str(len(self.outgoing))
        own = derived_id(handling.saga_name, handling.correlation_id or "", handling.envelope.id, number)
        self.outgoing.append(Outgoing.of(message, id=own, headers=carried, by=self._sender, to=to, delay=delay))


class SagaContext(MessageContext):
    """What a saga's handler gets beside the message and the state."""

    __slots__ = ("_has_timeouts", "completed", "is_new", "timeout", "timeout_changed")

    def __init__(self, handling: Handling, sender: str, *, is_new: bool, has_timeouts: bool) -> None:
        super().__init__(handling, sender)
        self.is_new = is_new  # whether the message starts the saga
        self.completed = False
        self.timeout: timedelta | None = None  # with timeout_changed, what the handler set
        self.timeout_changed = False
        self._has_timeouts = has_timeouts

    @property
    def saga_id(self) -> str:
        """The saga's id."""
        return self._handling.saga_id or ""

    def complete(self) -> None:
        """End the saga with this message; its timeout is cleared, and its policy says what becomes of it."""
        self._refuse_late_use()
        self.completed = True

    def set_timeout(self, after: timedelta) -> None:
        """Have ``on_timeout`` called unless the saga goes on before; replaces the timeout that was set.

        Args:
            after: How long from the moment at which the state is saved.

        Raises:
            ConfigurationError: The definition has no ``on_timeout``, or this is no positive timedelta.
        """
        self._refuse_late_use()
        if not self._has_timeouts:
            raise ConfigurationError(f"saga {self.saga_name!r} sets a timeout and has no on_timeout handler")
        if check_delay(after) == timedelta(0):
            raise ConfigurationError("a timeout is a positive timedelta")
        self.timeout, self.timeout_changed = after, True

    def clear_timeout(self) -> None:
        """Take back the timeout that was set."""
        self._refuse_late_use()
        self.timeout, self.timeout_changed = None, True

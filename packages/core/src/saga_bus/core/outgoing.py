"""One outgoing message, as it stands in a saga's outbox until it is confirmed sent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

import msgspec

from saga_bus.core.envelope import Envelope
from saga_bus.core.errors import ConfigurationError, MessageEncodeError
from saga_bus.core.messages import encode_message, message_name

__all__ = ["Outgoing", "check_delay", "check_endpoint", "check_headers", "derived_id"]

_ID_BYTES = 16


class Outgoing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message to be sent; saved with the state that it belongs to, so that a resend is the same message.

    Args:
        id: Its id, fixed from the start.
        name: The name of its type.
        body: The encoded message, JSON.
        at: When it was made, aware.
        by: The worker that is to send it first; others do so when it did not.
        headers: Its headers.
        to: The endpoint that it is for; None to publish it.
        due: When it is to be sent, aware; None at once.
    """

    id: str
    name: str
    body: str
    at: datetime
    by: str = ""
    headers: dict[str, str] = {}  # msgspec copies an empty dict for each instance
    to: str | None = None
    due: datetime | None = None

    @classmethod
    def of(
        cls,
        message: Any,
        *,
        id: str,  # noqa: A002 - the field's name
        headers: dict[str, str],
        by: str = "",
        to: str | None = None,
        delay: timedelta | None = None,
    ) -> Outgoing:
        """Encode a message.

        Args:
            message: An object of a message type.
            id: Its id.
            headers: Its headers.
            by: The worker that sends it.
            to: The endpoint that it is for; None to publish it.
            delay: How long it waits.

        Raises:
            MessageEncodeError: It cannot be encoded.
        """
        now = datetime.now(UTC)
        try:
            due = None if delay is None else now + delay
        except OverflowError as error:
            raise MessageEncodeError(f"a delay of {delay} ends after the year 9999") from error
        name = message_name(type(message))
        body = encode_message(message).decode()
        return cls(id=id, name=name, body=body, at=now, by=by, headers=headers, to=to, due=due)

    def entry(self) -> dict[str, Any]:
        """What stands in the outbox of the saga's metadata."""
        entry: dict[str, Any] = msgspec.to_builtins(self)
        return entry

    @classmethod
    def read(cls, entry: dict[str, Any]) -> Outgoing:
        """Read an entry of an outbox back.

        Args:
            entry: What `entry` made.

        Raises:
            ValueError: It is something else (`msgspec.ValidationError`).
        """
        return msgspec.convert(entry, cls)

    def envelope(self) -> Envelope:
        """The message as a transport takes it."""
        return Envelope(id=self.id, name=self.name, body=self.body.encode(), sent_at=self.at, headers=self.headers)


def derived_id(*parts: str) -> str:
    """The id of a message that follows from others: the same parts give the same id.

    Args:
        *parts: What makes it the one it is.
    """
    return blake2b("\0".join(parts).encode(), digest_size=_ID_BYTES).hexdigest()


def check_delay(delay: timedelta) -> timedelta:
    """Refuse what is no delay.

    Args:
        delay: At least zero.

    Raises:
        ConfigurationError: It is something else.
    """
    if not isinstance(delay, timedelta) or delay < timedelta(0):
        raise ConfigurationError(f"a delay is a timedelta of at least zero, not {delay!r}")
    return delay


def check_endpoint(endpoint: str) -> str:
    """Refuse what is no name of an endpoint.

    Args:
        endpoint: 1 to 128 printable characters.

    Raises:
        ConfigurationError: It is something else.
    """
    if not isinstance(endpoint, str) or not 0 < len(endpoint) <= 128 or not endpoint.isprintable():
        raise ConfigurationError(f"an endpoint's name has 1 to 128 printable characters, not {endpoint!r}")
    return endpoint


def check_headers(headers: Any) -> None:
    """Refuse headers that a broker or a document could not carry.

    Args:
        headers: Texts by name; names are not empty, and none holds a NUL character.

    Raises:
        ConfigurationError: They are something else.
    """
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str) or not name or "\0" in name or "\0" in value:
            raise ConfigurationError(f"headers are texts by name, without NUL characters; not {name!r}")

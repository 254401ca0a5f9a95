"""An envelope as what every broker carries: bytes, and headers of plain text.

The body is the message's own JSON. What is beside it stands in one header, ``saga-bus``, as JSON in ASCII, since
brokers disagree about what else a header may hold. The trace headers are there under their own names too, so that
other tools see them; they are read from ``saga-bus`` alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from saga_bus.core import Envelope
from saga_bus.core.envelope import TRACE_PARENT, TRACE_STATE

__all__ = ["ATTEMPT", "DEAD", "ENVELOPE", "NoEnvelopeError", "dead_note", "pack", "plain_headers", "unpack"]

ENVELOPE = "saga-bus"
ATTEMPT = "saga-bus-attempt"
DEAD = "saga-bus-dead"

# A broker limits what all headers hold together (RabbitMQ to one frame of 128 KiB): a traceback must not pass that.
_LONGEST_DETAIL = 8_000
_MOST_DETAILS = 32_000


class NoEnvelopeError(Exception):
    """What arrived is no envelope; the message says why."""


class _Beside(msgspec.Struct, kw_only=True):
    """What the header ``saga-bus`` holds."""

    id: str
    name: str
    sent_at: datetime
    headers: dict[str, str] = {}


def pack(envelope: Envelope) -> dict[str, str]:
    """The headers that an envelope's body travels with.

    Args:
        envelope: The message.
    """
    beside = {
        "id": envelope.id,
        "name": envelope.name,
        "sent_at": envelope.sent_at.astimezone(UTC).isoformat(),
        "headers": envelope.headers,
    }
    headers = {ENVELOPE: json.dumps(beside, separators=(",", ":"))}
    for name in (TRACE_PARENT, TRACE_STATE):
        value = envelope.headers.get(name)
        if value and value.isascii() and value.isprintable():
            headers[name] = value
    return headers


def unpack(body: bytes, headers: Mapping[str, str]) -> Envelope:
    """The envelope that arrived.

    Args:
        body: The bytes.
        headers: The headers that are text.

    Raises:
        NoEnvelopeError: It is none.
    """
    written = headers.get(ENVELOPE)
    if written is None:
        raise NoEnvelopeError(f"no envelope: there is no header {ENVELOPE!r}")
    try:
        beside = msgspec.json.decode(written, type=_Beside)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise NoEnvelopeError(f"no envelope: the header {ENVELOPE!r} cannot be read: {error}") from error
    if beside.sent_at.tzinfo is None:
        raise NoEnvelopeError(f"no envelope: sent_at of the header {ENVELOPE!r} has no time zone")
    return Envelope(id=beside.id, name=beside.name, body=body, sent_at=beside.sent_at, headers=beside.headers)


def dead_note(endpoint: str, attempt: int, reason: str, details: Mapping[str, str]) -> str:
    """What the header ``saga-bus-dead`` of a dead letter holds, as JSON in ASCII.

    Args:
        endpoint: Where the message was in hand.
        attempt: How many times it was delivered.
        reason: One short sentence.
        details: What is known of the failure; what is very long is cut.
    """
    left = _MOST_DETAILS
    kept: dict[str, str] = {}
    for name, value in details.items():
        kept[name] = value[: min(_LONGEST_DETAIL, left)]
        left -= len(kept[name])
    note = {
        "endpoint": endpoint,
        "reason": reason[:_LONGEST_DETAIL],
        "attempt": attempt,
        "dead_at": datetime.now(UTC).isoformat(),
        "details": kept,
    }
    return json.dumps(note, separators=(",", ":"))


def plain_headers(headers: Mapping[str, object]) -> dict[str, str]:
    """The headers that are text, of whatever a broker delivers.

    Args:
        headers: Names and values.
    """
    plain: dict[str, str] = {}
    for name, value in headers.items():
        if isinstance(value, bytes):
            plain[name] = value.decode("utf-8", "replace")
        elif isinstance(value, str):
            plain[name] = value
    return plain

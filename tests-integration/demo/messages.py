"""What coordinator and worker say to each other: one JSON object a line, over the worker's stdin and stdout."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from demo.states import Event
from saga_bus.core import Envelope, message_name

__all__ = ["Acknowledged", "Answer", "Counted", "Failed", "Ready", "decode_answer", "encode_line", "envelope_of"]


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker's bus is running."""


class Acknowledged(msgspec.Struct, frozen=True, tag=True):
    """An event is in the stored state, and may be forgotten by whoever sent it.

    Args:
        event_id: The event.
    """

    event_id: str


class Counted(msgspec.Struct, frozen=True, tag=True):
    """How the handling of an event went; follows its acknowledgement.

    Args:
        conflicts: How often somebody else was faster and the event was tried again.
        unavailable: How often the store was too busy and the event was tried again.
        repeated: Whether the state had the event already, so that nothing was written.
    """

    conflicts: int
    unavailable: int
    repeated: bool


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The worker gives up.

    Args:
        reason: What happened.
    """

    reason: str


Answer = Ready | Acknowledged | Counted | Failed

_encoder = msgspec.json.Encoder()
_answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


def envelope_of(event: Event) -> Envelope:
    """An event as the bus takes it."""
    return Envelope(
        id=event.event_id,
        name=message_name(type(event)),
        body=_encoder.encode(event),
        sent_at=datetime.now(UTC),
    )


def encode_line(message: object) -> bytes:
    """One message as a line."""
    return _encoder.encode(message) + b"\n"


def decode_answer(line: bytes) -> Answer:
    """The answer in a line, for the coordinator."""
    return _answers.decode(line)

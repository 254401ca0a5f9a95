"""What coordinator and worker say to each other: one JSON object a line, over the worker's stdin and stdout."""

from __future__ import annotations

import msgspec

from demo.cases import CaseEvent
from demo.handling import Handled
from demo.orders import OrderEvent

__all__ = ["Answer", "Failed", "Ready", "decode_answer", "decode_event", "encode_line"]


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker has opened the store."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The worker gives up.

    Args:
        reason: What happened.
    """

    reason: str


Answer = Ready | Handled | Failed

_encoder = msgspec.json.Encoder()
_events: msgspec.json.Decoder[OrderEvent | CaseEvent] = msgspec.json.Decoder(OrderEvent | CaseEvent)
_answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


def encode_line(message: object) -> bytes:
    """One message as a line."""
    return _encoder.encode(message) + b"\n"


def decode_event(line: bytes) -> OrderEvent | CaseEvent:
    """The event in a line, for the worker."""
    return _events.decode(line)


def decode_answer(line: bytes) -> Answer:
    """The answer in a line, for the coordinator."""
    return _answers.decode(line)

"""What travels: one message, encoded, with what must be known of it without decoding it."""

from __future__ import annotations

from datetime import datetime

import msgspec

__all__ = ["TRACE_PARENT", "TRACE_STATE", "Envelope"]

TRACE_PARENT = "traceparent"  # W3C Trace Context, section 3: the names of its two headers
TRACE_STATE = "tracestate"


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """One message on its way.

    Args:
        id: One per logical message; a message that is sent or delivered again keeps it.
        name: The name of the message's type.
        body: The encoded message, JSON in UTF-8.
        sent_at: When the message was made, aware.
        headers: ``traceparent`` and ``tracestate``, the saga that sent it, and the user's own.
    """

    id: str
    name: str
    body: bytes
    sent_at: datetime
    headers: dict[str, str] = {}  # msgspec copies an empty dict for each instance

"""A saga's row as the parameters of a statement.

In a group everything is sent as text and cast by the server: asyncpg knows text arrays from the start, any other
array type it has to look up in the catalog first, on each new connection. Timestamps go with their offset, so that
the session's time zone does not matter and no year is out of range.
"""

from __future__ import annotations

import re
from typing import Any

from saga_bus.store import SagaRow

__all__ = ["exact_text", "row_texts", "row_values"]

# Digits become "0" and what may follow a number becomes ",", so that one search finds every exponent.
_SHAPE = bytes.maketrans(b"123456789E}] \t\r\n", b"000000000e,,,,,,")
_LARGE = re.compile(rb"0e0{1,3},")


def exact_text(document: bytes) -> str | None:
    """The document itself where JSONB would change it, else None.

    JSONB keeps a number's value and scale, but not the sign of -0.0, and it writes 1e16 without the exponent, so
    that it would be read back as an integer. Digits inside a string can look the same; then a copy is kept
    without need.

    Args:
        document: The encoded state.
    """
    if b"-0.0" in document or _LARGE.search(document.translate(_SHAPE, b"+")):
        return document.decode()
    return None


def row_values(row: SagaRow) -> tuple[Any, ...]:
    """The parameters that inserts and updates share, in the order of ``_statements.VALUES``.

    Args:
        row: The row.
    """
    return (
        row.saga_name,
        row.saga_id,
        row.version,
        row.is_completed,
        row.created_at,
        row.updated_at,
        row.archived_at,
        row.timeout_expires_at,
        row.outbox_pending,
        row.document.decode(),
        exact_text(row.document),
    )


def row_texts(row: SagaRow) -> tuple[str | None, ...]:
    """The same as texts.

    Args:
        row: The row.
    """
    return (
        row.saga_name,
        row.saga_id,
        str(row.version),
        "t" if row.is_completed else "f",
        row.created_at.isoformat(),
        row.updated_at.isoformat(),
        None if row.archived_at is None else row.archived_at.isoformat(),
        None if row.timeout_expires_at is None else row.timeout_expires_at.isoformat(),
        "t" if row.outbox_pending else "f",
        row.document.decode(),
        exact_text(row.document),
    )

"""A saga's row as the parameters of a statement.

A group is one parameter, a JSON text of all its rows, which the server turns into columns: for asyncpg that is half
the work of an array for each column. Timestamps go with their offset, so that the session's time zone does not matter
and no year is out of range.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from saga_bus.store import SagaRow, StateEncodeError

__all__ = ["exact_text", "group_text", "row_values"]

# Digits become "0" and what may follow a number becomes ",", so that one search finds every exponent.
_SHAPE = bytes.maketrans(b"123456789E}] \t\r\n", b"000000000e,,,,,,")
_EXPONENT = re.compile(rb"0e(?:0+|-00+),")


def exact_text(document: bytes) -> str | None:
    """The document itself where JSONB would change it, or write it at many times its length, else None.

    JSONB keeps a number's value and scale, but not the sign of -0.0, and it writes 1e16 without the exponent, so
    that it would be read back as an integer. It writes all the zeros of 1e-300, too: a large state of such numbers
    would be longer than a text can be, and could not be read. Digits inside a string can look the same; then a copy
    is kept without need.

    Args:
        document: The encoded state.
    """
    if b"-0.0" in document or _EXPONENT.search(document.translate(_SHAPE, b"+")):
        return document.decode()
    return None


def row_values(row: SagaRow) -> tuple[Any, ...]:
    """The parameters that inserts and updates share, in the order of ``_statements.VALUES``.

    Args:
        row: The row.
    """
    return (*_columns(row), row.document.decode(), exact_text(row.document))


def group_text(rows: Iterable[tuple[SagaRow, Any]]) -> str:
    """A group of rows as one JSON text, in the names of ``_statements.GROUP``.

    Args:
        rows: The rows, each with what its statement needs beside it.

    Raises:
        StateEncodeError: The document of a row is not one JSON value, so it would break out of its place; or it is
            nested too deeply to see that.
    """
    return _encode([_line(number, row, extra) for number, (row, extra) in enumerate(rows, start=1)]).decode()


class _Line(msgspec.Struct, gc=False):
    number: int
    extra: Any
    saga_name: str
    saga_id: str
    version: int
    is_completed: bool
    created_at: datetime
    updated_at: datetime
    archived_at: datetime | None
    timeout_expires_at: datetime | None
    outbox_pending: bool
    state: msgspec.Raw
    exact_state: str | None


_encode = msgspec.json.Encoder().encode
_one_value = msgspec.json.Decoder(msgspec.Raw).decode


def _line(number: int, row: SagaRow, extra: Any) -> _Line:
    try:
        state = _one_value(row.document)
        exact = exact_text(row.document)
    except (ValueError, RecursionError) as error:
        raise StateEncodeError(f"the encoded state cannot be read as JSON: {error}") from error
    return _Line(number, extra, *_columns(row), state, exact)


def _columns(
    row: SagaRow,
) -> tuple[str, str, int, bool, datetime, datetime, datetime | None, datetime | None, bool]:
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
    )

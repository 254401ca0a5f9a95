"""Rows as the client takes and gives them."""

from __future__ import annotations

import re
from typing import Any

from saga_bus.store import FoundRow, SagaRow
from saga_bus.store.checks import microseconds

__all__ = ["Keys", "changes_of", "found_row", "hour_of", "row_data", "text_of"]

_HOUR = 3_600_000_000  # microseconds

# The client indents its queries, and takes these three for the ends of lines, in the middle of a text too: blanks
# would slip in behind them. A document has them as JSON's escapes instead, which mean the same.
_BREAKS = ("\x85", "\u2028", "\u2029")
_ESCAPED = str.maketrans({char: f"\\u{ord(char):04x}" for char in _BREAKS})

# A key has nothing that means the same, so there they are a mark and a digit, and the mark is two marks.
_MARK = "\N{SYMBOL FOR ESCAPE}"
_MARKED = {_MARK: _MARK * 2, **{char: f"{_MARK}{number}" for number, char in enumerate(_BREAKS)}}
_UNMARKED = {marked: char for char, marked in _MARKED.items()}
_EACH_CHAR = str.maketrans(_MARKED)
_EACH_MARKED = re.compile(f"{_MARK}.", re.DOTALL)

# SQL Server pads the shorter of two texts with blanks when it compares them, so "a" would equal "a ". A key that
# ends with a blank is stored with this behind it there, and so is one that ends with this.
_END = "\N{SYMBOL FOR SPACE}"


class Keys:
    """Saga names, saga ids and correlation ids as they are stored: as they are, but for very few.

    Args:
        provider: The database.
    """

    def __init__(self, provider: str) -> None:
        self._pads = provider == "sqlserver"

    def stored(self, key: str) -> str:
        """A key as it is stored.

        Args:
            key: The checked key.
        """
        if self._pads and key[-1] in (" ", _END):
            key += _END
        return key if key.isascii() else key.translate(_EACH_CHAR)

    def read(self, stored: str) -> str:
        """A key from what is stored.

        Args:
            stored: The column's value.
        """
        if _MARK in stored:
            stored = _EACH_MARKED.sub(lambda found: _UNMARKED.get(found[0], found[0]), stored)
        return stored.removesuffix(_END) if self._pads else stored


def text_of(document: bytes) -> str:
    """A document as the client can send it.

    Args:
        document: JSON.
    """
    text = document.decode()
    return text.translate(_ESCAPED) if not text.isascii() and any(char in text for char in _BREAKS) else text


def hour_of(moment: int) -> int:
    """The field ``updated_hour`` for a value of ``updated_at``.

    Args:
        moment: Microseconds since 1970 in UTC; negative before.
    """
    return moment // _HOUR


def changes_of(row: SagaRow) -> dict[str, Any]:
    """What an update sets.

    Args:
        row: The row.
    """
    updated_at = microseconds(row.updated_at)
    return {
        "version": row.version,
        "is_completed": row.is_completed,
        "created_at": microseconds(row.created_at),
        "updated_at": updated_at,
        "updated_hour": hour_of(updated_at),
        "archived_at": None if row.archived_at is None else microseconds(row.archived_at),
        "timeout_expires_at": None if row.timeout_expires_at is None else microseconds(row.timeout_expires_at),
        "outbox_pending": row.outbox_pending,
        "state": text_of(row.document),
    }


def row_data(row: SagaRow, correlation_id: str, keys: Keys) -> dict[str, Any]:
    """What an insert writes.

    Args:
        row: The row.
        correlation_id: Its correlation id.
        keys: How keys are stored.
    """
    return {
        "saga_name": keys.stored(row.saga_name),
        "saga_id": keys.stored(row.saga_id),
        "correlation_id": keys.stored(correlation_id),
        **changes_of(row),
    }


def found_row(record: Any, moment: str, keys: Keys) -> FoundRow:
    """A record of the client's.

    Args:
        record: The record.
        moment: The field that the query orders by.
        keys: How keys are stored.
    """
    return FoundRow(
        keys.read(record.saga_name),
        keys.read(record.saga_id),
        keys.read(record.correlation_id),
        getattr(record, moment),
        record.state.encode(),
    )

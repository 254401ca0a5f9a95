"""Values on their way into and out of the table, and how each is bound.

Every parameter is bound with its column's own type: pyodbc would make an ``nvarchar`` of each text's own length,
and with it one cached plan for each length. No parameter is NULL, because pyodbc asks the server for the type of
a NULL, which is one more round trip; a statement has the word NULL instead.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from saga_bus.store import CursorPosition, SagaStoreError, StateEncodeError
from saga_bus.store.checks import microseconds

__all__ = [
    "CORRELATION_ID",
    "COUNT",
    "FLAG",
    "FREETDS_TEXT",
    "IDENTIFIER",
    "KEY",
    "MOMENT",
    "TEXT",
    "VERSION",
    "Binding",
    "Statement",
    "document_of",
    "key_of",
    "moment_text",
    "moment_value",
    "position_text",
    "stored_key",
    "text_of",
]

Binding = tuple[int, int, int]

# ODBC's own numbers of its SQL types, so that pyodbc need not be there when this module is imported.
_SQL_WVARCHAR = -9
_SQL_WLONGVARCHAR = -10
_SQL_BIGINT = -5
_SQL_INTEGER = 4
_SQL_BIT = -7

KEY: Binding = (_SQL_WVARCHAR, 257, 0)
CORRELATION_ID: Binding = (_SQL_WVARCHAR, 513, 0)
VERSION: Binding = (_SQL_BIGINT, 0, 0)
COUNT: Binding = (_SQL_INTEGER, 0, 0)
FLAG: Binding = (_SQL_BIT, 0, 0)
MOMENT: Binding = (_SQL_WVARCHAR, 27, 0)
IDENTIFIER: Binding = (_SQL_WVARCHAR, 128, 0)
# nvarchar(max): each driver wants it asked for in its own way. FreeTDS makes nvarchar(4000) of Microsoft's way, which
# would cut longer states.
TEXT: Binding = (_SQL_WVARCHAR, 0, 0)
FREETDS_TEXT: Binding = (_SQL_WLONGVARCHAR, 0, 0)

# SQL Server pads the shorter of two texts with blanks when it compares them, under every collation, so "a" would
# equal "a ". A key that ends with a blank is stored with this mark behind it, and so is one that ends with the
# mark; all others are stored as they are.
_MARK = "\N{SYMBOL FOR SPACE}"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = microseconds(datetime.min.replace(tzinfo=UTC))
_LAST = microseconds(datetime.max.replace(tzinfo=UTC))


class Statement(NamedTuple):
    """A statement, and how its parameters are bound.

    Args:
        sql: The statement, with ``?`` for each parameter.
        bindings: One for each parameter.
    """

    sql: str
    bindings: tuple[Binding, ...]


def stored_key(key: str) -> str:
    """A saga name, saga id or correlation id as it is stored, so that SQL Server compares it exactly.

    Args:
        key: The checked key.
    """
    return key + _MARK if key[-1] in (" ", _MARK) else key


def key_of(stored: str) -> str:
    """A saga name, saga id or correlation id from what is stored.

    Args:
        stored: The column's value.
    """
    return stored.removesuffix(_MARK)


def position_text(position: CursorPosition) -> str:
    """The moment of a place in a total order, as text.

    Args:
        position: The place.
    """
    return _text(position.moment)


def moment_text(moment: datetime) -> str:
    """A moment as text, in UTC, which converts to ``datetime2`` exactly, whatever driver and language.

    Args:
        moment: An aware datetime; one that is outside of the years 1 to 9999 in UTC becomes the nearest inside.
    """
    if moment.tzinfo is UTC:  # as all are that the store writes
        return moment.isoformat(timespec="microseconds")[:26]
    return _text(microseconds(moment))


def _text(moment: int) -> str:
    inside = _EPOCH + timedelta(microseconds=min(max(moment, _FIRST), _LAST))
    return inside.replace(tzinfo=None).isoformat(timespec="microseconds")


def moment_value(text: str) -> int:
    """A stored moment in microseconds since 1970.

    Args:
        text: The moment as the server writes it, ``yyyy-mm-dd hh:mi:ss.ffffff``.
    """
    return microseconds(datetime.fromisoformat(text).replace(tzinfo=UTC))


def text_of(document: bytes, saga_name: str) -> str:
    """A document as the text that is stored.

    Args:
        document: The encoded state.
        saga_name: The saga's name, for the error message.

    Raises:
        StateEncodeError: It is not UTF-8.
    """
    try:
        return document.decode()
    except UnicodeDecodeError as error:
        raise StateEncodeError(f"saga {saga_name!r}: the codec made a document that is not UTF-8") from error


def document_of(state: Any) -> bytes:
    """The encoded state from what a driver gives.

    Args:
        state: The column's value.

    Raises:
        SagaStoreError: The driver gave no text.
    """
    if not isinstance(state, str):
        raise SagaStoreError(f"the driver gave a {type(state).__name__} for the state, not a str")
    return state.encode()

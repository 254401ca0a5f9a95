"""SQL names: checked once, quoted by one helper, never put into a statement raw."""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal

from saga_bus.store.errors import InvalidSagaError

__all__ = ["check_identifier", "derived_identifier", "quote_identifier"]

QuoteStyle = Literal["ansi", "mysql", "sqlserver"]

_QUOTES: dict[QuoteStyle, tuple[str, str]] = {
    "ansi": ('"', '"'),
    "mysql": ("`", "`"),
    "sqlserver": ("[", "]"),
}


def check_identifier(name: str, *, what: str = "table", max_bytes: int = 63) -> str:
    """Refuse a name that a database would cut, reject or misread.

    Args:
        name: The name of a table, schema, index or the like, as the database shall see it.
        what: What the name names, for the error message.
        max_bytes: The database's limit in UTF-8 bytes (63 is PostgreSQL's NAMEDATALEN - 1).

    Returns:
        The same name.

    Raises:
        InvalidSagaError: The name is no text, empty, too long, or holds a control character or a lone surrogate.
    """
    if not isinstance(name, str) or not name:
        raise InvalidSagaError(f"the {what} name must be a text that is not empty, not {name!r}")
    if any(ord(char) < 32 or ord(char) == 127 for char in name):
        raise InvalidSagaError(f"the {what} name {name!r} holds a control character")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise InvalidSagaError(f"the {what} name {name!r} holds a lone surrogate") from error
    if size > max_bytes:
        raise InvalidSagaError(f"the {what} name {name!r} has {size} bytes, the limit is {max_bytes}")
    return name


def quote_identifier(name: str, *, style: QuoteStyle = "ansi") -> str:
    """Quote a checked name, so that reserved words, mixed case, blanks and quotes are taken as they are.

    Args:
        name: The name.
        style: The dialect's quotes: "ansi" for double quotes, "mysql" for backticks, "sqlserver" for brackets.
    """
    opening, closing = _QUOTES[style]
    return f"{opening}{name.replace(closing, closing * 2)}{closing}"


def derived_identifier(table: str, suffix: str, *, max_bytes: int = 63) -> str:
    """Name something after its table (an index, say), unambiguously also where the result must be cut.

    Args:
        table: The table's name.
        suffix: What tells it from the table's other things.
        max_bytes: The database's limit in UTF-8 bytes.
    """
    name = f"{table}_{suffix}"
    if len(name.encode()) <= max_bytes:
        return name
    tail = f"_{blake2b(table.encode(), digest_size=4).hexdigest()}_{suffix}"
    return table.encode()[: max_bytes - len(tail.encode())].decode(errors="ignore") + tail

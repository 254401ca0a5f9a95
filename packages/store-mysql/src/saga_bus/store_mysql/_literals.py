"""Statements with values in them: the protocol that aiomysql speaks sends texts only.

A value becomes a literal here and nowhere else. Inside quotes only the quote itself and, unless the session says
NO_BACKSLASH_ESCAPES, the backslash mean something; in UTF-8 neither of their bytes is ever part of another
character. (The driver's own escaping makes two bytes of every double quote too, and JSON is full of them.)
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

__all__ = ["NULL", "Quote", "Template", "flag", "integer", "moment", "optional_moment", "quote", "quote_plain"]

Quote = Callable[[bytes], bytes]

NULL = b"NULL"
_DATETIME_LENGTH = len("2026-01-01 00:00:00.000000")


def quote(text: bytes) -> bytes:
    """A text as a literal.

    Args:
        text: UTF-8.
    """
    return b"'" + text.replace(b"\\", b"\\\\").replace(b"'", b"''") + b"'"


def quote_plain(text: bytes) -> bytes:
    """A text as a literal for a session with the SQL mode NO_BACKSLASH_ESCAPES.

    Args:
        text: UTF-8.
    """
    return b"'" + text.replace(b"'", b"''") + b"'"


def integer(number: int) -> bytes:
    """A number as a literal.

    Args:
        number: Any.
    """
    return b"%d" % number


def flag(value: bool) -> bytes:  # noqa: FBT001 - the value itself
    """A truth value as a literal.

    Args:
        value: The value.
    """
    return b"1" if value else b"0"


def moment(value: datetime) -> bytes:
    """A moment as a literal for DATETIME(6), which has no time zone, so the session's does not matter.

    Args:
        value: Aware, in UTC.
    """
    return b"'" + value.isoformat(" ", "microseconds")[:_DATETIME_LENGTH].encode() + b"'"


def optional_moment(value: datetime | None) -> bytes:
    """A moment or NULL as a literal.

    Args:
        value: Aware, in UTC, or None.
    """
    return NULL if value is None else moment(value)


class Template:
    """A statement with a place for each value.

    Args:
        sql: The statement, with ``?`` for a value and ``{name}`` for a quoted name.
        **names: The quoted names.
    """

    __slots__ = ("_first", "_rest")

    def __init__(self, sql: str, **names: str) -> None:
        # Split first: a name may hold a question mark.
        self._first, *self._rest = (part.format(**names).encode() for part in sql.split("?"))

    def filled(self, *values: bytes) -> bytes:
        """The statement with its values.

        Args:
            *values: Literals, one for each place.
        """
        parts = [self._first]
        for value, part in zip(values, self._rest, strict=True):
            parts += (value, part)
        return b"".join(parts)

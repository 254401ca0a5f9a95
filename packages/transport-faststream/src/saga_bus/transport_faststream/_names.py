"""Names of any characters as names that a broker takes, unambiguously.

A broker's names know fewer characters and are shorter than ours. Letters, digits, ``_`` and ``-`` of ASCII stay;
every other byte of the UTF-8 is written as the escape sign and two hex digits. What is then too long is cut, and
gets a hash of the whole behind a sign that no escaped byte can have. So two names never become one.
"""

from __future__ import annotations

import hashlib
import re

from saga_bus.core import ConfigurationError

__all__ = ["LONGEST", "broker_name", "checked_prefix"]

LONGEST = 100

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_HASH_DIGITS = 32
_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,40}")


def broker_name(name: str, escape: str = "@") -> str:
    """A name of at most `LONGEST` characters out of ASCII letters, digits, ``_``, ``-`` and the escape sign.

    Args:
        name: Any text.
        escape: One character that the broker takes in names.
    """
    written = "".join(
        chr(byte) if byte in _PLAIN else f"{escape}{byte:02X}" for byte in name.encode("utf-8", "surrogatepass")
    )
    if len(written) <= LONGEST:
        return written
    digest = hashlib.sha256(written.encode()).hexdigest()[:_HASH_DIGITS]
    return f"{written[: LONGEST - _HASH_DIGITS - 2]}{escape}h{digest}"


def checked_prefix(prefix: str) -> str:
    """The prefix, if it is one.

    Args:
        prefix: What all names of a transport on the broker begin with.

    Raises:
        ConfigurationError: It has other characters than ASCII letters, digits, ``_`` and ``-``, or too many.
    """
    if not _PREFIX.fullmatch(prefix):
        raise ConfigurationError(f"the prefix must be 1 to 40 ASCII letters, digits, '_' and '-', not {prefix!r}")
    return prefix

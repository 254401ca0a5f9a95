"""Where the table is: a ``dynamodb://`` URL, read without any I/O."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from saga_bus.store import InvalidSagaError

__all__ = ["Location", "check_endpoint", "check_table", "is_loopback", "parse_location"]

_WANTED = "dynamodb://region/table?endpoint=http://host:port"
_TABLE = re.compile(r"[A-Za-z0-9_.-]{3,255}")
_REGION = re.compile(r"[a-z0-9-]*")


def _seconds(text: str) -> timedelta:
    return timedelta(seconds=float(text))


# Options of the store that a URL may carry.
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "endpoint": str,
    "threads": int,
    "attempts": int,
    "connect_timeout": float,
    "read_timeout": float,
    "completed_ttl": _seconds,
}


@dataclass(frozen=True)
class Location:
    """What a URL says.

    Args:
        region: The region, None for the one of the environment.
        options: Keyword arguments of the store, the table's name among them.
        access_key: The access key, None for what the environment has.
        secret_key: Its secret.
    """

    region: str | None
    options: dict[str, Any]
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)


def parse_location(url: str) -> Location:
    """Read a URL.

    Args:
        url: ``dynamodb://region/table?endpoint=http://host:port``; the region may be empty, the table left out, and
            access key and secret may stand before the region, as in ``dynamodb://key:secret@region/table``.

    Raises:
        InvalidSagaError: It is none; the message shows no secret.
    """
    if not isinstance(url, str) or not url.lower().startswith("dynamodb://"):
        raise InvalidSagaError(f"a DynamoDB URL is {_WANTED}")
    try:
        parts = urlsplit(url)
        access_key, secret_key = _unquoted(parts.username), _unquoted(parts.password)
        region = (parts.netloc.rpartition("@")[2]).lower()
        path = unquote(parts.path.removeprefix("/"), errors="strict")
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query), errors="strict")
    except ValueError:  # not shown, and not the cause either: both may hold the secret
        raise InvalidSagaError(f"the DynamoDB URL cannot be read: {_WANTED}") from None
    if not _REGION.fullmatch(region) or parts.fragment or (access_key is None) != (secret_key is None):
        raise InvalidSagaError(f"the DynamoDB URL cannot be read: {_WANTED}")
    options: dict[str, Any] = {"table": path} if path else {}
    for name, value in pairs:
        if name not in _OPTIONS or name in options:
            raise InvalidSagaError(f"the option {name!r} of the DynamoDB URL is unknown or stands twice")
        try:
            options[name] = _OPTIONS[name](value)
        except (ValueError, OverflowError) as error:
            raise InvalidSagaError(f"bad value of the option {name!r} in the DynamoDB URL") from error
    return Location(region or None, options, access_key, secret_key)


def check_table(table: str) -> str:
    """Refuse a name that no table can have.

    Args:
        table: The name.

    Raises:
        InvalidSagaError: It has other characters than letters, digits, ``_``, ``-`` and ``.``, or not 3 to 255.
    """
    if not isinstance(table, str) or not _TABLE.fullmatch(table):
        raise InvalidSagaError(f"the table name {table!r} must have 3 to 255 letters, digits, '_', '-' or '.'")
    return table


def check_endpoint(endpoint: str) -> str:
    """Refuse what is no address of a service.

    Args:
        endpoint: ``http://host:port`` or ``https://host:port``.

    Raises:
        InvalidSagaError: It is none, or carries user and password, which belong into the URL of the table.
    """
    try:
        parts = urlsplit(endpoint)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        right = right and parts.port != 0
    except (ValueError, AttributeError, TypeError):
        right = False
    if not right:
        raise InvalidSagaError("the endpoint must be http://host:port or https://host:port, without user and password")
    return endpoint


def is_loopback(endpoint: str) -> bool:
    """Whether an endpoint is on this very machine.

    Args:
        endpoint: The endpoint.
    """
    host = urlsplit(endpoint).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _unquoted(text: str | None) -> str | None:
    return None if text is None else unquote(text, errors="strict")

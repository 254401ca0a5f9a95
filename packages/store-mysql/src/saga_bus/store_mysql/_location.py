"""Where the server is: a ``mysql://`` or ``mariadb://`` URL, read without any network I/O."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from saga_bus.store import InvalidSagaError
from saga_bus.store_mysql._driver import Address

__all__ = ["Location", "parse_location"]

_SCHEMES = ("mysql", "mariadb")
_DEFAULT_PORT = 3306
_TLS_MODES = ("disabled", "required", "verify_ca", "verify_identity")
_TLS_OPTIONS = ("ssl_mode", "ssl_ca", "ssl_cert", "ssl_key")
_STORE_OPTIONS: dict[str, Callable[[str], Any]] = {
    "table": str,
    "schema": str,
    "pool_size": int,
    "connect_timeout": float,
    "acquire_timeout": float,
    "command_timeout": float,
    "lock_timeout": float,
}
_OPTIONS = (*_STORE_OPTIONS, "unix_socket", *_TLS_OPTIONS)


@dataclass(frozen=True)
class Location:
    """A server and the options that came with its URL.

    Args:
        address: The server, the user and the database.
        options: Keyword arguments of the store.
    """

    address: Address
    options: dict[str, Any]

    def __str__(self) -> str:
        place = self.address.unix_socket or f"{self.address.host}:{self.address.port}"
        return f"mysql://{self.address.user}@{place}/{self.address.database}"


def parse_location(url: str) -> Location:
    """Read a URL; no error shows it, because it may hold a password.

    Args:
        url: ``mysql://user:password@host:3306/database?option=...``, with the parts percent-encoded.

    Raises:
        InvalidSagaError: It is none, has an unknown option, or names files of certificates that cannot be read.
    """
    if not isinstance(url, str):
        raise InvalidSagaError(f"the URL must be a str, not {type(url).__name__}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidSagaError("the MySQL URL cannot be read: is a part of it not percent-encoded?") from None
    if parts.scheme not in _SCHEMES:
        raise InvalidSagaError("a MySQL URL begins with mysql:// or mariadb://")
    if parts.fragment:
        raise InvalidSagaError("a MySQL URL has no #fragment: write # as %23")
    options = _options(parts.query)
    tls = {name: options.pop(name) for name in _TLS_OPTIONS if name in options}
    address = Address(
        host=_plain(parts.hostname or "localhost"),
        port=_DEFAULT_PORT if port is None else port,
        user=_user(parts),
        password=_plain(parts.password or ""),
        database=_plain(parts.path.removeprefix("/")),
        unix_socket=options.pop("unix_socket", None),
        tls=_tls_context(**tls) if tls else None,
    )
    return Location(address, options)


def _user(parts: SplitResult) -> str:
    user = _plain(parts.username or "")
    if not user:
        raise InvalidSagaError("the MySQL URL names no user: mysql://user:password@host/database")
    return user


def _plain(text: str) -> str:
    try:
        plain = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise InvalidSagaError("a part of the MySQL URL is not UTF-8") from None
    if "\x00" in plain:
        raise InvalidSagaError("a part of the MySQL URL holds a NUL character")
    return plain


def _options(query: str) -> dict[str, Any]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict") if query else []
    except ValueError as error:
        raise InvalidSagaError("the options of the MySQL URL cannot be read") from error
    options: dict[str, Any] = {}
    for name, value in pairs:
        if name not in _OPTIONS:
            raise InvalidSagaError(f"unknown option {name!r} in the MySQL URL: {', '.join(_OPTIONS)}")
        if name in options:
            raise InvalidSagaError(f"the option {name!r} stands twice in the MySQL URL")
        try:
            options[name] = _STORE_OPTIONS.get(name, str)(value)
        except ValueError as error:
            raise InvalidSagaError(f"bad value {value!r} of the option {name!r} in the MySQL URL") from error
    return options


def _tls_context(
    *,
    ssl_mode: str = "verify_identity",
    ssl_ca: str | None = None,
    ssl_cert: str | None = None,
    ssl_key: str | None = None,
) -> ssl.SSLContext | None:
    if ssl_mode not in _TLS_MODES:
        raise InvalidSagaError(f"ssl_mode must be one of {', '.join(_TLS_MODES)}, not {ssl_mode!r}")
    if ssl_mode == "disabled":
        return None
    try:
        context = ssl.create_default_context(cafile=ssl_ca)
        context.check_hostname = ssl_mode == "verify_identity"
        if ssl_mode == "required":
            context.verify_mode = ssl.CERT_NONE
        if ssl_cert is not None:
            context.load_cert_chain(ssl_cert, ssl_key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidSagaError(f"the certificates of the MySQL URL cannot be used: {error}") from error
    return context

"""Where the database is: an ``mssql://`` URL or an ODBC connection string, read without any I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from saga_bus.store import InvalidSagaError
from saga_bus.store_sqlserver._odbc import is_freetds, newest_driver

__all__ = ["Location", "escaped", "parse_location"]

_SCHEMES = ("mssql", "sqlserver")
_DEFAULT_PORT = 1433

# One "keyword=value" of a connection string: a value in braces may hold anything, with "}}" for a brace.
_PAIR = re.compile(r"\s*([^=;{}]+?)\s*=\s*(\{(?:[^}]|\}\})*\}|[^;{}]*)\s*(?:;|$)", re.DOTALL)
_PLAIN = re.compile(r"[\w.,:/\\+-]+(?: [\w.,:/\\+-]+)*", re.ASCII)
_KEYWORD = re.compile(r"[A-Za-z][\w ]*", re.ASCII)
_SECRETS = frozenset({"pwd", "password"})
_SYNONYMS = {"user id": "uid", "user": "uid", "password": "pwd", "address": "server", "addr": "server"}


def _yes_or_no(text: str) -> str:
    lowered = text.lower()
    if lowered in ("yes", "true", "1", "on", "mandatory"):
        return "yes"
    if lowered in ("no", "false", "0", "off", "optional"):
        return "no"
    raise ValueError(text)


def _encryption(text: str) -> str:
    return "strict" if text.lower() == "strict" else _yes_or_no(text)


# Options of the store itself that a URL may carry.
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "table": str,
    "schema": str,
    "pool_size": int,
    "connect_timeout": float,
    "command_timeout": float,
    "acquire_timeout": float,
}
# Our names for what both drivers can do; anything else is the driver's own keyword.
_OURS: dict[str, Callable[[str], str]] = {
    "driver": str,
    "encrypt": _encryption,
    "trust_server_certificate": _yes_or_no,
}


@dataclass(frozen=True)
class Location:
    """A database, how to reach it, and the options that came with its URL.

    Args:
        shown: The place without user and password, for people.
        options: Keyword arguments of the store.
    """

    shown: str
    options: dict[str, Any]
    _given: str | None = field(default=None, repr=False)
    _keywords: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    _url: _Url | None = field(default=None, repr=False)

    def connection_string(self, driver: str | None = None) -> str:
        """The ODBC connection string.

        Args:
            driver: The driver to use where the URL names none; by default the best one that is registered here.

        Raises:
            SagaStoreError: The URL names no driver, and none is registered on this machine.
            InvalidSagaError: The driver cannot take a value.
        """
        if self._url is None:
            return self._given or ""
        chosen = self._url.driver or driver or newest_driver()
        escape = _escaped_for_freetds if is_freetds(chosen) else escaped
        return "".join(f"{name}={escape(value)};" for name, value in self._url.keywords(chosen))

    @property
    def secrets(self) -> tuple[str, ...]:
        """The passwords, which must not appear in any message."""
        url = self._url
        pairs = self._keywords if url is None else (*url.passed, ("PWD", url.password or ""))
        return tuple(value for name, value in pairs if name.lower() in _SECRETS and value)


@dataclass(frozen=True)
class _Url:
    host: str
    port: int | None
    database: str
    user: str | None
    password: str | None
    driver: str | None
    encrypt: str | None
    trust_server_certificate: str | None
    passed: tuple[tuple[str, str], ...]

    def keywords(self, driver: str) -> list[tuple[str, str]]:
        """The keywords of the connection string for a driver; the two drivers name some of them differently."""
        named: dict[str, str] = {"Driver": driver}
        if is_freetds(driver):
            named["Server"] = self.host
            if "\\" not in self.host:  # an instance has a port of its own, which FreeTDS asks the server for
                named["Port"] = str(self.port or _DEFAULT_PORT)
            named["TDS_Version"] = "7.4"
            if self.encrypt is not None:
                named["Encryption"] = {"yes": "require", "no": "off", "strict": "strict"}[self.encrypt]
            if self.trust_server_certificate == "no":
                raise InvalidSagaError(
                    "FreeTDS takes the certificates that it trusts from its freetds.conf ('ca file'), not from "
                    "trust_server_certificate=no"
                )
        else:
            named["Server"] = self.host if self.port is None else f"{self.host},{self.port}"
            if self.encrypt is not None:
                named["Encrypt"] = self.encrypt
            if self.trust_server_certificate is not None:
                named["TrustServerCertificate"] = self.trust_server_certificate
        if self.database:
            named["Database"] = self.database
        if self.user is not None:
            named["UID"] = self.user
        if self.password is not None:
            named["PWD"] = self.password
        return [*named.items(), *self.passed]


def parse_location(place: str) -> Location:
    """Read a URL or a connection string.

    Args:
        place: ``mssql://user:password@host:port/database?driver=...&encrypt=...&trust_server_certificate=...``
            with further keywords of the driver, or ``Driver=...;Server=...``.

    Raises:
        InvalidSagaError: It is neither; the message shows no password.
    """
    if not isinstance(place, str) or not place or "\x00" in place:
        raise InvalidSagaError("the database must be an mssql:// URL or an ODBC connection string")
    scheme = re.match(r"([A-Za-z][\w+.-]*)://", place)
    if scheme is None:
        return _from_string(place)
    if scheme[1].lower() not in _SCHEMES:
        raise InvalidSagaError(f"a SQL Server URL begins with mssql:// or sqlserver://, not {scheme[1]}://")
    return _from_url(place)


def escaped(value: str) -> str:
    """A value as it must stand in a connection string.

    Args:
        value: Any text.
    """
    if value and _PLAIN.fullmatch(value):
        return value
    return "{" + value.replace("}", "}}") + "}"


def _escaped_for_freetds(value: str) -> str:
    # It takes "}}" in braces as two characters, and "};" as their end; without braces all but ";" stands for itself.
    if value and ";" not in value and not value.startswith("{") and value == value.strip():
        return value
    if "}" in value:
        raise InvalidSagaError("FreeTDS cannot take a value with both '}' and ';', or with '}' and blanks around it")
    return "{" + value + "}"


def _from_string(text: str) -> Location:
    pairs: list[tuple[str, str]] = []
    place = 0
    while place < len(text):
        if not text[place:].strip(" ;"):
            break
        match = _PAIR.match(text, place)
        if match is None or not match.end() > place:
            raise InvalidSagaError("the ODBC connection string cannot be read: it is keyword=value;keyword={value};...")
        name, value = match[1], match[2]
        pairs.append((name, value[1:-1].replace("}}", "}") if value.startswith("{") else value.rstrip()))
        place = match.end()
    named = {_SYNONYMS.get(name.lower(), name.lower()): value for name, value in reversed(pairs)}
    if "driver" not in named and "dsn" not in named and "filedsn" not in named:
        raise InvalidSagaError("the ODBC connection string names no Driver, no DSN and no FileDSN")
    server = named.get("server") or named.get("dsn") or named.get("filedsn") or named["driver"]
    return Location(_shown(server, named.get("database", "")), {}, text, tuple(pairs))


def _from_url(text: str) -> Location:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        database = unquote(parts.path.removeprefix("/"), errors="strict")
        user, password = _unquoted(parts.username), _unquoted(parts.password)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True, errors="strict")
    except ValueError:  # not shown, and not the cause either: both may hold the password
        raise InvalidSagaError("the SQL Server URL cannot be read: mssql://user:password@host:port/database") from None
    host = unquote(host)
    if not host:
        raise InvalidSagaError("the SQL Server URL names no host: mssql://user:password@host:port/database")
    if parts.fragment:
        raise InvalidSagaError("the SQL Server URL has a '#': write it as %23")
    options, ours, passed = _sorted_out(pairs)
    url = _Url(
        host,
        port,
        database,
        user,
        password,
        ours.get("driver"),
        ours.get("encrypt"),
        ours.get("trust_server_certificate"),
        tuple(passed),
    )
    return Location(_shown(host if port is None else f"{host},{port}", database), options, _url=url)


def _sorted_out(
    pairs: list[tuple[str, str]],
) -> tuple[dict[str, Any], dict[str, str], list[tuple[str, str]]]:
    options: dict[str, Any] = {}
    ours: dict[str, str] = {}
    passed: dict[str, str] = {}
    for name, value in pairs:
        readers: Mapping[str, Callable[[str], Any]]
        if name.lower() in _OPTIONS:
            key, found, readers = name.lower(), options, _OPTIONS
        elif name.lower() in _OURS:
            key, found, readers = name.lower(), ours, _OURS
        else:
            key, found, readers = name, passed, {}
        if key in found:
            raise InvalidSagaError(f"the option {name!r} stands twice in the SQL Server URL")
        if not _KEYWORD.fullmatch(name):
            raise InvalidSagaError(f"{name!r} in the SQL Server URL is no keyword of an ODBC driver")
        try:
            found[key] = readers.get(key, str)(value)
        except ValueError as error:
            raise InvalidSagaError(f"bad value of the option {name!r} in the SQL Server URL") from error
    return options, ours, list(passed.items())


def _unquoted(text: str | None) -> str | None:
    return None if text is None else unquote(text, errors="strict")


def _shown(server: str, database: str) -> str:
    return f"{server}/{database}" if database else server

"""Where the sagas are: the URL, checked without I/O and shown without its password, and the names in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri

from saga_bus.store import InvalidSagaError

__all__ = ["Location", "check_names", "parsed"]

_URL = re.compile(r"mongodb(?P<srv>\+srv)?://(?:(?P<account>[^@/]*)@)?(?P<hosts>[^/?]+)(?P<path>/[^?]*)?(?:\?.*)?")
_BAD_IN_DATABASE = set('/\\. "$*<>:|?\x00')
_MAX_DATABASE = 63
_MAX_NAMESPACE = 255  # https://www.mongodb.com/docs/manual/reference/limits/#naming-restrictions
_RESERVED = "saga_bus_schema"


class Location(NamedTuple):
    """What a URL says.

    Args:
        url: The URL.
        shown: The same without its password and its options, which may hold one too.
        database: The database that it names, if it does.
        options: Its options, by their lower-case names.
    """

    url: str
    shown: str
    database: str | None
    options: Mapping[str, Any]


def parsed(url: str) -> Location:
    """Read a URL.

    Args:
        url: ``mongodb://user:password@host:port/database?options``, or ``mongodb+srv://``.

    Raises:
        InvalidSagaError: It is none, or has an option that pymongo does not know; the URL is not shown, for it may
            hold a password.
    """
    refused = "the URL must be a text like mongodb://user:password@host:27017/database"
    match = _URL.fullmatch(url) if isinstance(url, str) else None
    if match is None:
        raise InvalidSagaError(refused)
    try:
        # As if it were no SRV name: looking that up is I/O, and left for the first use.
        found = parse_uri("mongodb://" + url.partition("://")[2], validate=True, warn=False)
    except (PyMongoError, ValueError, TypeError) as error:
        # pymongo's errors of an option show its value; of a bad account they show nothing.
        raise InvalidSagaError(f"{refused}; pymongo refuses it ({type(error).__name__})") from None
    if match["srv"] and (len(found["nodelist"]) != 1 or re.search(r":\d+$", match["hosts"])):
        raise InvalidSagaError("a mongodb+srv:// URL names one host, without a port")
    user = (match["account"] or "").partition(":")[0]
    shown = f"mongodb{match['srv'] or ''}://{user + '@' if user else ''}{match['hosts']}{match['path'] or ''}"
    return Location(url, shown, found["database"], {name.lower(): value for name, value in found["options"].items()})


def check_names(database: str, collection: str) -> None:
    r"""Refuse names that MongoDB refuses, or that the store needs for itself.

    Args:
        database: 1 to 63 bytes in UTF-8, without ``/\. "$*<>:|?``.
        collection: Together with the database's name at most 254 bytes; without ``$``, not ``system.``.

    Raises:
        InvalidSagaError: One of them is bad.
    """
    for what, name in (("database", database), ("collection", collection)):
        if not isinstance(name, str) or not name or "\x00" in name:
            raise InvalidSagaError(f"the {what} must be a name of at least one character, without NUL")
    if len(database.encode()) > _MAX_DATABASE or set(database) & _BAD_IN_DATABASE:
        raise InvalidSagaError(f"MongoDB takes no database of the name {database!r}")
    bad_dots = collection[0] == "." or collection[-1] == "." or ".." in collection
    if bad_dots or "$" in collection or collection.startswith("system."):
        raise InvalidSagaError(f"MongoDB takes no collection of the name {collection!r}")
    if len(f"{database}.{collection}".encode()) > _MAX_NAMESPACE:
        raise InvalidSagaError(f"the names of the database and the collection have more than {_MAX_NAMESPACE} bytes")
    if collection == _RESERVED:
        raise InvalidSagaError(f"the collection name {collection!r} is reserved")

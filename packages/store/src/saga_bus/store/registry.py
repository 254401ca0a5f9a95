"""Opening a store by its URL, whichever backends are installed."""

from __future__ import annotations

import re
from typing import Any

from saga_bus.store.base import BaseSagaStore
from saga_bus.store.errors import InvalidSagaError, UnsupportedOperationError

__all__ = ["open_store"]

GROUP = "saga_bus.stores"

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)(?P<rest>://.*)", re.IGNORECASE | re.DOTALL)

_DISTRIBUTIONS = {
    "memory": "saga-bus-store-inmemory",
    "sqlite": "saga-bus-store-sqlite",
    "postgresql": "saga-bus-store-postgres",
    "postgres": "saga-bus-store-postgres",
    "mysql": "saga-bus-store-mysql",
    "mariadb": "saga-bus-store-mysql",
    "mssql": "saga-bus-store-sqlserver",
    "sqlserver": "saga-bus-store-sqlserver",
    "mongodb": "saga-bus-store-mongodb",
    "mongodb+srv": "saga-bus-store-mongodb",
    "dynamodb": "saga-bus-store-dynamodb",
    "redis": "saga-bus-store-redis",
    "rediss": "saga-bus-store-redis",
    "unix": "saga-bus-store-redis",
    "prisma": "saga-bus-store-prisma",
}


def open_store(url: str, **options: Any) -> BaseSagaStore[Any]:
    """Make the store that a URL names; like every constructor it does no I/O.

    Args:
        url: ``scheme://...``; the scheme picks the backend, the rest is the backend's.
        **options: The backend's own options, such as ``state_types``.

    Returns:
        The store, which opens on first use or with ``async with``.

    Raises:
        InvalidSagaError: The URL has no scheme.
        UnsupportedOperationError: No installed distribution serves the scheme; the message says which one does.
    """
    from importlib.metadata import entry_points  # noqa: PLC0415 - slow to import, and only needed here

    match = _URL.fullmatch(url) if isinstance(url, str) else None
    if match is None:  # the URL is not shown: it may hold a password
        raise InvalidSagaError("a store URL begins with a scheme, as in sqlite:///sagas.db")
    scheme, rest = match["scheme"].lower(), match["rest"]
    backends = {entry.name: entry for entry in entry_points(group=GROUP)}
    if scheme in backends:
        store: BaseSagaStore[Any] = backends[scheme].load()(scheme + rest, **options)
        return store
    if scheme in _DISTRIBUTIONS:
        raise UnsupportedOperationError(f"no store for {scheme}:// is installed: pip install {_DISTRIBUTIONS[scheme]}")
    raise UnsupportedOperationError(
        f"no store for {scheme!r}:// is known; installed are {', '.join(sorted(backends)) or 'none'}"
    )

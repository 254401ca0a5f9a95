"""Real databases for the tests and the benchmark: one provider for each backend, found here and nowhere else.

A backend's provider is tried in this order: a server that ``SAGA_TEST_<BACKEND>_URL`` names, then whatever its
own ``serve`` starts (a container, a private server). Where nothing can be had, tests of the backend are skipped
with the reason, unless ``SAGA_TEST_REQUIRE`` names it (``sqlite,inmemory``, or ``all``): then they fail. So do tests
whose equipment is missing, when it names that.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from providers.dynamodb import serve_dynamodb
from providers.errors import UnavailableError, UnknownBackendError
from providers.mongodb import serve_mongodb
from providers.mysql import serve_mysql
from providers.postgres import serve_postgres
from providers.prisma import serve_prisma
from providers.redis import serve_redis, serve_redis_cluster
from providers.sqlserver import serve_sqlserver

__all__ = [
    "BROKER_NAMES",
    "EQUIPMENT_NAMES",
    "PROVIDERS",
    "Serve",
    "UnavailableError",
    "UnknownBackendError",
    "required_backends",
    "serve",
]

Serve = Callable[[], AbstractContextManager[str]]


@contextmanager
def _inmemory() -> Iterator[str]:
    yield "memory://"


@contextmanager
def _sqlite() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="saga-bus-sqlite-") as folder:
        yield f"sqlite:///{Path(folder).as_posix()}/sagas.db"


# A new backend adds its line here. What it yields is the URL of a database that is up; leaving stops what it
# started. It raises `UnavailableError` where it cannot start any.
PROVIDERS: Mapping[str, Serve] = {
    "dynamodb": serve_dynamodb,
    "inmemory": _inmemory,
    "mongodb": serve_mongodb,
    "mysql": serve_mysql,
    "postgres": serve_postgres,
    "prisma": serve_prisma,
    "redis": serve_redis,
    "redis_cluster": serve_redis_cluster,
    "sqlite": _sqlite,
    "sqlserver": serve_sqlserver,
}

# The message brokers, which `brokers` has: SAGA_TEST_REQUIRE may name them, too.
BROKER_NAMES = frozenset({"kafka", "nats", "rabbitmq", "redis-streams"})

# What tests need besides a server; it may name this, too: ODBC's driver manager, and drivers for SQL Server's store.
EQUIPMENT_NAMES = frozenset({"odbc"})


def required_backends(environment: Mapping[str, str] = os.environ) -> frozenset[str]:
    """The backends, brokers and equipment that must not be skipped, by ``SAGA_TEST_REQUIRE``.

    Args:
        environment: The environment variables.

    Raises:
        UnknownBackendError: It names a backend that has no provider.
    """
    named = {name for part in environment.get("SAGA_TEST_REQUIRE", "").split(",") if (name := part.strip())}
    if "all" in named:
        named = (named - {"all"}) | set(PROVIDERS) | BROKER_NAMES | EQUIPMENT_NAMES
    if "sqlserver" in named:
        named.add("odbc")  # or a server would be tested with one driver, or with none
    for name in sorted(named - BROKER_NAMES - EQUIPMENT_NAMES):
        _known(name)
    return frozenset(named)


@contextmanager
def serve(backend: str, environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Have a database of a backend up for a while.

    Args:
        backend: The backend's name, as in ``PROVIDERS``.
        environment: The environment variables.

    Yields:
        The URL of the database.

    Raises:
        UnavailableError: None can be had here.
        UnknownBackendError: There is no provider of this name.
    """
    _known(backend)
    url = environment.get(f"SAGA_TEST_{backend.upper()}_URL")
    if url:
        yield url
        return
    with PROVIDERS[backend]() as started:
        yield started


def _known(backend: str) -> None:
    if backend not in PROVIDERS:
        raise UnknownBackendError(f"unknown backend {backend!r}; there are {', '.join(sorted(PROVIDERS))}")

"""Opening connections and making them fit for saga state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from saga_bus.store import InvalidSagaError, SagaStoreError
from saga_bus.store_sqlserver._errors import scrubbed, translated
from saga_bus.store_sqlserver._location import Location
from saga_bus.store_sqlserver._odbc import load
from saga_bus.store_sqlserver._sessions import SETTINGS, WAIT_FOR_LOCKS, Session

__all__ = ["AttrsBefore", "Connect", "Settings", "open_given", "open_own"]

Connect = Callable[[], Any]
AttrsBefore = Mapping[int, Any] | Callable[[], Mapping[int, Any]]

_MAX_SECONDS = 86_400.0
_MAX_POOL_SIZE = 1_000


@dataclass(frozen=True)
class Settings:
    """What all connections of a store have in common.

    Args:
        pool_size: The most connections.
        connect_timeout: How long opening a connection may take, in seconds.
        command_timeout: How long a statement may take, in seconds.
        acquire_timeout: How long an operation may wait for a connection, in seconds.
        attrs_before: Connection attributes to set before connecting, or what makes them each time.

    Raises:
        InvalidSagaError: One of them makes no sense.
    """

    pool_size: int
    connect_timeout: float
    command_timeout: float
    acquire_timeout: float
    attrs_before: AttrsBefore | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if type(self.pool_size) is not int or not 1 <= self.pool_size <= _MAX_POOL_SIZE:
            raise InvalidSagaError(f"pool_size must be an int from 1 to {_MAX_POOL_SIZE}, not {self.pool_size!r}")
        for name in ("connect_timeout", "command_timeout", "acquire_timeout"):
            seconds = getattr(self, name)
            if isinstance(seconds, bool) or not isinstance(seconds, int | float):
                raise InvalidSagaError(f"{name} must be a number of seconds, not {seconds!r}")
            if not math.isfinite(seconds) or not 0 < seconds <= _MAX_SECONDS:
                raise InvalidSagaError(
                    f"{name} must be above 0 and at most {_MAX_SECONDS:.0f} seconds, not {seconds!r}"
                )
        attrs = self.attrs_before
        if attrs is not None and not isinstance(attrs, Mapping) and not callable(attrs):
            raise InvalidSagaError(f"attrs_before must be a mapping or a callable, not {type(attrs).__name__}")


def open_own(location: Location, settings: Settings) -> Session:
    """Open a connection to a place.

    Args:
        location: The place.
        settings: The store's settings.

    Raises:
        StoreUnavailableError: The server cannot be reached, or has no room.
        SagaStoreError: It cannot be opened for another reason; no message shows a password.
    """
    odbc = load()
    attrs = settings.attrs_before() if callable(settings.attrs_before) else settings.attrs_before
    try:
        connection = odbc.connect(
            location.connection_string(),
            autocommit=True,
            timeout=math.ceil(settings.connect_timeout),  # ODBC counts whole seconds
            attrs_before=dict(attrs or {}),
        )
    except odbc.Error as error:
        cause = scrubbed(error, location.secrets)
        raise translated(cause) from (cause if cause is not error else error)
    return _prepared(connection, settings)


def open_given(connect: Connect, settings: Settings) -> Session:
    """Have the caller's own function open a connection.

    Args:
        connect: Gives a new pyodbc connection, which is the store's from then on.
        settings: The store's settings.

    Raises:
        SagaStoreError: It cannot be opened.
    """
    odbc = load()
    try:
        connection = connect()
    except odbc.Error as error:
        raise translated(error) from error
    if not isinstance(connection, odbc.Connection):
        raise SagaStoreError(f"connect() must give a pyodbc connection, not {type(connection).__name__}")
    return _prepared(connection, settings)


def _prepared(connection: Any, settings: Settings) -> Session:
    odbc = load()
    try:
        connection.autocommit = True
        connection.timeout = math.ceil(settings.command_timeout)
        session = Session(connection)
    except odbc.Error as error:
        connection.close()
        raise translated(error) from error
    try:
        session.run(f"{SETTINGS}; {WAIT_FOR_LOCKS}")
    except SagaStoreError:
        session.close()
        raise
    return session

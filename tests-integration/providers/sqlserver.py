"""A SQL Server: the one that a URL names, or a container where Docker answers; none can be started without."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import quote

from providers.containers import container, docker_answers
from providers.errors import UnavailableError
from saga_bus.store import SagaStoreError
from saga_bus.store_sqlserver._location import parse_location
from saga_bus.store_sqlserver._odbc import load, newest_driver

__all__ = ["connected", "microsofts_driver", "serve_sqlserver"]

_IMAGE = "mcr.microsoft.com/mssql/server:2022-latest"
_DATABASE = "saga_bus_tests"
_PATIENCE = 120.0  # seconds
_FLAVOURS = ("debian_ubuntu", "rhel")  # there is one for musl, too


def microsofts_driver() -> str | None:
    """The library of Microsoft's ODBC driver from the distribution mssql-python-odbc, if that is installed."""
    try:
        import mssql_python_odbc  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: PLC0415
    except ImportError:
        return None
    package: str = mssql_python_odbc.__file__
    folder = Path(package).parent / "libs" / "linux"
    libraries = (library for each in _FLAVOURS for library in (folder / each).glob("x86_64/lib/libmsodbcsql*"))
    return next(map(str, libraries), None)


def connected(url: str, **options: Any) -> contextlib.closing[Any]:
    """A pyodbc connection with autocommit, closed at the end of the block.

    Args:
        url: The server.
        **options: Further arguments of pyodbc's ``connect``.
    """
    text = parse_location(url).connection_string()
    return contextlib.closing(load().connect(text, autocommit=True, timeout=10, **options))


@contextmanager
def serve_sqlserver() -> Iterator[str]:
    """Have a server up for a while; yields the URL of an administrator.

    Raises:
        UnavailableError: None can be had.
    """
    if not docker_answers():
        raise UnavailableError(
            "no SQL Server can be had here: Docker does not answer, and SAGA_TEST_SQLSERVER_URL names none "
            "(mssql://user:password@host:port/database)"
        )
    try:
        driver = microsofts_driver() or newest_driver()
    except SagaStoreError as error:
        raise UnavailableError(str(error)) from error
    password = f"Aa1-{token_hex(12)}"
    environment = {"ACCEPT_EULA": "Y", "MSSQL_SA_PASSWORD": password}
    with container(_IMAGE, 1433, environment=environment) as port:
        query = f"driver={quote(driver, safe='')}&encrypt=yes&trust_server_certificate=yes"
        _create_database(f"mssql://sa:{password}@127.0.0.1:{port}/master?{query}")
        yield f"mssql://sa:{password}@127.0.0.1:{port}/{_DATABASE}?{query}"


def _create_database(url: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            with connected(url) as connection:
                connection.execute(f"CREATE DATABASE {_DATABASE}")
        except load().Error as error:
            if time.monotonic() > deadline:
                raise UnavailableError(f"the server did not come up: {error}") from error
            time.sleep(1)
        else:
            return

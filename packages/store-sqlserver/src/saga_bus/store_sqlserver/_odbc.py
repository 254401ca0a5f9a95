"""The one place that imports pyodbc, which needs an ODBC driver manager on the machine."""

from __future__ import annotations

from typing import Any

from saga_bus.store import SagaStoreError

__all__ = ["is_freetds", "load", "newest_driver"]

_MICROSOFT = "ODBC Driver "
_FREETDS = "FreeTDS"


def load() -> Any:
    """The module ``pyodbc``.

    Raises:
        SagaStoreError: It, or the ODBC driver manager that it needs, is not there.
    """
    try:
        # Without a driver manager only the use of a store shall fail; the module's stub lacks a py.typed.
        import pyodbc  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415
    except ImportError as error:
        raise SagaStoreError(f"pyodbc cannot be loaded ({error}): install pyodbc and unixODBC") from error
    return pyodbc


def newest_driver() -> str:
    """The name of the best ODBC driver for SQL Server that is registered on this machine.

    Raises:
        SagaStoreError: There is none.
    """
    names: list[str] = load().drivers()
    microsoft = [name for name in names if name.startswith(_MICROSOFT) and name.endswith(" for SQL Server")]
    if microsoft:
        return max(microsoft, key=_number)
    if _FREETDS in names:
        return _FREETDS
    raise SagaStoreError(
        "no ODBC driver for SQL Server is registered on this machine: install 'ODBC Driver 18 for SQL Server' "
        "(msodbcsql18) or FreeTDS, or name one with ?driver=..."
    )


def is_freetds(driver: str) -> bool:
    """Whether a driver, by its name or the path of its library, is FreeTDS.

    Args:
        driver: As in ``Driver={...}``, or as the driver calls itself.
    """
    return "freetds" in driver.lower() or "tdsodbc" in driver.lower()


def _number(name: str) -> int:
    number = name.removeprefix(_MICROSOFT).partition(" ")[0]
    return int(number) if number.isdecimal() else 0

"""One module for each store: it joins the benchmark by being here and having a ``BACKEND``."""

from __future__ import annotations

import os
import pkgutil
from importlib import import_module

from bench.subjects import Backend

__all__ = ["load", "names"]

_ONLY_WHERE_A_URL_IS_GIVEN = {"sqlserver"}  # no server of these can be started on most machines


def names() -> list[str]:
    """The names of all stores that can be measured."""
    found = {module.name for module in pkgutil.iter_modules(__path__)}
    missing = {each for each in _ONLY_WHERE_A_URL_IS_GIVEN if not os.environ.get(f"SAGA_TEST_{each.upper()}_URL")}
    return sorted(found - missing)


def load(name: str) -> Backend:
    """The backend of a name."""
    backend: Backend = import_module(f"{__name__}.{name}").BACKEND
    return backend

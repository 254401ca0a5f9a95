"""One module for each store: it joins the benchmark by being here and having a ``BACKEND``."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from bench.subjects import Backend

__all__ = ["load", "names"]


def names() -> list[str]:
    """The names of all stores that can be measured."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Backend:
    """The backend of a name."""
    backend: Backend = import_module(f"{__name__}.{name}").BACKEND
    return backend

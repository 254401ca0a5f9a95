"""All cases, by group, in the order in which they are run."""

from types import ModuleType

from saga_bus.store.conformance.cases import (
    completed_ttl,
    concurrency,
    delete,
    identifiers,
    insert,
    lifecycle,
    linearizable,
    processes,
    query,
    read,
    retention,
    stateful,
    transactions,
    update,
    values,
)
from saga_bus.store.conformance.kit import Case

__all__ = ["CASES", "GROUPS"]

_MODULES: tuple[ModuleType, ...] = (
    insert,
    read,
    update,
    delete,
    values,
    identifiers,
    query,
    retention,
    completed_ttl,
    transactions,
    lifecycle,
    concurrency,
    processes,
    stateful,
    linearizable,
)

CASES: tuple[Case, ...] = tuple(
    found for module in _MODULES for found in vars(module).values() if isinstance(found, Case)
)
"""Every case of the kit."""

GROUPS: tuple[str, ...] = tuple(dict.fromkeys(found.group for found in CASES))
"""The names of the groups."""

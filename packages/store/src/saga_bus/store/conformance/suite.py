"""The kit as a pytest class."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from saga_bus.store.conformance.cases import CASES
from saga_bus.store.conformance.kit import Case, Hooks, UndeclaredError, run_case

__all__ = ["SagaStoreConformance"]


class SagaStoreConformance:
    """The base class of a store's conformance tests: subclass it and write ``open_store``.

    Every case is one test method. Each runs in an event loop of its own, so no pytest plugin is needed and
    none is in the way; a case of an ability that the store does not declare is skipped, with that reason.

    Attributes:
        open_transaction: For a store that declares ``transactions``: a method that takes a namespace and
            returns an async context manager of a `Transaction` on that place.
        secrets: Texts that no ``repr`` and no error may show, such as the password in the URL.
    """

    open_transaction: ClassVar[Any] = None
    secrets: ClassVar[tuple[str, ...]] = ()

    def open_store(self, namespace: str) -> Any:
        """Return, or await to, a store on the place that a namespace names; called again, the same place.

        Args:
            namespace: 16 lower-case letters, digits and underscores; another one is another, isolated place.
        """
        raise NotImplementedError(f"{type(self).__qualname__} must define open_store(self, namespace)")

    def hooks(self) -> Hooks:
        """What the kit gets to know of the store."""
        return Hooks(open_store=self.open_store, open_transaction=self.open_transaction, secrets=self.secrets)


def _test(chosen: Case) -> Callable[[SagaStoreConformance], None]:
    def test(self: SagaStoreConformance) -> None:
        undeclared = None
        try:
            asyncio.run(run_case(chosen, self.hooks()))
        except UndeclaredError as error:
            undeclared = str(error)
        if undeclared is not None:
            pytest.skip(f"the store does not declare {undeclared}")

    test.__name__ = f"test_{chosen.name}"
    test.__qualname__ = f"{SagaStoreConformance.__qualname__}.{test.__name__}"
    test.__doc__ = chosen.rule
    return test


def _add_tests() -> None:
    for chosen in CASES:
        setattr(SagaStoreConformance, f"test_{chosen.name}", _test(chosen))


_add_tests()

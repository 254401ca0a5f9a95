"""The cases as a pytest class."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import pytest

from saga_bus.core.conformance.cases import CASES
from saga_bus.core.conformance.kit import Kit, UnprovenError

__all__ = ["TransportConformance"]

_CASE_TIMEOUT = 120  # seconds


class TransportConformance:
    """The base class of a transport's conformance tests: subclass it and write ``open_transport``.

    Each case is one test method with an event loop of its own, so no pytest plugin is needed.

    Attributes:
        dead_letters: A method that takes the namespace and an endpoint and returns, or awaits to, the `PutAside` of
            every dead letter of that endpoint; without it the cases that need it are skipped, with that reason.
        put_garbage: A method that takes the namespace, an endpoint and bytes, and puts the bytes on the wire to that
            endpoint as anybody could who is no bus; likewise.
    """

    dead_letters: ClassVar[Any] = None
    put_garbage: ClassVar[Any] = None

    def open_transport(self, namespace: str) -> Any:
        """Return, or await to, a transport that is not started yet; called again, another client of the same place.

        Args:
            namespace: 16 lower-case letters, digits and underscores; the names of all endpoints and messages of a
                case begin with it, so a broker that all cases share does for most.
        """
        raise NotImplementedError(f"{type(self).__qualname__} must define open_transport(self, namespace)")

    def clean_up(self, namespace: str) -> Any:
        """Remove what a case left on the broker; may be awaitable. Does nothing unless you write it.

        Args:
            namespace: The case's namespace.
        """


def _test(case: Callable[[Kit], Awaitable[None]]) -> Callable[[TransportConformance], None]:
    def test(self: TransportConformance) -> None:
        missing = None
        try:
            asyncio.run(_run(case, self))
        except UnprovenError as error:
            missing = str(error)
        if missing is not None:
            pytest.skip(f"there is no {missing} hook")

    test.__name__ = f"test_{case.__name__}"
    test.__qualname__ = f"{TransportConformance.__qualname__}.{test.__name__}"
    test.__doc__ = case.__doc__
    return test


async def _run(case: Callable[[Kit], Awaitable[None]], suite: TransportConformance) -> None:
    kit = Kit(suite.open_transport, suite.dead_letters, suite.put_garbage)
    try:
        async with asyncio.timeout(_CASE_TIMEOUT):
            await case(kit)
    finally:
        await kit.close()
        answer = suite.clean_up(kit.namespace)
        if answer is not None:
            await answer


for _case in CASES:
    setattr(TransportConformance, f"test_{_case.__name__}", _test(_case))

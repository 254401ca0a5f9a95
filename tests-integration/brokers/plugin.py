"""The ``brokers`` fixture; a conftest registers this module with ``import_plugin("brokers.plugin")``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from brokers import serve_broker
from providers import UnavailableError, required_backends

__all__ = ["Brokers", "brokers"]


class Brokers:
    """The brokers of one test session, each started when a test first asks for it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._urls: dict[str, str] = {}
        self._reasons: dict[str, str] = {}

    def url(self, name: str) -> str:
        """A broker's URL; without one the test is skipped, or fails if the broker is required.

        Args:
            name: The broker's name.
        """
        if name not in self._urls and name not in self._reasons:
            try:
                self._urls[name] = self._stack.enter_context(serve_broker(name))
            except UnavailableError as error:
                self._reasons[name] = str(error)
        if name in self._urls:
            return self._urls[name]
        return self.missing(name, self._reasons[name])

    def missing(self, name: str, reason: str) -> str:
        """Skip, or fail if the broker is required.

        Args:
            name: The broker's name.
            reason: Why there is none.
        """
        if name in required_backends():
            pytest.fail(f"SAGA_TEST_REQUIRE names {name}: {reason}")
        pytest.skip(f"{name}: {reason}")

    def close(self) -> None:
        """Stop everything that was started."""
        self._stack.close()


@pytest.fixture(scope="session")
def brokers() -> Iterator[Brokers]:
    """Real brokers, started on demand and stopped at the end of the session."""
    running = Brokers()
    try:
        yield running
    finally:
        running.close()

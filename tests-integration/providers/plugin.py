"""The ``databases`` fixture; a conftest registers this module with ``import_plugin("providers.plugin")``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from providers import UnavailableError, UnknownBackendError, required_backends, serve
from providers.skipping import skip_unless_required

__all__ = ["Databases", "databases"]


class Databases:
    """The databases of one test session, each started when a test first asks for it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._urls: dict[str, str] = {}
        self._reasons: dict[str, str] = {}

    def url(self, backend: str) -> str:
        """The URL of a backend's database; without one the test is skipped, or fails if the backend is required.

        Args:
            backend: The backend's name.
        """
        if backend not in self._urls and backend not in self._reasons:
            try:
                self._urls[backend] = self._stack.enter_context(serve(backend))
            except UnavailableError as error:
                self._reasons[backend] = str(error)
        if backend in self._reasons:
            skip_unless_required(backend, self._reasons[backend])
        return self._urls[backend]

    def close(self) -> None:
        """Stop everything that was started."""
        self._stack.close()


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """Real databases, started on demand and stopped at the end of the session."""
    running = Databases()
    try:
        yield running
    finally:
        running.close()


def pytest_configure() -> None:
    """Refuse a ``SAGA_TEST_REQUIRE`` that names nothing known, so that a slip cannot let a backend go untested."""
    try:
        required_backends()
    except UnknownBackendError as error:
        raise pytest.UsageError(f"SAGA_TEST_REQUIRE: {error}") from error

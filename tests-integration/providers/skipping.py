"""What becomes of a test whose equipment is missing."""

from __future__ import annotations

from typing import NoReturn

import pytest

from providers import required_backends

__all__ = ["skip_unless_required"]


def skip_unless_required(backend: str, reason: str) -> NoReturn:
    """End a test: it is skipped, or fails if ``SAGA_TEST_REQUIRE`` names its backend.

    Args:
        backend: The name of the backend, or of the equipment.
        reason: What is missing.
    """
    if backend in required_backends():
        pytest.fail(f"SAGA_TEST_REQUIRE names {backend}: {reason}")
    pytest.skip(f"{backend}: {reason}")

"""Why there is no database."""

from __future__ import annotations

__all__ = ["UnavailableError", "UnknownBackendError"]


class UnavailableError(Exception):
    """No database of this kind can be had here; the message says why."""


class UnknownBackendError(ValueError):
    """There is no provider of this name."""

"""What a saga does when something fails, is missing or has ended."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from saga_bus.core.errors import (
    ConfigurationError,
    CorrelationError,
    PermanentError,
    SagaCompletedError,
    SagaMissingError,
)
from saga_bus.store import ConcurrencyError

__all__ = ["CompletedPolicy", "Failures", "OnCompleted", "OnMissing", "RetryPolicy"]

CompletedPolicy = Literal["keep", "delete", "archive"]
OnCompleted = Literal["dead-letter", "ignore", "restart"]
OnMissing = Literal["dead-letter", "ignore", "retry"]

_FIRST_CONFLICT_PAUSE = 0.002  # seconds; somebody else was faster, so there is nothing to wait for but the others
_LONGEST_CONFLICT_PAUSE = 0.25
_FINAL = (PermanentError, ConfigurationError, CorrelationError, SagaCompletedError)


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often a message is tried before it goes to the dead letters, and how long between.

    Each kind of failure has a bound of its own. Pauses double from the first to the longest, and each is
    shortened by up to a half at random, so that workers that failed together do not come back together.

    Args:
        attempts: The most runs of a handler that raises, or of anything that fails otherwise; 1 for no retry.
        conflicts: The most conflicts with other writers of the saga, duplicate starts among them; each is
            reloaded after a few milliseconds.
        unavailable: The most failures of a store or a transport that cannot be reached.
        first_pause: Before the second attempt.
        longest_pause: Between later ones.
    """

    attempts: int = 5
    conflicts: int = 50
    unavailable: int = 15
    first_pause: timedelta = timedelta(milliseconds=100)
    longest_pause: timedelta = timedelta(seconds=15)

    def __post_init__(self) -> None:
        for name, least in (("attempts", 1), ("conflicts", 0), ("unavailable", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigurationError(f"RetryPolicy.{name} must be an int of at least {least}, not {value!r}")
        for name in ("first_pause", "longest_pause"):
            if not isinstance(getattr(self, name), timedelta):
                raise ConfigurationError(f"RetryPolicy.{name} must be a timedelta, not {getattr(self, name)!r}")
        if not timedelta(0) <= self.first_pause <= self.longest_pause:
            raise ConfigurationError("RetryPolicy: 0 <= first_pause <= longest_pause must hold")


class Failures:
    """The failures of one message so far, and what its policy says to each.

    Args:
        policy: The policy.
        retry_missing: Whether a message without its saga is tried again.
    """

    __slots__ = ("_policy", "_retry_missing", "conflicts", "others", "unavailable")

    def __init__(self, policy: RetryPolicy, *, retry_missing: bool = False) -> None:
        self._policy = policy
        self._retry_missing = retry_missing
        self.conflicts = 0
        self.unavailable = 0
        self.others = 0

    @property
    def count(self) -> int:
        """How many there were."""
        return self.conflicts + self.unavailable + self.others

    def pause_after(self, error: Exception) -> float | None:
        """Count a failure.

        Args:
            error: What was raised.

        Returns:
            The seconds to wait before the next attempt, None when there is none.
        """
        policy = self._policy
        if isinstance(error, ConcurrencyError):
            self.conflicts += 1
            return (
                None
                if self.conflicts > policy.conflicts
                else _pause(self.conflicts, _FIRST_CONFLICT_PAUSE, _LONGEST_CONFLICT_PAUSE)
            )
        first, longest = policy.first_pause.total_seconds(), policy.longest_pause.total_seconds()
        if getattr(error, "retryable", False):
            self.unavailable += 1
            return None if self.unavailable > policy.unavailable else _pause(self.unavailable, first, longest)
        self.others += 1
        if isinstance(error, _FINAL) or (isinstance(error, SagaMissingError) and not self._retry_missing):
            return None
        return None if self.others >= policy.attempts else _pause(self.others, first, longest)


def _pause(nth: int, first: float, longest: float) -> float:
    return min(longest, first * 2.0 ** min(nth - 1, 40)) * random.uniform(0.5, 1)  # noqa: S311 - jitter, not a secret

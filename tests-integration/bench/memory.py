"""Whether a process grows while it works: its resident memory after each tenth of many cycles."""

from __future__ import annotations

import gc

from bench.measure import memory_mb, repeat
from bench.operations import Orders

__all__ = ["most_growth_mb", "resident"]

_TENTHS = 10
_SLACK_MB = 3.0
_SLACK_SHARE = 0.05


async def resident(orders: Orders, callers: int, operations: int) -> list[float]:
    """Load, change and save sagas, and keep nothing of it.

    Args:
        orders: The orders of a process that has done nothing else.
        callers: How many at the same time.
        operations: How many cycles, rounded up to the same number for each caller in each tenth.

    Returns:
        The resident set after each tenth, in MB.
    """
    steps = orders.steps("cycle", callers)
    found = []
    for _ in range(_TENTHS):
        await repeat(steps, -(-operations // _TENTHS))
        gc.collect()  # what only waits for the collector does not stay
        found.append(memory_mb())
    return found


def most_growth_mb(first: float) -> float:
    """How much larger the last reading may be than the first one.

    An object that stays takes 24 bytes at least, with its place in a list: 11 MB for one in each of the 450,000 cycles
    that follow the first tenth of 500,000. The bound of a process with 60 MB is 6; caches that fill
    up and allocators have moved 1.6 MB of the PostgreSQL store's, and 3 of raw asyncpg's.

    Args:
        first: The resident set after the first tenth, in MB.
    """
    return _SLACK_MB + _SLACK_SHARE * first

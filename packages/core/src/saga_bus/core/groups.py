"""The same for many things, a group at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

__all__ = ["for_each"]

ItemT = TypeVar("ItemT")


async def for_each(items: Sequence[ItemT], function: Callable[[ItemT], Awaitable[int]], *, at_once: int = 32) -> int:
    """Call a function for each of many things, several at once, which stores put into one round trip.

    A failure stops none of its group; then it is raised, and the groups that follow are left out.

    Args:
        items: The things.
        function: What is called with each.
        at_once: The size of a group.

    Returns:
        The sum of what the calls return.
    """
    total = 0
    for start in range(0, len(items), at_once):
        calls = (function(item) for item in items[start : start + at_once])
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer
            total += answer
    return total

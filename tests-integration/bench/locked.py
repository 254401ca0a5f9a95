"""The latency of other sagas while another transaction holds a row locked, and a caller waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import msgspec

from bench.measure import Measured, drive_warm
from bench.operations import BenchmarkError, Orders
from bench.workload import saga_id_of

__all__ = ["MOST_RATIO", "Held", "measure_held"]

MOST_RATIO = 3.0  # of the p99 with a row locked to that without: for every store that can be measured so
_PATIENCE = 5.0  # seconds, for what ends at once; with a round of a second, less than any store waits for a lock

Hold = Callable[[str], AbstractAsyncContextManager[None]]


class Held(msgspec.Struct, frozen=True):
    """A round of cycles without a locked row, and one with it."""

    free: Measured
    locked: Measured

    @property
    def ratio(self) -> float:
        """The 99th percentile with it over that without."""
        return self.locked.p99_us / self.free.p99_us


async def measure_held(
    orders: Orders, hold: Hold, callers: int, *, seconds: float | None = None, operations: int | None = None
) -> Held:
    """Measure cycles without and with a row locked, which one more caller wants to update.

    Args:
        orders: The orders.
        hold: Holds the row of a saga locked in a transaction of its own.
        callers: How many callers have cycles of other sagas.
        seconds: How long each of the two rounds takes.
        operations: How many operations it has instead.

    Raises:
        BenchmarkError: The others waited for the row too, or the one caller did not, or not with success.
    """
    others, number, update = orders.steps_and_one_apart("cycle", callers)
    free = await drive_warm(others, seconds=seconds, operations=operations)
    async with hold(saga_id_of(number)):
        waiting = asyncio.ensure_future(update())  # at once with the others, whose group it may be in
        try:
            # Callers that are slowed down as much as they may be have ended by then.
            async with asyncio.timeout(_PATIENCE + MOST_RATIO * free.seconds):
                locked = await drive_warm(others, seconds=seconds, operations=operations)
        except TimeoutError:
            raise BenchmarkError(f"other sagas waited for order {number}, which is locked elsewhere") from None
        if waiting.done():
            raise BenchmarkError(f"the update of order {number}, which is locked elsewhere, ended") from (
                waiting.exception()
            )
    try:
        await asyncio.wait_for(waiting, _PATIENCE)
    except TimeoutError:
        raise BenchmarkError(f"order {number} is locked no more, but its update does not end") from None
    return Held(free, locked)

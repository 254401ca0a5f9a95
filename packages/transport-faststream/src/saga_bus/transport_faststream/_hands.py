"""The parcels that one endpoint has in hand."""

from __future__ import annotations

import asyncio

from saga_bus.transport_faststream._link import Parcel, Take

__all__ = ["Hands"]


class Hands:
    """Takes parcels, so many at once, and holds a few more ready.

    Args:
        take: Called with each parcel.
        concurrency: The most parcels taken at once.
        prefetch: How many more wait their turn.
    """

    def __init__(self, take: Take, concurrency: int, prefetch: int) -> None:
        self._take = take
        self._turn = asyncio.Semaphore(concurrency)
        self.capacity = concurrency + prefetch
        self._held: dict[asyncio.Task[None], Parcel] = {}
        self._freed = asyncio.Event()

    @property
    def held(self) -> list[Parcel]:
        """What is in hand or waits its turn."""
        return list(self._held.values())

    async def room(self) -> int:
        """Wait until there is room for a parcel.

        Returns:
            For how many.
        """
        while len(self._held) >= self.capacity:
            self._freed.clear()
            await self._freed.wait()
        return self.capacity - len(self._held)

    def add(self, parcel: Parcel) -> None:
        """Take a parcel as soon as it is its turn.

        Args:
            parcel: What arrived.
        """
        task = asyncio.create_task(self._run(parcel))
        self._held[task] = parcel
        task.add_done_callback(self._done)

    async def drop(self) -> list[Parcel]:
        """Stop taking.

        Returns:
            What was in hand, unended.
        """
        held = dict(self._held)
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        return list(held.values())

    async def _run(self, parcel: Parcel) -> None:
        async with self._turn:
            await self._take(parcel)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._held[task]
        self._freed.set()

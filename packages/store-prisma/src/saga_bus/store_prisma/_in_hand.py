"""What is in hand when a store is closed."""

from __future__ import annotations

import asyncio
from types import TracebackType

__all__ = ["InHand"]


class InHand:
    """Counts the operations that are under way, each a ``with`` block, so that closing can wait for them."""

    def __init__(self) -> None:
        self._count = 0
        self._joining: list[asyncio.Future[None]] = []

    def __enter__(self) -> None:
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._count -= 1
        if self._count == 0:
            for idle in self._joining:
                if not idle.done():
                    idle.set_result(None)
            self._joining.clear()

    async def join(self) -> None:
        """Wait until nothing is under way."""
        if self._count:
            idle = asyncio.get_running_loop().create_future()
            self._joining.append(idle)
            await idle

"""Opening lazily and once, closing once, refusing use after it."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from saga_bus.store.errors import StoreClosedError

__all__ = ["OpensOnce"]


class OpensOnce:
    """Something that opens on first use, safely when many tasks race, or with ``async with``."""

    def __init__(self) -> None:
        self._opening = asyncio.Lock()
        self._is_open = False
        self._is_closed = False

    async def __aenter__(self) -> Self:
        await self._ensure_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Finish what is in hand and close what the store opened itself; closing twice is no error."""
        async with self._opening:
            was_open, self._is_open, self._is_closed = self._is_open, False, True
            if was_open:
                await self._close()

    async def _ensure_open(self) -> None:
        if self._is_open:
            return
        async with self._opening:
            if self._is_closed:
                raise StoreClosedError(f"{type(self).__qualname__} is closed")
            if not self._is_open:
                await self._open()
                self._is_open = True

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise StoreClosedError(f"{type(self).__qualname__} is closed")

    async def _open(self) -> None:
        """Open what the store owns; called once, before the first operation."""

    async def _close(self) -> None:
        """Close what the store owns; called at most once, and only after ``_open``."""

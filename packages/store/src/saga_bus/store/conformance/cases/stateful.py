"""Random sequences of operations against a plain model."""

from __future__ import annotations

import asyncio
from typing import Any

from saga_bus.store.conformance.kit import Kit, case, close_store
from saga_bus.store.conformance.machine import run_machine

EXAMPLES = 50
STEPS = 30


@case()
async def behaves_like_the_model(kit: Kit) -> None:
    """After any sequence of operations the store holds, finds and counts what a plain model of it does."""
    places: list[str] = []

    async def open_fresh() -> Any:
        # Called in the machine's own event loop, so the kit must not keep the store for this one.
        places.append(kit.place())
        return await kit.client(places[-1], keep=False)

    await asyncio.to_thread(run_machine, open_fresh, close_store, examples=EXAMPLES, steps=STEPS)

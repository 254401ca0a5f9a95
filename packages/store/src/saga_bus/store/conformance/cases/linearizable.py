"""Concurrent histories have an order that explains every answer."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from saga_bus.store.conformance import expect
from saga_bus.store.conformance.history import History
from saga_bus.store.conformance.kit import Kit, case
from saga_bus.store.conformance.linearizability import check
from saga_bus.store.conformance.states import MAIN, KitState, new_state
from saga_bus.store.state import SagaMetadata

WORKERS = 6
STEPS = 12
SAGAS = 3


class Worker:
    """One caller that does random things to a few sagas and remembers what it saw last.

    Args:
        number: Which worker.
        store: Its client.
        histories: The recorder of each saga.
        conditional: Whether deletes may expect a version.
        seed: Makes its choices.
    """

    def __init__(self, number: int, store: Any, histories: list[History], *, conditional: bool, seed: int) -> None:
        self._number = number
        self._store = store
        self._histories = histories
        self._conditional = conditional
        self._random = random.Random(seed)  # noqa: S311 - repeatable choices, not a secret
        self._seen = [0] * len(histories)

    async def run(self) -> None:
        """Take every step."""
        for step in range(STEPS):
            saga = self._random.randrange(len(self._histories))
            kind = self._random.choices(("insert", "read", "update", "delete"), (2, 4, 6, 1))[0]
            await getattr(self, f"_{kind}")(saga, f"{self._number}.{step}")
            if self._random.random() < 0.3:
                await asyncio.sleep(0)

    async def _insert(self, saga: int, value: str) -> None:
        state = new_state(value, metadata=SagaMetadata.fresh(f"id-{saga}"))
        call = self._store.insert(MAIN, f"order-{saga}", state)
        await self._histories[saga].run(self._number, "insert", call, value=value)

    async def _read(self, saga: int, _: str) -> None:
        if self._random.random() < 0.5:
            call = self._store.get_by_id(MAIN, f"id-{saga}")
        else:
            call = self._store.get_by_correlation_id(MAIN, f"order-{saga}")
        done = await self._histories[saga].run(self._number, "read", call)
        if done is not None and done.result is not None:
            self._seen[saga] = done.result[0]

    async def _update(self, saga: int, value: str) -> None:
        expected = self._seen[saga]
        fresh = SagaMetadata.fresh(f"id-{saga}")
        metadata = SagaMetadata(
            saga_id=fresh.saga_id, version=expected + 1, created_at=fresh.created_at, updated_at=fresh.updated_at
        )
        call = self._store.update(MAIN, new_state(value, metadata=metadata), expected)
        done = await self._histories[saga].run(self._number, "update", call, value=value, expected_version=expected)
        if done is not None:
            self._seen[saga] = expected + 1 if done.outcome == "ok" else done.actual_version or 0

    async def _delete(self, saga: int, _: str) -> None:
        expected = self._seen[saga] if self._conditional and self._random.random() < 0.7 else None
        options = {} if expected is None else {"expected_version": expected}
        call = self._store.delete(MAIN, f"id-{saga}", **options)
        await self._histories[saga].run(self._number, "delete", call, expected_version=expected)


def _value(state: KitState) -> str:
    return state.note


@case()
async def histories_have_an_order(kit: Kit) -> None:
    """Whatever many callers on two clients do at once, one order of single steps explains all their answers."""
    for seed in range(4):
        namespace = kit.place()
        clients = [await kit.client(namespace), await kit.client(namespace)]
        histories = [History(_value) for _ in range(SAGAS)]
        workers = [
            Worker(
                number,
                clients[number % 2],
                histories,
                conditional=kit.capabilities.conditional_delete,
                seed=seed * WORKERS + number,
            )
            for number in range(WORKERS)
        ]
        await asyncio.gather(*(worker.run() for worker in workers))
        for history in histories:
            violation = check(history.operations)
            expect.true(violation is None, str(violation))

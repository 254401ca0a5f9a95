"""The in-memory store, beside a plain dict of the same documents."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.subjects import StoreSubject, Subject, Target
from bench.workload import OrderState, correlation_id_of, state_of
from saga_bus.store_inmemory import InMemorySagaStore

__all__ = ["BACKEND"]


class InMemorySubject(StoreSubject):
    """The store, filled as it opens: nothing of it outlives the process."""

    def __init__(self, rows: int) -> None:
        self.memory: InMemorySagaStore[OrderState] = InMemorySagaStore()
        super().__init__(self.memory)
        self.rows = rows

    async def open(self) -> None:
        await super().open()
        for number in range(self.rows):
            await self.insert(correlation_id_of(number), state_of(number, 0))

    async def totals(self) -> tuple[int, int]:
        stored = self.memory._database.by_id.values()  # get_all() would decode every saga
        return len(stored), sum(each.row.version for each in stored)


class DictSubject:
    """Encoded documents in two dicts and a sorted list: the least that the same work can cost."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.encode = msgspec.json.Encoder().encode
        self.decode = msgspec.json.Decoder(OrderState).decode
        self.by_id: dict[str, tuple[int, bytes]] = {}
        self.ids: dict[str, str] = {}
        self.order: list[tuple[float, str]] = []

    async def open(self) -> None:
        for number in range(self.rows):
            await self.insert(correlation_id_of(number), state_of(number, 0))

    async def close(self) -> None:
        self.by_id.clear()

    async def insert(self, correlation_id: str, state: OrderState) -> None:
        saga_id = state.metadata.saga_id
        if saga_id in self.by_id or correlation_id in self.ids:
            raise LookupError(f"{saga_id} or {correlation_id} is taken")
        self.by_id[saga_id] = (0, self.encode(state))
        self.ids[correlation_id] = saga_id
        self.order.append((state.metadata.created_at.timestamp(), saga_id))  # orders are made in time order

    async def get_by_id(self, saga_id: str) -> OrderState | None:
        found = self.by_id.get(saga_id)
        return None if found is None else self.decode(found[1])

    async def get_by_correlation_id(self, correlation_id: str) -> OrderState | None:
        saga_id = self.ids.get(correlation_id)
        return None if saga_id is None else await self.get_by_id(saga_id)

    async def update(self, state: OrderState, expected_version: int) -> None:
        saga_id = state.metadata.saga_id
        if self.by_id[saga_id][0] != expected_version:
            raise LookupError(f"{saga_id} has another version")
        self.by_id[saga_id] = (expected_version + 1, self.encode(state))

    async def find(self, cursor: Any, limit: int) -> tuple[Sequence[OrderState], Any]:
        end = len(self.order) if cursor is None else bisect_left(self.order, cursor)
        entries = self.order[max(0, end - limit) : end]
        states = [self.decode(self.by_id[saga_id][1]) for _, saga_id in reversed(entries)]
        return states, entries[0] if end > limit else None

    async def totals(self) -> tuple[int, int]:
        return len(self.by_id), sum(version for version, _ in self.by_id.values())


class InMemoryBackend:
    """Sagas in memory."""

    name = "inmemory"
    variants = ("memory",)
    peers = ("dict",)
    packages = ("saga-bus-store-inmemory",)
    targets = (
        Target("throughput", 100_000, "get_by_id", "memory"),
        Target("throughput", 100_000, "get_by_correlation_id", "memory"),
        Target("throughput", 50_000, "update", "memory"),
    )

    def versions(self) -> dict[str, str]:
        return {}

    async def prepare(self, directory: Path, rows: int) -> None:
        """Nothing to prepare: subjects fill themselves."""

    def subject(self, name: str, variant: str, directory: Path, rows: int) -> Subject:  # noqa: ARG002
        return InMemorySubject(rows) if name == "store" else DictSubject(rows)


BACKEND = InMemoryBackend()

"""The in-memory store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import TypeVar

from saga_bus.store import (
    BaseSagaStore,
    FoundRow,
    InvalidSagaError,
    SagaFilter,
    SagaQuery,
    SagaRecord,
    SagaRow,
    StateCodec,
    StoreCapabilities,
    version_conflict,
)
from saga_bus.store_inmemory._database import Database, shared_database

__all__ = ["InMemorySagaStore"]

StateT = TypeVar("StateT")


class InMemorySagaStore(BaseSagaStore[StateT]):
    """Sagas in this process's memory, kept encoded, so that it behaves like the other stores.

    It belongs to one event loop, and nothing of it survives the process.

    Args:
        url: ``memory://`` for a place of the store's own; ``memory://name`` for one that all stores of that
            name in this process share, as long as one of them lives.
        state_types: The state type of each saga name.
        codec: Replaces the JSON codec.

    Raises:
        InvalidSagaError: The URL is none of these.
    """

    capabilities = StoreCapabilities(conditional_delete=True, query=True, retention=True, ping=True)

    def __init__(
        self,
        url: str = "memory://",
        *,
        state_types: Mapping[str, type] | None = None,
        codec: StateCodec | None = None,
    ) -> None:
        super().__init__(state_types=state_types, codec=codec)
        if not isinstance(url, str) or not url.startswith("memory://"):
            raise InvalidSagaError("the URL of an in-memory store is memory:// or memory://name")
        self._name = name = url.removeprefix("memory://")
        self._database = shared_database(name) if name else Database()

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}('memory://{self._name}')"

    @property
    def size(self) -> int:
        """How many sagas there are."""
        return len(self._database.by_id)

    def clear(self) -> None:
        """Remove every saga."""
        self._database.clear()

    def has(self, saga_name: str, saga_id: str) -> bool:
        """Whether there is such a saga.

        Args:
            saga_name: The saga's name.
            saga_id: The saga's id.
        """
        return (saga_name, saga_id) in self._database.by_id

    def get_all(self, saga_name: str | None = None) -> list[SagaRecord[StateT]]:
        """Every saga, in the order of their insertion.

        Args:
            saga_name: Only sagas of this name.
        """
        return [
            SagaRecord(
                stored.row.saga_name,
                stored.correlation_id,
                self._codec.decode(stored.row.saga_name, stored.row.document),
            )
            for stored in self._database.matching(SagaFilter(saga_name=saga_name))
        ]

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        self._database.insert(row, correlation_id)

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        stored = self._database.by_id.get((row.saga_name, row.saga_id))
        if stored is None or stored.row.version != expected_version:
            raise version_conflict(
                row.saga_name,
                row.saga_id,
                expected_version=expected_version,
                actual_version=None if stored is None else stored.row.version,
            )
        self._database.replace(stored, row)

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        stored = self._database.by_id.get((saga_name, saga_id))
        return None if stored is None else stored.row.document

    async def _get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        stored = self._database.by_correlation.get((saga_name, correlation_id))
        return None if stored is None else stored.row.document

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        stored = self._database.by_id.get((saga_name, saga_id))
        if expected_version is not None and (stored is None or stored.row.version != expected_version):
            raise version_conflict(
                saga_name,
                saga_id,
                expected_version=expected_version,
                actual_version=None if stored is None else stored.row.version,
            )
        if stored is not None:
            self._database.remove(stored)

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        return self._database.page(query)

    async def _count(self, where: SagaFilter) -> int:
        return sum(1 for _ in self._database.matching(where))

    async def _purge(self, saga_name: str, before: datetime, batch_size: int) -> int:
        old = SagaFilter(saga_name=saga_name, completed=True, updated_before=before)
        batch = list(islice(self._database.matching(old), batch_size))
        for stored in batch:
            self._database.remove(stored)
        await asyncio.sleep(0)  # other tasks get a turn between two batches
        return len(batch)

    async def _ping(self) -> Sequence[str]:
        return ()

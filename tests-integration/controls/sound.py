"""The correct stores that the broken ones are made from; the kit passes each of them."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from saga_bus.store import FoundRow, JsonStateCodec, SagaFilter, SagaQuery, SagaRow
from saga_bus.store_inmemory import InMemorySagaStore
from saga_bus.store_inmemory._database import Database, StoredRow
from saga_bus.store_sqlite import SqliteSagaStore

__all__ = [
    "SOUND",
    "CodecStore",
    "ExpiringStore",
    "FilteringStore",
    "KeyingStore",
    "LaggingStore",
    "LimitedStore",
    "RewritingStore",
    "put",
]


def put(database: Database, row: SagaRow, correlation_id: str) -> None:
    """Write a row under both its keys, whatever is there.

    Args:
        database: Where to.
        row: The row.
        correlation_id: Its correlation id.
    """
    stored = StoredRow(row, correlation_id)
    database.by_id[row.saga_name, row.saga_id] = stored
    database.by_correlation[row.saga_name, correlation_id] = stored
    database.replace(stored, row)  # which forgets the sorted orders


class RewritingStore(InMemorySagaStore[Any]):
    """A place to change documents and rows as they are written."""

    def document(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of a document, as they are to be written."""
        return fields

    def rewritten(self, row: SagaRow) -> SagaRow:
        """A row, as it is to be written."""
        fields = self.document(msgspec.json.decode(row.document))
        return msgspec.structs.replace(row, document=msgspec.json.encode(fields))

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        await super()._insert(self.rewritten(row), correlation_id)

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        await super()._update(self.rewritten(row), expected_version)


class KeyingStore(InMemorySagaStore[Any]):
    """A place to change keys before they reach the indexes."""

    def name_key(self, saga_name: str) -> str:
        """What a saga name becomes."""
        return saga_name

    def id_key(self, saga_id: str) -> str:
        """What an id becomes."""
        return saga_id

    def correlation_key(self, correlation_id: str) -> str:
        """What a correlation id becomes."""
        return correlation_id

    def _keyed(self, row: SagaRow) -> SagaRow:
        return msgspec.structs.replace(row, saga_name=self.name_key(row.saga_name), saga_id=self.id_key(row.saga_id))

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        await super()._insert(self._keyed(row), self.correlation_key(correlation_id))

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        await super()._update(self._keyed(row), expected_version)

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        return await super()._get_by_id(self.name_key(saga_name), self.id_key(saga_id))

    async def _get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        return await super()._get_by_correlation_id(self.name_key(saga_name), self.correlation_key(correlation_id))

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        await super()._delete(self.name_key(saga_name), self.id_key(saga_id), expected_version)


class CodecStore(InMemorySagaStore[Any]):
    """A place for another codec, whose documents are not tried out before they are written."""

    codec_type: type[JsonStateCodec] = JsonStateCodec

    def __init__(self, url: str) -> None:
        super().__init__(url, codec=self.codec_type())

    def _refuse_unreadable(self, saga_name: str, state: Any, document: bytes) -> None:
        pass


class FilteringStore(InMemorySagaStore[Any]):
    """A place to change what a search asks for."""

    def where(self, where: SagaFilter) -> SagaFilter:
        """The filter that is really used."""
        return where

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        return await super()._find(msgspec.structs.replace(query, where=self.where(query.where)))

    async def _count(self, where: SagaFilter) -> int:
        return await super()._count(self.where(where))


class LimitedStore(InMemorySagaStore[Any]):
    """A store that takes states of up to 400,000 bytes."""

    capabilities = replace(InMemorySagaStore.capabilities, max_state_bytes=400_000)


TTL = timedelta(seconds=0.2)

_deadlines: WeakKeyDictionary[Database, dict[tuple[str, str], float]] = WeakKeyDictionary()


class ExpiringStore(InMemorySagaStore[Any]):
    """A store whose completed sagas expire by themselves."""

    capabilities = replace(InMemorySagaStore.capabilities, completed_ttl=TTL)

    @property
    def deadlines(self) -> dict[tuple[str, str], float]:
        """When the sagas of this place expire, in the time of `time.monotonic`."""
        return _deadlines.setdefault(self._database, {})

    def watch(self, row: SagaRow) -> None:
        """Set or clear the deadline of a saga that was just written."""
        key = (row.saga_name, row.saga_id)
        if row.is_completed:
            self.deadlines[key] = time.monotonic() + TTL.total_seconds()
        else:
            self.deadlines.pop(key, None)

    def expire(self, key: tuple[str, str]) -> None:
        """Remove a saga whose time has come."""
        stored = self._database.by_id.get(key)
        if stored is not None:
            self._database.remove(stored)

    def _sweep(self) -> None:
        now = time.monotonic()
        for key in [key for key, deadline in self.deadlines.items() if deadline <= now]:
            del self.deadlines[key]
            self.expire(key)

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        self._sweep()
        await super()._insert(row, correlation_id)
        self.watch(row)

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        self._sweep()
        await super()._update(row, expected_version)
        self.watch(row)

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        self._sweep()
        return await super()._get_by_id(saga_name, saga_id)

    async def _get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        self._sweep()
        return await super()._get_by_correlation_id(saga_name, correlation_id)

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        self._sweep()
        await super()._delete(saga_name, saga_id, expected_version)
        self.deadlines.pop((saga_name, saga_id), None)


Key = tuple[str, str]


class _Changes(defaultdict[Key, list[tuple[float, StoredRow | None]]]):
    """When the index of a place learns what of each saga; None for that it is gone."""

    def __init__(self) -> None:
        super().__init__(list)


_changes: WeakKeyDictionary[Database, _Changes] = WeakKeyDictionary()


class LaggingStore(InMemorySagaStore[Any]):
    """A store whose searches read an index that learns of each write a moment later."""

    capabilities = replace(InMemorySagaStore.capabilities, index_lag=timedelta(seconds=0.05))
    lag = 0.03  # seconds

    def lag_of(self, saga_id: str) -> float:
        """How many seconds later the index learns of a saga; not of all at the same time, as with partitions."""
        return self.lag * (1 + sum(saga_id.encode()) % 3) / 3

    @property
    def index(self) -> Database:
        """What the index knows by now."""
        now, known = time.monotonic(), Database()
        for key, changes in _changes.setdefault(self._database, _Changes()).items():
            latest = next((stored for when, stored in reversed(changes) if when <= now), None)
            if latest is not None:
                known.by_id[key] = latest
        return known

    def changed(self, key: Key) -> None:
        """Tell the index of a saga that was just written or deleted."""
        stored = self._database.by_id.get(key)
        news = None if stored is None else StoredRow(stored.row, stored.correlation_id)
        changes = _changes.setdefault(self._database, _Changes())
        changes[key].append((time.monotonic() + self.lag_of(key[1]), news))

    def doomed(self, old: SagaFilter) -> Iterator[StoredRow]:
        """What a purge deletes: what the index knows of and is still old."""
        known = {(entry.row.saga_name, entry.row.saga_id) for entry in self.index.matching(old)}
        now = self._database.matching(old)
        return (stored for stored in now if (stored.row.saga_name, stored.row.saga_id) in known)

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        await super()._insert(row, correlation_id)
        self.changed((row.saga_name, row.saga_id))

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        await super()._update(row, expected_version)
        self.changed((row.saga_name, row.saga_id))

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        await super()._delete(saga_name, saga_id, expected_version)
        self.changed((saga_name, saga_id))

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        return self.index.page(query)

    async def _count(self, where: SagaFilter) -> int:
        return sum(1 for _ in self.index.matching(where))

    async def _purge(self, saga_name: str, before: datetime, batch_size: int) -> int:
        old = SagaFilter(saga_name=saga_name, completed=True, updated_before=before)
        batch = list(islice(self.doomed(old), batch_size))
        for stored in batch:
            self._database.remove(stored)
            self.changed((stored.row.saga_name, stored.row.saga_id))
        await asyncio.sleep(0)
        return len(batch)


SOUND: tuple[type[Any], ...] = (
    RewritingStore,
    KeyingStore,
    CodecStore,
    FilteringStore,
    LimitedStore,
    ExpiringStore,
    LaggingStore,
    InMemorySagaStore,
    SqliteSagaStore,
)
"""The sound bases, the particular ones first."""

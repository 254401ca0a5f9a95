"""Stores that load sagas wrongly."""

from __future__ import annotations

import asyncio
from typing import Any

from controls.registry import fails
from saga_bus.store import SagaNotFoundError, SagaRow
from saga_bus.store_inmemory import InMemorySagaStore
from saga_bus.store_inmemory._database import StoredRow


@fails("read_absent_is_none", says="SagaNotFoundError")
class AbsentRaises(InMemorySagaStore[Any]):
    """Looking up an id that is not there is an error."""

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        document = await super()._get_by_id(saga_name, saga_id)
        if document is None:
            raise SagaNotFoundError(saga_name=saga_name, saga_id=saga_id)
        return document


@fails("read_absent_is_none", says="under another saga name, by correlation id: expected None")
class NameIgnoredInLookup(InMemorySagaStore[Any]):
    """A look-up by correlation id finds the sagas of every name."""

    async def _get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        names = {name for name, known in self._database.by_correlation if known == correlation_id}
        found = saga_name if saga_name in names else min(names, default=saga_name)
        return await super()._get_by_correlation_id(found, correlation_id)


@fails("read_keys_are_not_mixed_up", says="a correlation id looked up as an id: expected None")
class KeysMixedUp(InMemorySagaStore[Any]):
    """A look-up by id falls back on the correlation ids."""

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        document = await super()._get_by_id(saga_name, saga_id)
        return document or await super()._get_by_correlation_id(saga_name, saga_id)


@fails("read_refuses_bad_keys", says="get_by_id with a bad key: expected InvalidSagaError, but nothing was raised")
class BadKeysLookedUp(InMemorySagaStore[Any]):
    """Looking up an empty id is taken for looking up nothing."""

    async def get_by_id(self, saga_name: str, saga_id: str) -> Any:
        return await super().get_by_id(saga_name, saga_id) if saga_id else None


class _Remembering(InMemorySagaStore[Any]):
    """Remembers the object that was read or written last, by the document it stands for."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._objects: dict[bytes, Any] = {}

    def _remembered(self, document: bytes | None, state: Any) -> Any:
        return state if document is None else self._objects.setdefault(document, state)


@fails("read_results_are_copies", says="two reads returned the same object")
class LiveObjects(_Remembering):
    """Two reads of one version share one live object."""

    async def get_by_id(self, saga_name: str, saga_id: str) -> Any:
        state = await super().get_by_id(saga_name, saga_id)
        return self._remembered(await self._get_by_id(saga_name, saga_id), state)


@fails("read_arguments_are_copied", says="after the inserted object was changed")
class ArgumentsKept(_Remembering):
    """The object that was inserted is kept, and changes with its owner's."""

    async def insert(self, saga_name: str, correlation_id: str, state: Any) -> None:
        await super().insert(saga_name, correlation_id, state)
        self._objects[self._codec.encode(state)] = state

    async def get_by_correlation_id(self, saga_name: str, correlation_id: str) -> Any:
        state = await super().get_by_correlation_id(saga_name, correlation_id)
        kept = self._objects.get(await self._get_by_correlation_id(saga_name, correlation_id) or b"")
        return state if kept is None else kept


@fails("read_sees_own_writes", says="right after the update, by correlation id")
class LaggingIndex(InMemorySagaStore[Any]):
    """The correlation index follows an update only later (eventual consistency)."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._index: dict[tuple[str, str], bytes | None] = {}

    async def _get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        before = self._index.get((saga_name, correlation_id))
        self._index[saga_name, correlation_id] = await super()._get_by_correlation_id(saga_name, correlation_id)
        return before or self._index[saga_name, correlation_id]


@fails("read_second_client_sees_acknowledged_writes", says="another client, by id: the saga is not there")
class StaleReplica(InMemorySagaStore[Any]):
    """A client sees its own writes, but those of others only when it looks a second time."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._own: set[bytes] = set()
        self._seen: set[bytes] = set()

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        await super()._insert(row, correlation_id)
        self._own.add(row.document)

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        await super()._update(row, expected_version)
        self._own.add(row.document)

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        document = await super()._get_by_id(saga_name, saga_id)
        if document is None or document in self._own or document in self._seen:
            return document
        self._seen.add(document)
        return None


@fails("read_second_client_sees_acknowledged_writes", says="another client, by id: the state differs; metadata.version")
class CachingClient(InMemorySagaStore[Any]):
    """A client keeps what it has read and does not notice the writes of others."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._cache: dict[tuple[str, str], bytes] = {}

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        if (saga_name, saga_id) not in self._cache:
            document = await super()._get_by_id(saga_name, saga_id)
            if document is None:
                return None
            self._cache[saga_name, saga_id] = document
        return self._cache[saga_name, saga_id]

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        self._cache.pop((row.saga_name, row.saga_id), None)
        await super()._update(row, expected_version)

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        self._cache.pop((saga_name, saga_id), None)
        await super()._delete(saga_name, saga_id, expected_version)


@fails("read_places_are_isolated", says="another place, by id: expected None")
class OnePlaceForAll(InMemorySagaStore[Any]):
    """The configured prefix is ignored: all places are one."""

    def __init__(self, url: str) -> None:
        super().__init__(url.partition("_")[0])


@fails("concurrency_readers_never_go_back", says="a reader saw version")
class TwoCopies(InMemorySagaStore[Any]):
    """The state is kept in two copies, of which an update writes one after the other."""

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        stored = self._database.by_id[row.saga_name, row.saga_id]
        self._database.by_correlation[row.saga_name, stored.correlation_id] = StoredRow(
            stored.row, stored.correlation_id
        )
        await super()._update(row, expected_version)
        await asyncio.sleep(0)
        self._database.by_correlation[row.saga_name, stored.correlation_id] = stored

"""Stores that save new sagas wrongly."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from controls.registry import fails
from controls.sound import RewritingStore, put
from saga_bus.store import DuplicateSagaError, SagaMetadata, SagaRow, UntypedSagaState
from saga_bus.store_inmemory import InMemorySagaStore
from saga_bus.store_inmemory._database import StoredRow


@fails("insert_is_found_by_both_keys", says="after the insert, by correlation id: the saga is not there")
class NoIndexEntry(InMemorySagaStore[Any]):
    """A new saga is not entered in the correlation index."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        await super()._insert(row, correlation_id)
        del self._database.by_correlation[row.saga_name, correlation_id]


@fails(
    "insert_refuses_taken_id",
    "insert_refuses_the_same_saga_twice",
    "concurrency_one_winner_among_inserts_of_one_id",
    says="inserting a taken saga_id: expected DuplicateSagaError, but nothing was raised",
)
class DuplicateIdAccepted(InMemorySagaStore[Any]):
    """A duplicate id overwrites the saga that has it."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        stored = self._database.by_id.get((row.saga_name, row.saga_id))
        if stored is not None:
            self._database.remove(stored)
        await super()._insert(row, correlation_id)


@fails(
    "insert_refuses_taken_correlation_id",
    "concurrency_one_winner_among_inserts_of_one_correlation_id",
    says="inserting a taken correlation_id: expected DuplicateSagaError, but nothing was raised",
)
class DuplicateCorrelationAccepted(InMemorySagaStore[Any]):
    """A duplicate correlation id is accepted, and the first saga is orphaned."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        if (row.saga_name, row.saga_id) in self._database.by_id:
            await super()._insert(row, correlation_id)
        put(self._database, row, correlation_id)


@fails("insert_refuses_taken_id", says="the correlation id of a refused insert: expected None")
class IndexEntryLeft(InMemorySagaStore[Any]):
    """A refused insert leaves its correlation id in the index."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        try:
            await super()._insert(row, correlation_id)
        except DuplicateSagaError:
            self._database.by_correlation.setdefault((row.saga_name, correlation_id), StoredRow(row, correlation_id))
            raise


@fails(
    "insert_refuses_taken_correlation_id",
    "insert_refused_insert_leaves_nothing",
    says="the id of a refused insert: expected None",
)
class HalfWrittenInsert(InMemorySagaStore[Any]):
    """The state is written before the correlation id is found to be taken."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        try:
            await super()._insert(row, correlation_id)
        except DuplicateSagaError:
            self._database.by_id.setdefault((row.saga_name, row.saga_id), StoredRow(row, correlation_id))
            raise


@fails(
    "insert_refuses_the_same_saga_twice",
    says="taken saga_id and correlation_id: expected DuplicateSagaError, but nothing was raised",
)
class RepeatedInsertIgnored(InMemorySagaStore[Any]):
    """Inserting the very same saga again is silently taken for done."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        stored = self._database.by_id.get((row.saga_name, row.saga_id))
        if stored is None or stored.row != row or stored.correlation_id != correlation_id:
            await super()._insert(row, correlation_id)


@fails(
    "insert_never_overwrites_an_updated_saga",
    says="inserting a taken saga_id and correlation_id: expected DuplicateSagaError, but nothing was raised",
)
class LateInsertOverwrites(InMemorySagaStore[Any]):
    """A late insert under both its old keys puts an updated saga back to its start."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        stored = self._database.by_id.get((row.saga_name, row.saga_id))
        if stored is not None and stored.correlation_id == correlation_id and stored.row.version > row.version:
            self._database.remove(stored)
        await super()._insert(row, correlation_id)


@fails("insert_same_id_under_another_name", says="DuplicateSagaError")
class NameIgnoredInIds(InMemorySagaStore[Any]):
    """Ids are unique across all saga names."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        if any(saga_id == row.saga_id for _, saga_id in self._database.by_id):
            raise DuplicateSagaError(
                saga_name=row.saga_name, saga_id=row.saga_id, correlation_id=correlation_id, conflict="saga_id"
            )
        await super()._insert(row, correlation_id)


@fails("insert_same_correlation_id_under_another_name", says="DuplicateSagaError")
class NameIgnoredInCorrelations(InMemorySagaStore[Any]):
    """Correlation ids are unique across all saga names."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        if any(taken == correlation_id for _, taken in self._database.by_correlation):
            raise DuplicateSagaError(
                saga_name=row.saga_name, saga_id=row.saga_id, correlation_id=correlation_id, conflict="correlation_id"
            )
        await super()._insert(row, correlation_id)


@fails(
    "insert_refuses_bad_keys",
    says="inserting with a correlation_id of '': expected InvalidSagaError, but nothing was raised",
)
class EmptyCorrelationAccepted(InMemorySagaStore[Any]):
    """An empty correlation id is replaced by a made-up one."""

    async def insert(self, saga_name: str, correlation_id: str, state: Any) -> None:
        await super().insert(saga_name, "none" if correlation_id == "" else correlation_id, state)


@fails(
    "insert_refuses_a_state_without_metadata", says="inserting None: expected InvalidSagaError, but nothing was raised"
)
class MetadataMadeUp(InMemorySagaStore[Any]):
    """A state without metadata is given some and saved."""

    async def insert(self, saga_name: str, correlation_id: str, state: Any) -> None:
        if not isinstance(getattr(state, "metadata", None), SagaMetadata | SimpleNamespace):
            state = UntypedSagaState()
            saga_name = f"{saga_name}.untyped"
        await super().insert(saga_name, correlation_id, state)


@fails("insert_correlation_id_is_free_after_delete", says="is taken")
class IdsNeverFree(InMemorySagaStore[Any]):
    """The id of a deleted saga stays taken."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._used: set[tuple[str, str]] = set()

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        if (row.saga_name, row.saga_id) in self._used:
            raise DuplicateSagaError(
                saga_name=row.saga_name, saga_id=row.saga_id, correlation_id=correlation_id, conflict="saga_id"
            )
        await super()._insert(row, correlation_id)
        self._used.add((row.saga_name, row.saga_id))


@fails("insert_optional_metadata_may_be_absent", says="metadata.archived_at")
class AbsentBecomesEpoch(RewritingStore):
    """A timestamp that was not set comes back as 1970."""

    def document(self, fields: dict[str, Any]) -> dict[str, Any]:
        fields["metadata"].setdefault("archived_at", "1970-01-01T00:00:00Z")
        return fields


@fails("insert_refused_insert_leaves_nothing", says="the number of sagas after two refused inserts: expected 1, got 3")
class CountsAttempts(InMemorySagaStore[Any]):
    """Refused inserts are counted as sagas."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._refused = 0

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        try:
            await super()._insert(row, correlation_id)
        except DuplicateSagaError:
            self._refused += 1
            raise

    async def _count(self, where: Any) -> int:
        return self._refused + await super()._count(where)

"""Stores that delete sagas wrongly."""

from __future__ import annotations

from typing import Any

from controls.registry import fails
from controls.updating import at_version
from saga_bus.store import ConcurrencyError, SagaNotFoundError, SagaRow, version_conflict
from saga_bus.store_inmemory import InMemorySagaStore


@fails(
    "delete_removes_the_saga_and_its_index",
    "insert_correlation_id_is_free_after_delete",
    says="after the delete, by correlation id: expected None",
)
class StaleIndex(InMemorySagaStore[Any]):
    """A delete leaves the saga's entry in the correlation index."""

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        stored = self._database.by_id.get((saga_name, saga_id))
        await super()._delete(saga_name, saga_id, expected_version)
        if stored is not None:
            self._database.by_correlation[saga_name, stored.correlation_id] = stored


@fails("delete_removes_the_saga_and_its_index", says="after the delete, by id: expected None")
class OnlyIndexDeleted(InMemorySagaStore[Any]):
    """A delete removes the correlation index entry and leaves the state."""

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        stored = self._database.by_id.get((saga_name, saga_id))
        if stored is not None and self._database.by_correlation.get((saga_name, stored.correlation_id)) is stored:
            await super()._delete(saga_name, saga_id, expected_version)
            self._database.by_id[saga_name, saga_id] = stored


@fails(
    "delete_old_correlation_id_finds_nothing",
    "stateful_behaves_like_the_model",
    says="the old correlation id: expected None",
)
class IndexNamesTheId(InMemorySagaStore[Any]):
    """A correlation index entry outlives its saga, and leads to a later one of the same id."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._ids: dict[tuple[str, str], str] = {}

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        await super()._insert(row, correlation_id)
        self._ids[row.saga_name, correlation_id] = row.saga_id

    async def _get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        saga_id = self._ids.get((saga_name, correlation_id))
        return None if saga_id is None else await super()._get_by_id(saga_name, saga_id)


@fails("delete_absent_is_no_error", says="SagaNotFoundError")
class AbsentRaises(InMemorySagaStore[Any]):
    """Deleting what is not there is an error."""

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        if (saga_name, saga_id) not in self._database.by_id:
            raise SagaNotFoundError(saga_name=saga_name, saga_id=saga_id)
        await super()._delete(saga_name, saga_id, expected_version)


@fails("delete_absent_is_no_error", says="after deletes of other ids, by id: the saga is not there")
class DeletesByAnyKey(InMemorySagaStore[Any]):
    """A delete takes a correlation id for an id."""

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        stored = self._database.by_correlation.get((saga_name, saga_id))
        await super()._delete(saga_name, saga_id if stored is None else stored.row.saga_id, expected_version)


@fails("delete_refuses_bad_keys", says="delete with a bad key: expected InvalidSagaError, but nothing was raised")
class BadKeysDeleted(InMemorySagaStore[Any]):
    """Deleting an empty or over-long key is silently taken for done."""

    async def delete(self, saga_name: str, saga_id: str, expected_version: int | None = None) -> None:
        if saga_name and saga_id and len(saga_name) <= 128 and len(saga_id) <= 128:
            await super().delete(saga_name, saga_id, expected_version)


@fails("delete_touches_only_its_own_name", says="the saga of another name, by id: the saga is not there")
class NameIgnored(InMemorySagaStore[Any]):
    """A delete removes the sagas of its id under every name."""

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        for other in [name for name, known in self._database.by_id if known == saga_id and name != saga_name]:
            await super()._delete(other, saga_id, None)
        await super()._delete(saga_name, saga_id, expected_version)


@fails("delete_any_version_without_expectation", says="expected version 0, found version 1")
class NewSagasOnly(InMemorySagaStore[Any]):
    """A delete without an expected version takes it to be 0."""

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        if (saga_name, saga_id) in self._database.by_id:
            await super()._delete(saga_name, saga_id, expected_version or 0)


@fails("delete_expected_version_deletes", says="after a delete with the right version, by id: expected None")
class ConditionalDeleteDoesNothing(InMemorySagaStore[Any]):
    """A delete of the right version checks it and removes nothing."""

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        if expected_version is None or at_version(self, saga_name, saga_id, -1) != expected_version:
            await super()._delete(saga_name, saga_id, expected_version)


@fails(
    "delete_another_version_is_a_conflict",
    "concurrency_one_winner_among_update_and_delete",
    says="a delete of version 0 where the store holds 1: expected ConcurrencyError, but nothing was raised",
)
class VersionNotChecked(InMemorySagaStore[Any]):
    """A delete ignores its expected version."""

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        if expected_version is not None and (saga_name, saga_id) not in self._database.by_id:
            raise version_conflict(saga_name, saga_id, expected_version=expected_version, actual_version=None)
        await super()._delete(saga_name, saga_id, None)


@fails("delete_expected_version_of_a_missing_saga", says="expected SagaNotFoundError, but nothing was raised")
class MissingIsFine(InMemorySagaStore[Any]):
    """A delete with an expected version of a saga that is not there is silently taken for done."""

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        if (saga_name, saga_id) in self._database.by_id:
            await super()._delete(saga_name, saga_id, expected_version)


@fails(
    "delete_refuses_what_is_no_version",
    says="a delete with expected_version=-1: expected InvalidSagaError, got ConcurrencyError",
)
class BadVersionIsConflict(InMemorySagaStore[Any]):
    """A delete takes a negative version for just another one, which is a conflict."""

    async def delete(self, saga_name: str, saga_id: str, expected_version: int | None = None) -> None:
        if expected_version is not None and expected_version == -1:
            raise ConcurrencyError(saga_name=saga_name, saga_id=saga_id, expected_version=-1, actual_version=0)
        await super().delete(saga_name, saga_id, expected_version)

"""Stores that save the next version wrongly."""

from __future__ import annotations

from typing import Any

import msgspec

from controls.registry import fails
from controls.sound import RewritingStore, put
from saga_bus.store import InvalidSagaError, SagaRow
from saga_bus.store_inmemory import InMemorySagaStore


def at_version(store: InMemorySagaStore[Any], saga_name: str, saga_id: str, default: int) -> int:
    """The stored version of a saga, so that an update of it meets no conflict."""
    stored = store._database.by_id.get((saga_name, saga_id))
    return default if stored is None else stored.row.version


@fails("update_raises_the_version_by_one", says="after the update, by id: the state differs")
class NothingWritten(InMemorySagaStore[Any]):
    """An update reports success and writes nothing."""

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        stored = self._database.by_id.get((row.saga_name, row.saga_id))
        before = None if stored is None else stored.row
        await super()._update(row, expected_version)
        if stored is not None and before is not None:
            self._database.replace(stored, before)


@fails(
    "update_refuses_a_stale_version",
    "concurrency_one_winner_per_version",
    "linearizable_histories_have_an_order",
    "update_refuses_a_version_that_is_not_there_yet",
    says="an update from version 0 of 1: expected ConcurrencyError, but nothing was raised",
)
class VersionNotChecked(InMemorySagaStore[Any]):
    """The last writer wins: the stored version is not checked (lost update)."""

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        await super()._update(row, at_version(self, row.saga_name, row.saga_id, expected_version))


@fails(
    "update_refuses_a_version_that_is_not_there_yet",
    says="an update from version 1 of 0: expected ConcurrencyError, but nothing was raised",
)
class OnlyOlderRefused(InMemorySagaStore[Any]):
    """An update from a version that is not there yet is accepted."""

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        found = at_version(self, row.saga_name, row.saga_id, expected_version)
        await super()._update(row, min(found, expected_version))


@fails("update_missing_saga_is_not_found", says="never inserted: expected SagaNotFoundError, but nothing was raised")
class Upsert(InMemorySagaStore[Any]):
    """An update of a missing saga inserts it."""

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        if (row.saga_name, row.saga_id) in self._database.by_id:
            await super()._update(row, expected_version)
        else:
            put(self._database, row, row.saga_id)


@fails("update_raises_the_version_by_one", says="expected version 7, found version 0")
class InsertedAtZero(InMemorySagaStore[Any]):
    """The version column of a new saga is 0, whatever version the saga has."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        await super()._insert(msgspec.structs.replace(row, version=0), correlation_id)


@fails(
    "update_another_name_is_not_found",
    says="an update under another saga name: expected SagaNotFoundError, but nothing was raised",
)
class NameIgnored(InMemorySagaStore[Any]):
    """An update finds the saga by its id alone, under whatever name."""

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        for saga_name, saga_id in self._database.by_id:
            if saga_id == row.saga_id:
                await super()._update(msgspec.structs.replace(row, saga_name=saga_name), expected_version)
                return
        await super()._update(row, expected_version)


@fails("update_touches_only_its_own_name", says="the saga of another name, by id: the state differs")
class AllNamesUpdated(InMemorySagaStore[Any]):
    """An update writes to the sagas of its id under every name."""

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        await super()._update(row, expected_version)
        for (saga_name, saga_id), stored in self._database.by_id.items():
            if saga_id == row.saga_id:
                self._database.replace(stored, msgspec.structs.replace(row, saga_name=saga_name))


@fails(
    "update_refuses_a_version_that_was_not_raised_by_one",
    says="an update to version 0 with expected_version=0: expected InvalidSagaError, but nothing was raised",
)
class BumpNotChecked(InMemorySagaStore[Any]):
    """An update that forgot to raise the version is accepted."""

    async def update(self, saga_name: str, state: Any, expected_version: int) -> None:
        if state.metadata.version == expected_version:
            row = self._row(saga_name, state)
            await self._update(row, expected_version)
        else:
            await super().update(saga_name, state, expected_version)


@fails(
    "update_refuses_a_version_that_was_not_raised_by_one",
    says="an update to version 2 with expected_version=0: expected InvalidSagaError, but nothing was raised",
)
class SkippingAccepted(InMemorySagaStore[Any]):
    """An update may skip versions."""

    async def update(self, saga_name: str, state: Any, expected_version: int) -> None:
        version = state.metadata.version
        if isinstance(version, int) and isinstance(expected_version, int) and version > expected_version + 1:
            await self._update(self._row(saga_name, state), expected_version)
        else:
            await super().update(saga_name, state, expected_version)


@fails(
    "update_refuses_what_is_no_version",
    says="an update with expected_version='0': expected InvalidSagaError, but nothing was raised",
)
class TextAsVersion(InMemorySagaStore[Any]):
    """A version given as text is converted."""

    async def update(self, saga_name: str, state: Any, expected_version: Any) -> None:
        await super().update(
            saga_name, state, int(expected_version) if isinstance(expected_version, str) else expected_version
        )


class _Merging(InMemorySagaStore[Any]):
    def _merged(self, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        stored = self._database.by_id.get((row.saga_name, row.saga_id))
        if stored is not None:
            fields = self._merged(msgspec.json.decode(stored.row.document), msgspec.json.decode(row.document))
            row = msgspec.structs.replace(row, document=msgspec.json.encode(fields))
        await super()._update(row, expected_version)


@fails("update_smaller_state_leaves_no_remains", says="data: expected {'a': {}}, got {'a': {'b': 1}, 'c': 2}")
class Merged(_Merging):
    """An update merges the new state into the old one."""

    def _merged(self, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        for key, value in new.items():
            if isinstance(value, dict) and isinstance(old.get(key), dict) and key != "metadata":
                old[key] = self._merged(old[key], value)
            else:
                old[key] = value
        return old


@fails("values_metadata_set_and_cleared", says="metadata.archived_at: expected None, got datetime")
class NeverCleared(_Merging):
    """An update cannot clear archived_at (COALESCE of new and old)."""

    def _merged(self, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        if "archived_at" in old["metadata"]:
            new["metadata"].setdefault("archived_at", old["metadata"]["archived_at"])
        return new


@fails("update_same_content_counts", says="after an update of the version alone, by id: the state differs")
class IdenticalSkipped(InMemorySagaStore[Any]):
    """An update that changes nothing but the version is skipped."""

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        stored = self._database.by_id.get((row.saga_name, row.saga_id))
        if stored is not None and _content(stored.row) == _content(row) and expected_version == stored.row.version:
            return
        await super()._update(row, expected_version)


def _content(row: SagaRow) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.json.decode(row.document)
    del fields["metadata"]["version"]
    return fields


@fails("update_keeps_created_at_and_correlation", says="metadata.created_at")
class CreatedAtOverwritten(RewritingStore):
    """An update sets the creation time too."""

    def document(self, fields: dict[str, Any]) -> dict[str, Any]:
        if fields["metadata"]["version"]:
            fields["metadata"]["created_at"] = fields["metadata"]["updated_at"]
        return fields


@fails("update_many_in_a_row", says="expected version 10, found version 9")
class VersionsComparedAsText(InMemorySagaStore[Any]):
    """The latest version is the greatest one as text, where "9" is greater than "10"."""

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        stored = self._database.by_id.get((row.saga_name, row.saga_id))
        if stored is not None and stored.row.version == expected_version and str(row.version) < str(expected_version):
            return
        await super()._update(row, expected_version)


@fails("update_starts_again_after_delete_and_insert", says="an update of the saga's former life: expected Concurrency")
class FormerLifeCounts(InMemorySagaStore[Any]):
    """The version of a deleted saga is remembered and counts for a new one with its id."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._former: dict[tuple[str, str], int] = {}

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        self._former[saga_name, saga_id] = at_version(self, saga_name, saga_id, -1)
        await super()._delete(saga_name, saga_id, expected_version)

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        key = (row.saga_name, row.saga_id)
        if self._former.get(key) == expected_version:
            expected_version = at_version(self, *key, expected_version)
        await super()._update(row, expected_version)


@fails("update_reopens_a_completed_saga", says="InvalidSagaError: the saga has ended")
class CompletedIsFinal(InMemorySagaStore[Any]):
    """A completed saga cannot be updated any more."""

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        stored = self._database.by_id.get((row.saga_name, row.saga_id))
        if stored is not None and stored.row.is_completed:
            raise InvalidSagaError("the saga has ended")
        await super()._update(row, expected_version)


@fails("update_reopens_a_completed_saga", says="a completed saga, by id: the saga is not there")
class CompletedIsHidden(InMemorySagaStore[Any]):
    """A completed saga is not found by its id."""

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        stored = self._database.by_id.get((saga_name, saga_id))
        return None if stored is None or stored.row.is_completed else stored.row.document

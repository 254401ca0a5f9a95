"""Stores that take different keys for the same."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from controls.registry import fails
from controls.sound import KeyingStore
from saga_bus.store import SagaRow
from saga_bus.store_inmemory import InMemorySagaStore


@fails("identifiers_ids_compare_exactly", says="the id 'Order' before its insert (case): expected None")
class IdsCaseFolded(KeyingStore):
    """Ids compare without regard to case."""

    def id_key(self, saga_id: str) -> str:
        return saga_id.casefold()


@fails("identifiers_ids_compare_exactly", says="before its insert (trailing blanks): expected None")
class IdsTrimmed(KeyingStore):
    """Trailing blanks of ids do not count."""

    def id_key(self, saga_id: str) -> str:
        return saga_id.rstrip(" ") or saga_id


@fails("identifiers_ids_compare_exactly", says="before its insert (accents): expected None")
class AccentsIgnored(KeyingStore):
    """The letters é and e are the same in ids."""

    def id_key(self, saga_id: str) -> str:
        return saga_id.translate({ord("é"): "e"})


def weighing(text: str) -> str:
    """What a collation sees of a text that knows nothing beyond the first 65,536 characters."""
    return "".join(char for char in text if char <= "\uffff")


@fails("identifiers_ids_compare_exactly", says="before its insert (characters without weight in old collations)")
class IdsWithoutNewCharacters(KeyingStore):
    """Characters that the collation does not know do not count in ids."""

    def id_key(self, saga_id: str) -> str:
        return weighing(saga_id)


@fails("insert_accepts_the_longest_keys", says="is taken")
class IdsCut(KeyingStore):
    """Ids are cut after 64 characters."""

    def id_key(self, saga_id: str) -> str:
        return saga_id[:64]


@fails("insert_accepts_the_longest_keys", says="is taken")
class CorrelationIdsCut(KeyingStore):
    """Correlation ids are cut after 255 characters."""

    def correlation_key(self, correlation_id: str) -> str:
        return correlation_id[:255]


@fails("identifiers_correlation_ids_compare_exactly", says="before its insert (composition (NFC, NFD)): expected None")
class CorrelationIdsNormalised(KeyingStore):
    """Correlation ids are normalised to NFC."""

    def correlation_key(self, correlation_id: str) -> str:
        return unicodedata.normalize("NFC", correlation_id)


@fails("identifiers_correlation_ids_compare_exactly", says="the correlation id '01' before its insert (numbers)")
class CorrelationIdsAsNumbers(KeyingStore):
    """Correlation ids that look like numbers compare as numbers."""

    def correlation_key(self, correlation_id: str) -> str:
        return str(int(correlation_id)) if correlation_id.isascii() and correlation_id.isdigit() else correlation_id


@fails(
    "identifiers_saga_names_compare_exactly",
    says="the name 'conformancesaga' before its insert, by id: expected None",
)
class NamesCaseFolded(KeyingStore):
    """Saga names compare without regard to case."""

    def name_key(self, saga_name: str) -> str:
        return saga_name.lower()


class _Splitting(InMemorySagaStore[Any]):
    """Moves the border between name and key, so that both are one text."""

    def split(self, saga_name: str, key: str) -> tuple[str, str]:
        raise NotImplementedError

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        name, saga_id = self.split(row.saga_name, row.saga_id)
        row = msgspec.structs.replace(row, saga_name=name, saga_id=saga_id)
        await super()._insert(row, self.split(row.saga_name, correlation_id)[1])

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        return await super()._get_by_id(*self.split(saga_name, saga_id))

    async def _get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        name, _ = self.split(saga_name, correlation_id)
        return await super()._get_by_correlation_id(name, self.split(saga_name, correlation_id)[1])

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        name, saga_id = self.split(saga_name, saga_id)
        await super()._delete(name, saga_id, expected_version)


@fails("identifiers_joined_keys_do_not_collide", says="the other split, by id: expected None")
class JoinedWithColon(_Splitting):
    """Name and id are joined with a colon into one key."""

    def split(self, saga_name: str, key: str) -> tuple[str, str]:
        name, _, rest = f"{saga_name}:{key}".partition(":")
        return name, rest


@fails("identifiers_separators_in_ids", says="is taken")
class OnlyLastPartCounts(KeyingStore):
    """The part of an id behind its last slash is taken for the id."""

    def id_key(self, saga_id: str) -> str:
        return saga_id.rpartition("/")[2]


def matching(store: InMemorySagaStore[Any], saga_name: str, is_meant: Callable[[str], bool]) -> list[str]:
    """The ids under a name that a careless comparison takes for the one that is meant."""
    return [saga_id for name, saga_id in store._database.by_id if name == saga_name and is_meant(saga_id)]


@fails("identifiers_updates_hit_exactly_one_id", says="after the update of one (case)")
class UpdatesIgnoreCase(InMemorySagaStore[Any]):
    """An update writes to all sagas whose ids differ in case only."""

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        await super()._update(row, expected_version)
        for saga_id in matching(self, row.saga_name, lambda other: other.lower() == row.saga_id.lower()):
            stored = self._database.by_id[row.saga_name, saga_id]
            self._database.replace(stored, msgspec.structs.replace(row, saga_id=saga_id))


@fails("identifiers_metacharacters_are_text", says="another saga after a delete of '*', by id: the saga is not there")
class DeletesByPattern(InMemorySagaStore[Any]):
    """A delete takes its id for a pattern."""

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        for found in matching(self, saga_name, lambda other: fnmatchcase(other, saga_id.replace("[", "[[]"))):
            await super()._delete(saga_name, found, expected_version)


@fails("identifiers_metacharacters_are_text", says="the keys 'null' before the insert, by id: expected None")
class NullIsAnything(InMemorySagaStore[Any]):
    """The text "null" is taken for no condition at all."""

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        if saga_id == "null":
            found = matching(self, saga_name, lambda _: True)
            saga_id = found[0] if found else saga_id
        return await super()._get_by_id(saga_name, saga_id)


class _Grouping(InMemorySagaStore[Any]):
    """Knows of a write whether others are made at the same time."""

    writing = 0

    async def together(self) -> bool:
        self.writing += 1
        await asyncio.sleep(0)
        self.writing -= 1
        return self.writing > 0


@fails("identifiers_odd_ids_at_once", says="after inserts at once: the saga is not there")
class GroupsTakeUnknownIdsForNone(_Grouping):
    """A group of inserts takes an id of characters that the collation does not know for an empty place."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        if weighing(row.saga_id) or not await self.together():
            await super()._insert(row, correlation_id)


@fails("identifiers_odd_ids_at_once", says="after updates at once")
class GroupsOfUpdatesTrimIds(_Grouping):
    """A group of updates finds its sagas by ids without their trailing blanks."""

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        if await self.together() and row.saga_id != row.saga_id.rstrip():
            return
        await super()._update(row, expected_version)

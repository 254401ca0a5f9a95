"""The calls of the client for each operation; reads of concurrent callers are grouped into one."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from datetime import datetime
from functools import partial
from typing import Literal, TypeVar, get_args

from saga_bus.store import (
    Conflict,
    DuplicateSagaError,
    FoundRow,
    SagaFilter,
    SagaQuery,
    SagaRow,
    SagaStoreError,
    StoreUnavailableError,
    version_conflict,
)
from saga_bus.store.coalesce import Activity, Coalescer
from saga_bus.store_prisma._client import ModelActions
from saga_bus.store_prisma._errors import UNIQUE, code_of, taken_key, translated
from saga_bus.store_prisma._queries import MOMENTS, completed_before, count_condition, parts_of
from saga_bus.store_prisma._rows import Keys, changes_of, found_row, row_data

__all__ = ["Operations", "called"]

ResultT = TypeVar("ResultT")

_Key = Literal["saga_id", "correlation_id"]
_Place = tuple[str, str]  # a saga name and a key, as they are stored

_ATTEMPTS = 5
_MOST_READS = 100  # in one group
_MOST_IDS = 500  # in one delete; databases limit the parameters of a statement


async def called(call: Awaitable[ResultT], *, writing: bool = False) -> ResultT:
    """Await a call of the client, whose errors become ours.

    Args:
        call: The call.
        writing: Whether it writes, in a transaction of its own.
    """
    try:
        return await call
    except SagaStoreError:
        raise
    except Exception as error:
        raise translated(error, writing=writing) from error


class Operations:
    """The operations on one model.

    Args:
        actions: What the client has for the model.
        provider: The database.
        bound: Whether the client is that of the caller's transaction.
    """

    def __init__(self, actions: ModelActions, provider: str, *, bound: bool) -> None:
        self._actions = actions
        self._keys = Keys(provider)
        self._commits = not bound
        # A duplicate would end a transaction of PostgreSQL, which ON CONFLICT DO NOTHING does not.
        self._skip_duplicates = True if provider == "postgresql" else None
        activity = Activity()
        self._reads: dict[_Key, Coalescer[_Place, bytes | None]] = {
            key: Coalescer(
                partial(self._get_many, key),
                max_size=_MOST_READS,
                max_in_flight=2,
                alone=partial(self._get_one, key),
                activity=activity,
            )
            for key in get_args(_Key)
        }

    async def get(self, key: _Key, saga_name: str, value: str) -> bytes | None:
        """Fetch a document by "saga_id" or "correlation_id"."""
        place = self._keys.stored(saga_name), self._keys.stored(value)
        if self._commits:
            return await self._reads[key].call(place)
        return await self._get_one(key, place)

    async def join(self) -> None:
        """Wait for the reads of callers that were cancelled."""
        for reads in self._reads.values():
            await reads.join()

    async def _get_one(self, key: _Key, place: _Place) -> bytes | None:
        saga_name, value = place
        where = {f"saga_name_{key}": {"saga_name": saga_name, key: value}}
        record = await called(self._actions.find_unique(where))
        return None if record is None else record.state.encode()

    async def _get_many(self, key: _Key, places: Sequence[_Place]) -> list[bytes | None]:
        values: dict[str, list[str]] = {}
        for saga_name, value in places:
            values.setdefault(saga_name, []).append(value)
        either = [{"saga_name": saga_name, key: {"in": some}} for saga_name, some in values.items()]
        records = await called(self._actions.find_many(where={"OR": either}))
        found = {(record.saga_name, getattr(record, key)): record.state.encode() for record in records}
        return [found.get(place) for place in places]

    async def insert(self, row: SagaRow, correlation_id: str) -> None:
        """Insert a row."""
        data = [row_data(row, correlation_id, self._keys)]
        cause: Exception | None = None
        for _ in range(_ATTEMPTS):
            conflict: str | None = None
            try:
                if await self._actions.create_many(data, skip_duplicates=self._skip_duplicates):
                    return
            except Exception as error:
                if code_of(error) != UNIQUE:
                    raise translated(error, writing=self._commits) from error
                conflict, cause = taken_key(error), error
            if taken := conflict or await self._taken(row, correlation_id):
                raise DuplicateSagaError(
                    saga_name=row.saga_name,
                    saga_id=row.saga_id,
                    correlation_id=correlation_id,
                    conflict="saga_id" if taken == "saga_id" else "correlation_id",
                ) from cause
        if cause is not None:
            raise translated(cause, writing=False) from cause
        raise _restless()

    async def _taken(self, row: SagaRow, correlation_id: str) -> Conflict | None:
        name = self._keys.stored(row.saga_name)
        if await called(self._actions.count(where={"saga_name": name, "saga_id": self._keys.stored(row.saga_id)})):
            return "saga_id"
        correlated = {"saga_name": name, "correlation_id": self._keys.stored(correlation_id)}
        return "correlation_id" if await called(self._actions.count(where=correlated)) else None

    async def update(self, row: SagaRow, expected_version: int) -> None:
        """Update a row where its version is the expected one."""
        where = {**self._place(row.saga_name, row.saga_id), "version": expected_version}
        data = changes_of(row)
        for _ in range(_ATTEMPTS):
            if await called(self._actions.update_many(data, where), writing=self._commits):
                return
            await self._refuse_conflict(row.saga_name, row.saga_id, expected_version)
        raise _restless()

    async def delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        """Delete a row, where its version is the expected one if there is any."""
        place = self._place(saga_name, saga_id)
        if expected_version is None:
            await called(self._actions.delete_many(place), writing=self._commits)
            return
        for _ in range(_ATTEMPTS):
            if await called(self._actions.delete_many({**place, "version": expected_version}), writing=self._commits):
                return
            await self._refuse_conflict(saga_name, saga_id, expected_version)
        raise _restless()

    async def _refuse_conflict(self, saga_name: str, saga_id: str, expected_version: int) -> None:
        """Raise what is wrong with the version; nothing is when the row was away and is back."""
        # As a group, because a find would fetch the whole state.
        rows = await called(self._actions.group_by(["version"], where=self._place(saga_name, saga_id)))
        actual_version = int(rows[0]["version"]) if rows else None
        if actual_version != expected_version:
            raise version_conflict(saga_name, saga_id, expected_version=expected_version, actual_version=actual_version)

    async def find(self, query: SagaQuery) -> Sequence[FoundRow]:
        """Fetch the rows of one page."""
        moment = MOMENTS[query.order]
        rows: list[FoundRow] = []
        for where, order in parts_of(query, self._keys):
            records = await called(self._actions.find_many(take=query.limit, where=where, order=order))
            rows += (found_row(record, moment, self._keys) for record in records)
        if len(rows) > query.limit or query.order == "stalest":
            rows.sort(key=lambda row: (row.moment, row.saga_name, row.saga_id))
        return rows[: query.limit]

    async def count(self, where: SagaFilter) -> int:
        """Count rows."""
        return await called(self._actions.count(where=count_condition(where, self._keys)))

    async def purge(self, saga_name: str, before: datetime, batch_size: int) -> int:
        """Delete one batch of old completed rows, each re-checked as it is deleted; 0 when there are no more."""
        old = completed_before(saga_name, before, self._keys)
        while True:
            rows = await called(
                self._actions.group_by(
                    ["updated_hour", "saga_id"],
                    where=old,
                    take=min(batch_size, _MOST_IDS),
                    order={"updated_hour": "asc"},
                )
            )
            if not rows:
                return 0
            ids = {"saga_id": {"in": [row["saga_id"] for row in rows]}}
            deleted = await called(self._actions.delete_many({"AND": [*old["AND"], ids]}), writing=self._commits)
            if deleted:
                return deleted
            # All were reopened or deleted meanwhile, and there may be others.

    def _place(self, saga_name: str, saga_id: str) -> dict[str, str]:
        return {"saga_name": self._keys.stored(saga_name), "saga_id": self._keys.stored(saga_id)}


def _restless() -> StoreUnavailableError:
    return StoreUnavailableError(f"others changed the saga during each of {_ATTEMPTS} attempts")

"""Groups: what several callers ask for at once becomes one statement, and each gets its own outcome."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

from saga_bus.store import Activity, Coalescer, SagaRow, SagaStoreError, StoreUnavailableError
from saga_bus.store_postgres import _alone as alone
from saga_bus.store_postgres._connections import Connections
from saga_bus.store_postgres._documents import group_text
from saga_bus.store_postgres._errors import ROLLED_BACK, sqlstate_of
from saga_bus.store_postgres._lanes import Lane, Lanes
from saga_bus.store_postgres._outcomes import conflict_of_insert, conflict_of_write
from saga_bus.store_postgres._statements import Statements

__all__ = ["Groups"]

ItemT = TypeVar("ItemT", bound="tuple[SagaRow, Any]")
Key = Literal["saga_id", "correlation_id"]
_KEYS: tuple[Key, ...] = ("saga_id", "correlation_id")
# How a write in a group ended: True, an error, or None: it must be done alone, where it may wait.
WriteOutcome = BaseException | bool | None

# Two groups of a kind: while the server works on one, the callers of the other go on; and two commits may be written
# to its disk together. Halves of fewer calls than the shares cost more than they spare.
_LANES = 2
_READ_SHARE = 4
_WRITE_SHARE = 8
# A group is one JSONB value on its way, of which PostgreSQL takes 256 MB, in its own form.
_GROUP_BYTES = 16 * 1024 * 1024


# Plain tuples, which take a lone caller the least time to make.
_Read: TypeAlias = tuple[Key, str, str]  # by which key, the saga's name, the key
_Insert: TypeAlias = tuple[SagaRow, str]  # with the correlation id
_Update: TypeAlias = tuple[SagaRow, int]  # with the expected version


class Groups:
    """The five operations on a pool.

    Args:
        connections: The pool.
        statements: The statements.
    """

    def __init__(self, connections: Connections, statements: Statements) -> None:
        self._connections = connections
        self._statements = statements
        # A lone caller reads and writes on one lane, so that one process of the server is at work instead of two.
        self._lone = Lane(connections)
        self._reading = Lanes(connections, _LANES)
        self._inserting = Lanes(connections, _LANES)
        self._updating = Lanes(connections, _LANES)
        activity = Activity()
        self._reads: Coalescer[_Read, bytes | None] = Coalescer(
            self._read, alone=self._read_alone, max_in_flight=_LANES, share=_READ_SHARE, activity=activity
        )
        self._inserts: Coalescer[_Insert, WriteOutcome] = Coalescer(
            self._insert,
            alone=self._insert_alone,
            max_in_flight=_LANES,
            share=_WRITE_SHARE,
            key=_key,
            activity=activity,
        )
        self._updates: Coalescer[_Update, WriteOutcome] = Coalescer(
            self._update,
            alone=self._update_alone,
            max_in_flight=_LANES,
            share=_WRITE_SHARE,
            key=_key,
            activity=activity,
        )

    async def close(self) -> None:
        """Wait for what is in hand and give the connections back."""
        for coalescer in (self._reads, self._inserts, self._updates):
            await coalescer.join()
        for lanes in (self._lone, self._reading, self._inserting, self._updating):
            await lanes.close()

    def get(self, key: Key, saga_name: str, value: str) -> Awaitable[bytes | None]:
        """Fetch a document.

        Args:
            key: The column of the key.
            saga_name: The saga's name.
            value: The key.
        """
        return self._reads.call((key, saga_name, value))

    async def insert(self, row: SagaRow, correlation_id: str) -> None:
        """Insert a row.

        Args:
            row: The row.
            correlation_id: Its correlation id.
        """
        if await self._inserts.call((row, correlation_id)) is None:
            await alone.retried(lambda: alone.insert(self._fetch_alone, self._statements, row, correlation_id))

    async def update(self, row: SagaRow, expected_version: int) -> None:
        """Update a row.

        Args:
            row: The row.
            expected_version: The version that must be there.
        """
        if await self._updates.call((row, expected_version)) is None:
            await alone.retried(lambda: alone.update(self._fetch_alone, self._statements, row, expected_version))

    async def delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        """Delete a row.

        Args:
            saga_name: The saga's name.
            saga_id: The saga's id.
            expected_version: The version that must be there, None for any or none.
        """
        await alone.retried(
            lambda: alone.delete(self._fetch_alone, self._statements, saga_name, saga_id, expected_version)
        )

    async def _fetch_alone(self, statement: str, *parameters: Any) -> Any:
        async with self._connections.connection(writing=True) as connection:
            return await connection.fetch(statement, *parameters)

    # -- reads ---------------------------------------------------------------------------------------------

    async def _read_alone(self, item: _Read) -> bytes | None:
        key, saga_name, value = item
        rows = await self._lone.read(self._statements.get_one[key], saga_name, value)
        return rows[0][0].encode() if rows else None

    async def _read(self, items: Sequence[_Read]) -> Sequence[bytes | None]:
        with self._reading.idle() as lane:
            return await self._read_many(lane, items)

    async def _read_many(self, lane: Lane, items: Sequence[_Read]) -> Sequence[bytes | None]:
        documents: list[bytes | None] = [None] * len(items)
        for key in _KEYS:
            places = [place for place, item in enumerate(items) if item[0] == key]
            if places:
                names, values = [items[place][1] for place in places], [items[place][2] for place in places]
                for number, document in await lane.read(self._statements.get_many[key], names, values):
                    documents[places[number - 1]] = document.encode()
        return documents

    # -- updates -------------------------------------------------------------------------------------------

    async def _update_alone(self, item: _Update) -> WriteOutcome:
        try:
            return await alone.update(self._lone.write, self._statements, *item) or None
        except StoreUnavailableError as error:
            return _all_alone(error, (item,))[0]

    async def _update(self, items: Sequence[_Update]) -> Sequence[WriteOutcome]:
        with self._updating.idle() as lane:
            return await _in_parts(items, lambda part: self._update_part(lane, part))

    async def _update_part(self, lane: Lane, items: Sequence[_Update]) -> Sequence[WriteOutcome]:
        try:
            rows = await lane.write(self._statements.update_many, group_text(items))
        except StoreUnavailableError as error:
            return _all_alone(error, items)
        updated = {number for (number,) in rows}
        outcomes: list[WriteOutcome] = [number in updated for number in range(1, len(items) + 1)]
        places = [place for place, outcome in enumerate(outcomes) if not outcome]
        if places:
            try:
                found = await self._versions(lane, [items[place][0] for place in places])
            except SagaStoreError as error:
                return _with_error(outcomes, places, error)
            for place, version in zip(places, found, strict=True):
                row, expected = items[place]
                outcomes[place] = conflict_of_write(row.saga_name, row.saga_id, expected, version)
        return outcomes

    async def _versions(self, lane: Lane, rows: Sequence[SagaRow]) -> list[int | None]:
        versions: list[int | None] = [None] * len(rows)
        names, ids = [row.saga_name for row in rows], [row.saga_id for row in rows]
        for number, version in await lane.read(self._statements.select_versions, names, ids):
            versions[number - 1] = version
        return versions

    # -- inserts -------------------------------------------------------------------------------------------

    async def _insert_alone(self, item: _Insert) -> WriteOutcome:
        try:
            return await alone.insert(self._lone.write, self._statements, *item) or None
        except StoreUnavailableError as error:
            return _all_alone(error, (item,))[0]

    async def _insert(self, items: Sequence[_Insert]) -> Sequence[WriteOutcome]:
        with self._inserting.idle() as lane:
            return await _in_parts(items, lambda part: self._insert_part(lane, part))

    async def _insert_part(self, lane: Lane, items: Sequence[_Insert]) -> Sequence[WriteOutcome]:
        try:
            rows = await lane.write(self._statements.insert_many, group_text(items))
        except StoreUnavailableError as error:
            return _all_alone(error, items)
        inserted = {(saga_name, saga_id) for saga_name, saga_id in rows}
        outcomes: list[WriteOutcome] = [(row.saga_name, row.saga_id) in inserted for row, _ in items]
        places = [place for place, outcome in enumerate(outcomes) if not outcome]
        if places:
            refused = [items[place] for place in places]
            names, ids = [row.saga_name for row, _ in refused], [row.saga_id for row, _ in refused]
            try:
                taken = await lane.read(self._statements.select_taken, names, ids, [each for _, each in refused])
            except SagaStoreError as error:
                return _with_error(outcomes, places, error)
            for place, (id_taken, correlation_taken) in zip(places, taken, strict=True):
                row, correlation_id = items[place]
                outcomes[place] = conflict_of_insert(
                    row, correlation_id, id_taken=id_taken, correlation_taken=correlation_taken
                )
        return outcomes


def _key(item: _Insert | _Update) -> tuple[str, str]:
    return item[0].saga_name, item[0].saga_id


async def _in_parts(
    items: Sequence[ItemT], run: Callable[[Sequence[ItemT]], Awaitable[Sequence[WriteOutcome]]]
) -> list[WriteOutcome]:
    """Run the parts of a group, of which each is written or not; a bad item spoils none of its neighbours."""
    outcomes: list[WriteOutcome] = []
    for part in _parts(items):
        try:
            outcomes += await run(part)
        except StoreUnavailableError as error:
            outcomes += [error] * len(part)
        except SagaStoreError as error:
            outcomes += [error] if len(part) == 1 else [(await _in_parts([item], run))[0] for item in part]
    return outcomes


def _parts(items: Sequence[ItemT]) -> Iterator[Sequence[ItemT]]:
    """Split a group where its documents together are too large for one message."""
    start = size = 0
    for place, item in enumerate(items):
        length = len(item[0].document)
        if size + length > _GROUP_BYTES and place > start:
            yield items[start:place]
            start, size = place, 0
        size += length
    yield items[start:]


def _with_error(outcomes: list[WriteOutcome], places: Sequence[int], error: SagaStoreError) -> list[WriteOutcome]:
    """What was written stays written when the question about the others gets no answer."""
    for place in places:
        outcomes[place] = error
    return outcomes


def _all_alone(error: StoreUnavailableError, items: Sequence[Any]) -> Sequence[WriteOutcome]:
    """What the server rolled back as a whole is done one by one; after another error nothing is."""
    if sqlstate_of(error) not in ROLLED_BACK:
        raise error
    return [None] * len(items)

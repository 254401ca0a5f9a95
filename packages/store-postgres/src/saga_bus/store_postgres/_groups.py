"""Groups: what several callers ask for at once becomes one statement, and each gets its own outcome."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from saga_bus.store import Coalescer, SagaRow, StoreUnavailableError
from saga_bus.store_postgres import _alone as alone
from saga_bus.store_postgres._connections import Connections, Lane
from saga_bus.store_postgres._documents import row_values
from saga_bus.store_postgres._errors import ROLLED_BACK, sqlstate_of
from saga_bus.store_postgres._outcomes import conflict_of_insert, conflict_of_write
from saga_bus.store_postgres._statements import Statements

__all__ = ["Groups"]

ItemT = TypeVar("ItemT")
Key = Literal["saga_id", "correlation_id"]
KEYS: tuple[Key, ...] = ("saga_id", "correlation_id")
# How a write in a group ended: True, an error, or None: it must be done alone, where it may wait.
WriteOutcome = BaseException | bool | None

# A group's parameters travel in one message, of which PostgreSQL takes 1 GB.
_GROUP_BYTES = 64 * 1024 * 1024


class _Read(NamedTuple):
    key: Key
    saga_name: str
    value: str


class _Insert(NamedTuple):
    row: SagaRow
    correlation_id: str


class _Update(NamedTuple):
    row: SagaRow
    expected_version: int


class Groups:
    """The five operations on a pool.

    Args:
        connections: The pool.
        statements: The statements.
    """

    def __init__(self, connections: Connections, statements: Statements) -> None:
        self._connections = connections
        self._statements = statements
        self._reading = Lane(connections, writing=False)
        self._inserting = Lane(connections, writing=True)
        self._updating = Lane(connections, writing=True)
        self._reads: Coalescer[_Read, str | None] = Coalescer(self._read)
        self._inserts: Coalescer[_Insert, WriteOutcome] = Coalescer(self._insert, key=_key)
        self._updates: Coalescer[_Update, WriteOutcome] = Coalescer(self._update, key=_key)

    async def close(self) -> None:
        """Wait for what is in hand and give the connections back."""
        for coalescer in (self._reads, self._inserts, self._updates):
            await coalescer.join()
        for lane in (self._reading, self._inserting, self._updating):
            await lane.close()

    async def get(self, key: Key, saga_name: str, value: str) -> bytes | None:
        """Fetch a document.

        Args:
            key: The column of the key.
            saga_name: The saga's name.
            value: The key.
        """
        document = await self._reads.call(_Read(key, saga_name, value))
        return None if document is None else document.encode()

    async def insert(self, row: SagaRow, correlation_id: str) -> None:
        """Insert a row.

        Args:
            row: The row.
            correlation_id: Its correlation id.
        """
        if await self._inserts.call(_Insert(row, correlation_id)) is None:
            await alone.retried(lambda: alone.insert(self._fetch_alone, self._statements, row, correlation_id))

    async def update(self, row: SagaRow, expected_version: int) -> None:
        """Update a row.

        Args:
            row: The row.
            expected_version: The version that must be there.
        """
        if await self._updates.call(_Update(row, expected_version)) is None:
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

    async def _read(self, items: Sequence[_Read]) -> Sequence[str | None]:
        if len(items) == 1:
            ((key, saga_name, value),) = items
            rows = await self._reading.fetch(self._statements.get_one[key], saga_name, value)
            return [rows[0][0] if rows else None]
        documents: list[str | None] = [None] * len(items)
        for key in KEYS:
            places = [place for place, item in enumerate(items) if item.key == key]
            if places:
                names, values = [items[place].saga_name for place in places], [items[place].value for place in places]
                for number, document in await self._reading.fetch(self._statements.get_many[key], names, values):
                    documents[places[number - 1]] = document
        return documents

    # -- updates -------------------------------------------------------------------------------------------

    async def _update(self, items: Sequence[_Update]) -> Sequence[WriteOutcome]:
        return [outcome for part in _parts(items) for outcome in await self._update_part(part)]

    async def _update_part(self, items: Sequence[_Update]) -> Sequence[WriteOutcome]:
        try:
            if len(items) == 1:
                ((row, expected_version),) = items
                parameters: Sequence[Any] = (*row_values(row), str(expected_version))
                updated = {1} if await self._updating.fetch(self._statements.update_one, *parameters) else set()
            else:
                parameters = _columns((*row_values(row), str(expected)) for row, expected in items)
                rows = await self._updating.fetch(self._statements.update_many, *parameters)
                updated = {number for (number,) in rows}
        except StoreUnavailableError as error:
            return _all_alone(error, items)
        outcomes: list[WriteOutcome] = [number in updated for number in range(1, len(items) + 1)]
        if len(updated) < len(items):
            places = [place for place, outcome in enumerate(outcomes) if not outcome]
            found = await self._versions([items[place].row for place in places])
            for place, version in zip(places, found, strict=True):
                row, expected = items[place]
                outcomes[place] = conflict_of_write(row.saga_name, row.saga_id, expected, version)
        return outcomes

    async def _versions(self, rows: Sequence[SagaRow]) -> list[int | None]:
        versions: list[int | None] = [None] * len(rows)
        names, ids = [row.saga_name for row in rows], [row.saga_id for row in rows]
        for number, version in await self._updating.fetch(self._statements.select_versions, names, ids):
            versions[number - 1] = version
        return versions

    # -- inserts -------------------------------------------------------------------------------------------

    async def _insert(self, items: Sequence[_Insert]) -> Sequence[WriteOutcome]:
        return [outcome for part in _parts(items) for outcome in await self._insert_part(part)]

    async def _insert_part(self, items: Sequence[_Insert]) -> Sequence[WriteOutcome]:
        try:
            if len(items) == 1:
                ((row, correlation_id),) = items
                parameters: Sequence[Any] = (*row_values(row), correlation_id)
                done = bool(await self._inserting.fetch(self._statements.insert_one, *parameters))
                outcomes: list[WriteOutcome] = [done]
            else:
                parameters = _columns((*row_values(row), correlation_id) for row, correlation_id in items)
                rows = await self._inserting.fetch(self._statements.insert_many, *parameters)
                inserted = {(saga_name, saga_id) for saga_name, saga_id in rows}
                outcomes = [(row.saga_name, row.saga_id) in inserted for row, _ in items]
        except StoreUnavailableError as error:
            return _all_alone(error, items)
        places = [place for place, outcome in enumerate(outcomes) if not outcome]
        if places:
            refused = [items[place] for place in places]
            parameters = _columns((row.saga_name, row.saga_id, correlation_id) for row, correlation_id in refused)
            taken = await self._inserting.fetch(self._statements.select_taken, *parameters)
            for place, (id_taken, correlation_taken) in zip(places, taken, strict=True):
                row, correlation_id = items[place]
                outcomes[place] = conflict_of_insert(
                    row, correlation_id, id_taken=id_taken, correlation_taken=correlation_taken
                )
        return outcomes


def _key(item: _Insert | _Update) -> tuple[str, str]:
    return item.row.saga_name, item.row.saga_id


def _columns(rows: Iterator[Sequence[Any]] | Any) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _parts(items: Sequence[ItemT]) -> Iterator[Sequence[ItemT]]:
    """Split a group where its documents together are too large for one message."""
    start = size = 0
    for place, item in enumerate(items):
        length = len(item.row.document)  # type: ignore[attr-defined]  # an insert or an update
        if size + length > _GROUP_BYTES and place > start:
            yield items[start:place]
            start, size = place, 0
        size += length
    yield items[start:]


def _all_alone(error: StoreUnavailableError, items: Sequence[Any]) -> Sequence[WriteOutcome]:
    """What the server rolled back as a whole is done one by one; after another error nothing is."""
    if sqlstate_of(error) not in ROLLED_BACK:
        raise error
    return [None] * len(items)

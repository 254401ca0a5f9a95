"""The rows and their two unique indexes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from weakref import WeakValueDictionary

from saga_bus.store import DuplicateSagaError, FoundRow, SagaFilter, SagaOrder, SagaQuery, SagaRow
from saga_bus.store.checks import microseconds

__all__ = ["Database", "StoredRow", "shared_database"]

Key = tuple[str, str]


class StoredRow:
    """A saga's latest row and the correlation id that it was inserted with."""

    __slots__ = ("correlation_id", "row")

    def __init__(self, row: SagaRow, correlation_id: str) -> None:
        self.row = row
        self.correlation_id = correlation_id


class Database:
    """Sagas by id and by correlation id; every method is one step that no other task can interrupt."""

    def __init__(self) -> None:
        self.by_id: dict[Key, StoredRow] = {}
        self.by_correlation: dict[Key, StoredRow] = {}
        self._orders: dict[SagaOrder, list[tuple[int, str, str]]] = {}

    def insert(self, row: SagaRow, correlation_id: str) -> None:
        """Add a saga or raise `DuplicateSagaError`."""
        by_id, by_correlation = (row.saga_name, row.saga_id), (row.saga_name, correlation_id)
        if by_id in self.by_id or by_correlation in self.by_correlation:
            raise DuplicateSagaError(
                saga_name=row.saga_name,
                saga_id=row.saga_id,
                correlation_id=correlation_id,
                conflict="saga_id" if by_id in self.by_id else "correlation_id",
            )
        stored = StoredRow(row, correlation_id)
        self.by_id[by_id] = self.by_correlation[by_correlation] = stored
        self._orders.clear()

    def replace(self, stored: StoredRow, row: SagaRow) -> None:
        """Put a saga's next version in the place of its last one."""
        stored.row = row
        self._orders.clear()

    def remove(self, stored: StoredRow) -> None:
        """Remove a saga from both indexes."""
        del self.by_id[stored.row.saga_name, stored.row.saga_id]
        del self.by_correlation[stored.row.saga_name, stored.correlation_id]
        self._orders.clear()

    def clear(self) -> None:
        """Remove every saga."""
        self.by_id.clear()
        self.by_correlation.clear()
        self._orders.clear()

    def matching(self, where: SagaFilter) -> Iterator[StoredRow]:
        """The sagas that a filter lets through, in no particular order."""
        return (stored for stored in self.by_id.values() if _matches(stored.row, where))

    def page(self, query: SagaQuery) -> list[FoundRow]:
        """The rows of one page."""
        order = self._order(query.order)
        found: list[FoundRow] = []
        for moment, saga_name, saga_id in _behind(order, query):
            stored = self.by_id[saga_name, saga_id]
            if _matches(stored.row, query.where):
                found.append(FoundRow(saga_name, saga_id, stored.correlation_id, moment, stored.row.document))
                if len(found) == query.limit:
                    break
        return found

    def _order(self, order: SagaOrder) -> list[tuple[int, str, str]]:
        # Sorted once for all the pages between two writes.
        if order not in self._orders:
            moment = _MOMENTS[order]
            entries = [
                (at, stored.row.saga_name, stored.row.saga_id)
                for stored in self.by_id.values()
                if (at := moment(stored.row)) is not None
            ]
            self._orders[order] = sorted(entries)
        return self._orders[order]


def _due(row: SagaRow) -> int | None:
    return None if row.timeout_expires_at is None else microseconds(row.timeout_expires_at)


_MOMENTS: dict[SagaOrder, Callable[[SagaRow], int | None]] = {
    "newest": lambda row: microseconds(row.created_at),
    "stalest": lambda row: microseconds(row.updated_at),
    "due": _due,
}


def _behind(order: list[tuple[int, str, str]], query: SagaQuery) -> Iterator[tuple[int, str, str]]:
    after = None if query.after is None else (query.after.moment, query.after.saga_name, query.after.saga_id)
    if query.order == "newest":
        end = len(order) if after is None else bisect_left(order, after)
        return (order[index] for index in range(end - 1, -1, -1))
    start = 0 if after is None else bisect_right(order, after)
    return (order[index] for index in range(start, len(order)))


def _matches(row: SagaRow, where: SagaFilter) -> bool:
    return (
        (where.saga_name is None or row.saga_name == where.saga_name)
        and (where.completed is None or row.is_completed == where.completed)
        and (where.archived is None or (row.archived_at is not None) == where.archived)
        and (where.created_after is None or row.created_at > where.created_after)
        and (where.created_before is None or row.created_at < where.created_before)
        and (where.updated_after is None or row.updated_at > where.updated_after)
        and (where.updated_before is None or row.updated_at < where.updated_before)
        and (where.outbox_pending is None or row.outbox_pending == where.outbox_pending)
        and (
            where.timeout_due_before is None
            or (
                not row.is_completed
                and row.timeout_expires_at is not None
                and row.timeout_expires_at < where.timeout_due_before
            )
        )
    )


_shared: WeakValueDictionary[str, Database] = WeakValueDictionary()


def shared_database(name: str) -> Database:
    """The database of a name, which lives as long as a store is on it."""
    return _shared.setdefault(name, Database())

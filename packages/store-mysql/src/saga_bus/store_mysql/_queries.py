"""The statements of ``find`` and ``count``, each on an index that gives its order.

A query names its index (``FORCE INDEX``): stale statistics shall not turn a page's worth of reads into a scan of
all sagas.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from saga_bus.store import SagaFilter, SagaOrder, SagaQuery
from saga_bus.store_mysql._literals import Quote, flag, moment
from saga_bus.store_mysql._schema import COMPLETED, DUE, NEWEST, NEWEST_OF_NAME, STALEST, Index, Place

__all__ = ["count_statement", "find_statement"]

_FIND = b"""\
SELECT CAST(saga_name AS BINARY) AS name, CAST(saga_id AS BINARY) AS id, CAST(correlation_id AS BINARY),
       TIMESTAMPDIFF(MICROSECOND, '1970-01-01', %(moment)s) AS moment, CAST(state AS BINARY)
FROM %(table)s FORCE INDEX (%(index)s)
WHERE %(conditions)s
ORDER BY %(order)s
LIMIT %(limit)d"""
# The binary keys sort as the exact ones do: by their bytes, which in UTF-8 is by code points.
_MERGED = b"\nORDER BY moment %(direction)s, name %(direction)s, id %(direction)s\nLIMIT %(limit)d"
_COUNT = b"SELECT COUNT(*) FROM %(table)s WHERE %(conditions)s"

_MOMENTS: dict[SagaOrder, str] = {"newest": "created_at", "stalest": "updated_at", "due": "timeout_expires_at"}
_FLAGS = (
    ("archived", {True: b"archived_at IS NOT NULL", False: b"archived_at IS NULL"}),
    ("outbox_pending", {True: b"outbox_pending = 1", False: b"outbox_pending = 0"}),
)
_BOUNDS = (
    ("created_after", b"created_at", b">"),
    ("created_before", b"created_at", b"<"),
    ("updated_after", b"updated_at", b">"),
    ("updated_before", b"updated_at", b"<"),
    ("timeout_due_before", b"timeout_expires_at", b"<"),
)
_BOTH = (False, True)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def find_statement(place: Place, query: SagaQuery, quote: Quote) -> bytes:
    """The statement of one page.

    Args:
        place: The table.
        query: The page.
        quote: Makes the literals of the session.
    """
    direction = b"DESC" if query.order == "newest" else b"ASC"
    parts = [_page_part(place, query, where, index, quote) for where, index in _parts(query.where, query.order)]
    if len(parts) == 1:
        return parts[0]  # merging one would write it into a temporary table all the same
    return b"\nUNION ALL\n".join(b"(%b)" % part for part in parts) + _MERGED % {
        b"direction": direction,
        b"limit": query.limit,
    }


def count_statement(place: Place, where: SagaFilter, quote: Quote) -> bytes:
    """The statement that counts.

    Args:
        place: The table.
        where: Which sagas.
        quote: Makes the literals of the session.
    """
    conditions = _conditions(where, quote)
    if where.completed and where.saga_name is not None and where.updated_before is not None:
        # The same rows by the index that the purge uses.
        conditions.append(_bounded(b"completed_at", b"<", where.updated_before))
    return _COUNT % {b"table": place.quoted.encode(), b"conditions": b" AND ".join(conditions) or b"TRUE"}


def _parts(where: SagaFilter, order: SagaOrder) -> Iterator[tuple[SagaFilter, Index]]:
    """The indexes to walk, merged where there are several, each with the filter for it."""
    if order == "due":
        yield where, DUE
    elif order == "newest" and not where.outbox_pending:
        yield where, NEWEST if where.saga_name is None else NEWEST_OF_NAME
    elif order == "stalest" and where.completed and where.saga_name is not None:
        yield where, COMPLETED
    else:  # pending ones are few, so they are fetched by their flag also where they must be sorted then
        for completed in _BOTH if where.completed is None else (where.completed,):
            for pending in _BOTH if where.outbox_pending is None else (where.outbox_pending,):
                yield _with_flags(where, completed=completed, outbox_pending=pending), STALEST


def _with_flags(where: SagaFilter, **flags: bool) -> SagaFilter:
    fields = {field: getattr(where, field) for field in where.__struct_fields__}
    return SagaFilter(**{**fields, **flags})


def _page_part(place: Place, query: SagaQuery, where: SagaFilter, index: Index, quote: Quote) -> bytes:
    column = _MOMENTS[query.order]
    if index is COMPLETED:
        column = "completed_at"  # it is updated_at, for these sagas
    conditions = _conditions(where, quote)
    if index is DUE or index is COMPLETED:
        conditions.append(column.encode() + b" IS NOT NULL")
    keys = (column, "saga_id") if where.saga_name is not None else (column, "saga_name", "saga_id")
    if query.after is not None:
        values = {"saga_name": quote(query.after.saga_name.encode()), "saga_id": quote(query.after.saga_id.encode())}
        values[column] = moment(_EPOCH + timedelta(microseconds=query.after.moment))
        conditions.append(_behind(keys, values, b"<" if query.order == "newest" else b">"))
    direction = "DESC" if query.order == "newest" else "ASC"
    return _FIND % {
        b"moment": column.encode(),
        b"table": place.quoted.encode(),
        b"index": index.name.encode(),
        b"conditions": b" AND ".join(conditions) or b"TRUE",
        # Without columns that have one value only: with them MariaDB would sort all the rows by itself.
        b"order": ", ".join(f"{key} {direction}" for key in keys).encode(),
        b"limit": query.limit,
    }


def _behind(keys: tuple[str, ...], values: dict[str, bytes], operator: bytes) -> bytes:
    """``(a, b, c) > (x, y, z)`` in the long form, which both servers can look up in an index."""
    equal: list[bytes] = []
    alternatives: list[bytes] = []
    for key in keys:
        name, value = key.encode(), values[key]
        alternatives.append(b" AND ".join([*equal, b"%b %b %b" % (name, operator, value)]))
        equal.append(b"%b = %b" % (name, value))
    return b"(" + b" OR ".join(alternatives) + b")"


def _conditions(where: SagaFilter, quote: Quote) -> list[bytes]:
    conditions: list[bytes] = []
    if where.saga_name is not None:
        conditions.append(b"saga_name = " + quote(where.saga_name.encode()))
    if where.completed is not None:
        conditions.append(b"is_completed = " + flag(where.completed))
    if where.timeout_due_before is not None:
        conditions.append(b"is_completed = 0")  # only running sagas are due
    for field, texts in _FLAGS:
        value = getattr(where, field)
        if value is not None:
            conditions.append(texts[value])
    for field, column, operator in _BOUNDS:
        bound = getattr(where, field)
        if bound is not None:
            conditions.append(_bounded(column, operator, bound))
    return conditions


def _bounded(column: bytes, operator: bytes, bound: datetime) -> bytes:
    try:
        return b"%b %b %b" % (column, operator, moment(bound.astimezone(UTC)))
    except OverflowError:  # in UTC it is before the year 1 or after 9999, as no saga's is
        holds = (bound.year == 1) == (operator == b">")
        return column + b" IS NOT NULL" if holds else b"FALSE"

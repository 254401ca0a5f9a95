"""The filters of ``find``, ``count`` and the purge, each page on an index that gives its order."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from saga_bus.store import FoundRow, SagaFilter, SagaOrder, SagaQuery
from saga_bus.store.checks import microseconds
from saga_bus.store_mongodb._documents import json_of

__all__ = ["FOUND", "PageQuery", "conditions_of", "found_rows", "old_completed", "page_of"]

Document = dict[str, Any]

_MOMENTS: dict[SagaOrder, str] = {"newest": "created_at", "stalest": "updated_at", "due": "timeout_expires_at"}
FOUND = ("saga_name", "saga_id", "correlation_id", "state")


class PageQuery(NamedTuple):
    """A page as the driver takes it.

    Args:
        where: The filter.
        fields: The fields to fetch.
        sort: The order.
        hint: The index to walk.
    """

    where: Document
    fields: dict[str, int]
    sort: list[tuple[str, int]]
    hint: str


def page_of(query: SagaQuery) -> PageQuery:
    """The page that a query asks for.

    Args:
        query: The query.
    """
    moment, direction = _MOMENTS[query.order], -1 if query.order == "newest" else 1
    # Where the name is given it is the same in all, and left out so that the indexes that begin with it serve, too.
    keys = (moment, "saga_id") if query.where.saga_name is not None else (moment, "saga_name", "saga_id")
    conditions = [conditions_of(query.where)]
    if query.order == "stalest" and query.where.completed is None:
        conditions.append({"is_completed": {"$in": [False, True]}})  # two walks of one index, merged
    if query.after is not None:
        conditions.append(_behind(query, moment, "$lt" if direction < 0 else "$gt"))
    return PageQuery(
        {"$and": [condition for condition in conditions if condition]} if any(conditions) else {},
        {"_id": 0, **dict.fromkeys((*FOUND, moment), 1)},
        [(key, direction) for key in keys],
        _index(query),
    )


def conditions_of(where: SagaFilter) -> Document:
    """A filter as MongoDB has it.

    Args:
        where: The filter.
    """
    conditions: Document = {}
    if where.saga_name is not None:
        conditions["saga_name"] = where.saga_name
    if where.completed is not None:
        conditions["is_completed"] = where.completed
    if where.archived is not None:
        conditions["archived_at"] = {"$exists": where.archived}
    if where.outbox_pending is not None:
        conditions["outbox_pending"] = where.outbox_pending
    for name, after, before in (
        ("created_at", where.created_after, where.created_before),
        ("updated_at", where.updated_after, where.updated_before),
    ):
        bounds = {
            sign: microseconds(moment) for sign, moment in (("$gt", after), ("$lt", before)) if moment is not None
        }
        if bounds:
            conditions[name] = bounds
    if where.timeout_due_before is not None:
        conditions["timeout_expires_at"] = {"$exists": True, "$lt": microseconds(where.timeout_due_before)}
        if where.completed:
            conditions["_id"] = {"$in": []}  # a completed saga is never due
        conditions["is_completed"] = False
    return conditions


def old_completed(saga_name: str, before: datetime) -> Document:
    """Which sagas a purge deletes.

    Args:
        saga_name: The saga's name.
        before: When they were last updated, at the latest.
    """
    return conditions_of(SagaFilter(saga_name=saga_name, completed=True, updated_before=before))


def found_rows(documents: Sequence[Document], order: SagaOrder) -> list[FoundRow]:
    """What a page's query found.

    Args:
        documents: The documents.
        order: The query's order.
    """
    moment = _MOMENTS[order]
    return [
        FoundRow(
            document["saga_name"],
            document["saga_id"],
            document["correlation_id"],
            int(document[moment]),
            json_of(document["state"]),
        )
        for document in documents
    ]


def _behind(query: SagaQuery, moment: str, sign: str) -> Document:
    last = query.after
    if last is None:
        return {}
    ties: list[Document] = [{moment: {sign: last.moment}}]
    if query.where.saga_name is None:
        ties += [{"saga_name": {sign: last.saga_name}}, {"saga_name": last.saga_name, "saga_id": {sign: last.saga_id}}]
    else:
        ties.append({"saga_id": {sign: last.saga_id}})
    # The bound of the index stands outside of the "or", which then only looks at those of the very same moment.
    return {moment: {f"{sign}e": last.moment}, "$or": ties}


def _index(query: SagaQuery) -> str:
    where = query.where
    if query.order == "due":
        return "saga_due"
    if query.order == "stalest":
        return "saga_completed_of_name" if where.completed and where.saga_name is not None else "saga_stalest"
    if where.outbox_pending:
        return "saga_pending"
    return "saga_newest" if where.saga_name is None else "saga_newest_of_name"

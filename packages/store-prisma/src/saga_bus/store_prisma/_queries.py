"""The conditions and orders of ``find``, ``count`` and the purge, each on an index that gives its order."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

from saga_bus.store import SagaFilter, SagaOrder, SagaQuery
from saga_bus.store.checks import microseconds
from saga_bus.store_prisma._rows import Keys, hour_of

__all__ = ["MOMENTS", "Part", "completed_before", "count_condition", "parts_of"]

Condition = dict[str, Any]

MOMENTS: dict[SagaOrder, str] = {"newest": "created_at", "stalest": "updated_at", "due": "timeout_expires_at"}


class Part(NamedTuple):
    """A page, or one of two that are merged.

    Args:
        where: The condition.
        order: The order.
    """

    where: Condition
    order: list[Condition]


def parts_of(query: SagaQuery, keys: Keys) -> list[Part]:
    """What to fetch for a page; running and completed sagas are two walks over the index of their last update.

    Args:
        query: The page.
        keys: How keys are stored.
    """
    wheres = [query.where]
    if query.order == "stalest" and query.where.completed is None:
        fields = {field: getattr(query.where, field) for field in query.where.__struct_fields__}
        wheres = [SagaFilter(**{**fields, "completed": completed}) for completed in (False, True)]
    direction = "desc" if query.order == "newest" else "asc"
    names = () if query.where.saga_name is not None else ("saga_name",)  # the same in all rows otherwise
    hours = ("updated_hour",) if query.order == "stalest" else ()
    order: list[Condition] = [{field: direction} for field in (*hours, MOMENTS[query.order], *names, "saga_id")]
    return [Part({"AND": [*_conditions(where, keys), *_behind(query, names, keys)]}, order) for where in wheres]


def count_condition(where: SagaFilter, keys: Keys) -> Condition:
    """The condition of a count.

    Args:
        where: Which sagas.
        keys: How keys are stored.
    """
    return {"AND": list(_conditions(where, keys))}


def completed_before(saga_name: str, before: datetime, keys: Keys) -> Condition:
    """The sagas to purge.

    Args:
        saga_name: The saga's name.
        before: Their last update was strictly earlier.
        keys: How keys are stored.
    """
    return count_condition(SagaFilter(saga_name=saga_name, completed=True, updated_before=before), keys)


def _conditions(where: SagaFilter, keys: Keys) -> Iterator[Condition]:
    if where.saga_name is not None:
        yield {"saga_name": keys.stored(where.saga_name)}
    if where.completed is not None:
        yield {"is_completed": where.completed}
    if where.archived is not None:
        yield {"archived_at": {"not": None} if where.archived else None}
    if where.outbox_pending is not None:
        yield {"outbox_pending": where.outbox_pending}
    if where.created_after is not None:
        yield {"created_at": {"gt": microseconds(where.created_after)}}
    if where.created_before is not None:
        yield {"created_at": {"lt": microseconds(where.created_before)}}
    if where.updated_after is not None:
        yield from _since(microseconds(where.updated_after), "gt")
    if where.updated_before is not None:
        moment = microseconds(where.updated_before)
        yield {"updated_hour": {"lte": hour_of(moment)}, "updated_at": {"lt": moment}}
    if where.timeout_due_before is not None:
        yield {"is_completed": False, "timeout_expires_at": {"lt": microseconds(where.timeout_due_before)}}


def _since(moment: int, compared: str) -> Iterator[Condition]:
    yield {"updated_hour": {"gte": hour_of(moment)}, "updated_at": {compared: moment}}


def _behind(query: SagaQuery, names: tuple[str, ...], keys: Keys) -> Iterator[Condition]:
    """Only what comes behind the cursor: first on the index's own column, then exactly."""
    after = query.after
    if after is None:
        return
    compared = "lt" if query.order == "newest" else "gt"
    moment = MOMENTS[query.order]
    if query.order == "stalest":
        yield from _since(after.moment, "gte")
    else:
        yield {moment: {f"{compared}e": after.moment}}
    place = {moment: after.moment, "saga_name": keys.stored(after.saga_name), "saga_id": keys.stored(after.saga_id)}
    behind: list[Condition] = []
    same: Condition = {}
    for field in (moment, *names, "saga_id"):
        behind.append({**same, field: {compared: place[field]}})
        same[field] = place[field]
    yield {"OR": behind}

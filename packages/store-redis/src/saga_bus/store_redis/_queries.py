"""Walks along the index: ``find``, ``count`` and the choice of what to purge."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, NamedTuple

from saga_bus.store import CursorPosition, FoundRow, SagaFilter, SagaQuery, StoreUnavailableError
from saga_bus.store.checks import microseconds
from saga_bus.store_redis._items import Candidate
from saga_bus.store_redis._keys import Keys, moment_of_text, parse_record, text_of_microseconds, text_of_moment
from saga_bus.store_redis._routes import Route, run_script
from saga_bus.store_redis._scripts import COUNT, FIND, HEAL, unpacked

__all__ = ["choose", "count_sagas", "find_sagas"]

_CHUNK = 500  # the most sagas that one script returns
_PATIENCE = 5  # how often a walk is tried again that met a saga on its way to another node
_ENDED, _AGAIN = 1, 2
_WIDTHS = {b"d": 2, b"h": 3}
_CREATED, _UPDATED, _DUE = "created", "updated", "due"
_MOMENT_OF = {"n": _CREATED, "f": _CREATED, "r": _UPDATED, "c": _UPDATED, "o": _UPDATED, "d": _DUE}


class _Walk(NamedTuple):
    """A part of the index of one saga type: a letter, the bounds of what follows it, and what they leave to check."""

    saga_name: str
    keys: Keys
    letter: str
    lower: bytes
    upper: bytes
    conditions: list[bytes]
    forward: bool = True

    def behind(self, last: bytes) -> _Walk:
        """The rest of it behind a member."""
        return self._replace(lower=b"(" + last) if self.forward else self._replace(upper=b"(" + last)


def _digit(*, value: bool | None) -> bytes:
    return b"" if value is None else b"1" if value else b"0"


def _conditions(where: SagaFilter) -> list[bytes]:
    """The arguments of the script from the sixth on."""
    moments = (
        *(where.created_after, where.created_before, where.updated_after, where.updated_before),
        where.timeout_due_before,
    )
    return [
        *(_digit(value=flag) for flag in (where.completed, where.archived, where.outbox_pending)),
        *(b"" if moment is None else text_of_moment(moment).encode() for moment in moments),
    ]


def _letters_to_find(query: SagaQuery) -> str:
    where = query.where
    if query.order == "due":
        return "d"
    if query.order == "stalest" and where.outbox_pending:
        return "o"
    running, completed = ("n", "f") if query.order == "newest" else ("r", "c")
    return running + completed if where.completed is None else completed if where.completed else running


def _letters_to_count(where: SagaFilter) -> str:
    if where.timeout_due_before is not None:
        return "d"
    if where.outbox_pending:
        return "o"
    by_update = where.updated_after is not None or where.updated_before is not None
    by_creation = where.created_after is not None or where.created_before is not None
    running, completed = ("r", "c") if by_update and not by_creation else ("n", "f")
    return running + completed if where.completed is None else completed if where.completed else running


def _walk(saga_name: str, keys: Keys, letter: str, where: SagaFilter) -> _Walk:
    """A letter's part of the index within the bounds that the filter sets to its moment."""
    after, before = {
        _CREATED: (where.created_after, where.created_before),
        _UPDATED: (where.updated_after, where.updated_before),
        _DUE: (None, where.timeout_due_before),
    }[_MOMENT_OF[letter]]
    lower = f"[{letter}" if after is None else f"[{letter}{text_of_microseconds(microseconds(after) + 1)}"
    upper = f"({chr(ord(letter) + 1)}" if before is None else f"({letter}{text_of_moment(before)}"
    left_to_check = SagaFilter() if _is_covered(where, letter) else where
    return _Walk(saga_name, keys, letter, lower.encode(), upper.encode(), _conditions(left_to_check))


def _behind(walk: _Walk, after: CursorPosition) -> _Walk:
    """The part of a walk that lies strictly behind a place in the order of (moment, saga name, saga id)."""
    forward = walk.forward
    here = f"{walk.letter}{text_of_microseconds(after.moment)}"
    next_moment = f"{walk.letter}{text_of_microseconds(after.moment + 1)}"
    if walk.saga_name == after.saga_name:
        bound = f"({here}{after.saga_id}"
    elif (walk.saga_name > after.saga_name) == forward:  # its sagas of this moment come behind the place
        bound = f"[{here}" if forward else f"({next_moment}"
    else:
        bound = f"[{next_moment}" if forward else f"({here}"
    encoded = bound.encode()
    if forward:
        return walk._replace(lower=max(walk.lower, encoded, key=_place))
    return walk._replace(upper=min(walk.upper, encoded, key=_place))


def _place(bound: bytes) -> tuple[bytes, bool]:
    return bound[1:], bound[:1] == b"("


def _is_covered(where: SagaFilter, letter: str) -> bool:
    """Whether the bounds of a letter's part say all that the filter says."""
    moment = _MOMENT_OF[letter]
    created = where.created_after is not None or where.created_before is not None
    updated = where.updated_after is not None or where.updated_before is not None
    return not (
        where.archived is not None
        or (created and moment != _CREATED)
        or (updated and moment != _UPDATED)
        or (where.completed is not None and letter == "o")
        or (where.completed is True and letter == "d")
        or (where.outbox_pending is not None and letter != "o")
        or (where.timeout_due_before is not None and letter != "d")
    )


async def find_sagas(route: Route, types: Sequence[tuple[str, Keys]], query: SagaQuery) -> list[FoundRow]:
    """The rows of one page.

    Args:
        route: Where the keys are.
        types: The saga types to look at, and their keys.
        query: The page.
    """
    forward = query.order != "newest"
    walks = [
        _walk(name, keys, letter, query.where)._replace(forward=forward)
        for name, keys in types
        for letter in _letters_to_find(query)
    ]
    if query.after is not None:
        walks = [_behind(walk, query.after) for walk in walks]
    pages = await asyncio.gather(*(_page(route, walk, query.limit) for walk in walks))
    rows = sorted(
        (row for page in pages for row in page),
        key=lambda row: (row.moment, row.saga_name, row.saga_id),
        reverse=not forward,
    )
    return rows[: query.limit]


async def _page(route: Route, walk: _Walk, limit: int) -> list[FoundRow]:
    rows: list[FoundRow] = []
    async for saga_id, value in _found(route, walk, limit, b"d"):
        record = parse_record(value)
        moment = {_CREATED: record.created_at, _UPDATED: record.updated_at, _DUE: record.due_at}[
            _MOMENT_OF[walk.letter]
        ]
        rows.append(
            FoundRow(
                walk.saga_name,
                saga_id.decode(),
                record.correlation_id.decode(),
                moment_of_text(moment),
                record.document,
            )
        )
    return rows


async def choose(route: Route, keys: Keys, where: SagaFilter, limit: int) -> list[Candidate]:
    """Completed sagas, least recently updated first.

    Args:
        route: Where the keys are.
        keys: The keys of their type.
        where: Which ones.
        limit: The most of them.
    """
    walk = _walk("", keys, "c", where)
    return [Candidate(*row) async for row in _found(route, walk, limit, b"h")]


async def count_sagas(route: Route, types: Sequence[tuple[str, Keys]], where: SagaFilter) -> int:
    """How many sagas there are.

    Args:
        route: Where the keys are.
        types: The saga types to look at, and their keys.
        where: Which sagas.
    """
    walks = [_walk(name, keys, letter, where) for name, keys in types for letter in _letters_to_count(where)]
    if not any(condition for walk in walks for condition in walk.conditions):
        return sum(await asyncio.gather(*(_count_members(route, walk) for walk in walks)))
    return sum(await asyncio.gather(*(_count_one_by_one(route, walk) for walk in walks)))


async def _count_members(route: Route, walk: _Walk) -> int:
    while True:
        (total,) = await run_script(route, COUNT, [walk.keys.index_key], walk.lower, walk.upper, writing=False)
        if total >= 0:
            return int(total)


async def _count_one_by_one(route: Route, walk: _Walk) -> int:
    total = 0
    async for found, _ in _chunks(route, walk, None, b"n"):
        total += found
    return total


async def _found(route: Route, walk: _Walk, limit: int, kind: bytes) -> AsyncIterator[list[bytes]]:
    """What a walk finds: an id and a value each (kind d), or an id, a correlation id and an update's moment (h)."""
    width = _WIDTHS[kind]
    async for _, rows in _chunks(route, walk, limit, kind):
        for first in range(0, len(rows), width):
            yield rows[first : first + width]


async def _chunks(route: Route, walk: _Walk, limit: int | None, kind: bytes) -> AsyncIterator[tuple[int, list[Any]]]:
    """What a walk finds, a script's worth at a time: how many, and what was returned of them."""
    patience = _PATIENCE
    left = limit
    while left is None or left > 0:
        most = _CHUNK if left is None else min(left, _CHUNK)
        ((state, last, found, ghosts, rows),) = await run_script(
            route,
            FIND,
            [walk.keys.index_key],
            *(b"+" if walk.forward else b"-", walk.lower, walk.upper, b"%d" % most, kind, *walk.conditions),
            writing=False,
        )
        if ghosts and await _heal(route, walk.keys, ghosts) < len(ghosts):
            patience -= 1  # some are there: they came from another node meanwhile
            if patience == 0:
                raise StoreUnavailableError("the saga's hash slot is moving to another node")
            continue
        if state == _AGAIN:
            continue
        yield found, unpacked(rows)
        if left is not None:
            left -= found
        if state == _ENDED:
            return
        walk = walk.behind(last)


async def _heal(route: Route, keys: Keys, ghosts: list[bytes]) -> int:
    """Take members out of the index whose saga is gone, as after an eviction; how many."""
    healed = 0
    for members in _slices(ghosts):
        states = [keys.states + member[19:] for member in members]
        (count,) = await run_script(route, HEAL, [keys.index_key, *states], *members, writing=False)
        healed += count
    return healed


def _slices(members: list[bytes]) -> Iterator[list[bytes]]:
    for first in range(0, len(members), 100):
        yield members[first : first + 100]

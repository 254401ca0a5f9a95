"""The scripts of the differential machine: steps, how they are played on a store, and when two outcomes agree."""

from __future__ import annotations

from datetime import datetime
from itertools import chain
from math import inf, nan
from typing import Any, Literal, cast

import msgspec
from hypothesis import strategies as st

from saga_bus.store import errors
from saga_bus.store.conformance.model import (
    CONTENTS,
    FILTERS,
    KEYS,
    MOMENTS,
    SAGA_NAMES,
    Content,
    shown_fields,
)
from saga_bus.store.query import SagaFilter

__all__ = ["Call", "Outcome", "Player", "Progress", "Step", "agree", "scripts_for"]

Kind = Literal[
    "insert", "update", "get_by_id", "get_by_correlation_id", "delete", "find", "find_next", "count", "purge"
]
Cursor = Literal["first", "next", "changed", "of another filter", "garbage"]

_CURSORS: tuple[Cursor, ...] = ("next", "changed", "of another filter", "garbage")
_ODD_KEYS = ("", "i" * 129, "i" * 257, "nul\x00")
_ODD_UPDATES = ((1, 1), (-1, 1), (0, 0), (0, 2))
_ODD_FILTERS = (
    SagaFilter(saga_name=""),
    SagaFilter(created_before=MOMENTS[0].replace(tzinfo=None)),
    SagaFilter(order="due"),
    SagaFilter(order=cast("Any", "backwards")),
)


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of a script, as hypothesis makes it.

    Args:
        kind: The operation.
        saga: Its saga name, and its saga id; the correlation id of a look-up by correlation id.
        correlation_id: Of an insert.
        versions: The distance from the version that the saga has to the one that is expected, and from that
            to the version of the state; None expects none.
        content: What is written.
        where: The filter of a search.
        limit: The page's limit, or the batch size of a purge.
        before: The moment of a purge.
        cursor: Where a search goes on.
    """

    kind: Kind
    saga: tuple[str, str] = (SAGA_NAMES[0], KEYS[0])
    correlation_id: str = KEYS[0]
    versions: tuple[int, int] | None = None
    content: Content = Content()
    where: SagaFilter = SagaFilter()
    limit: int = 1
    before: datetime = MOMENTS[0]
    cursor: Cursor = "next"


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A step with its versions settled.

    Args:
        step: The step.
        expected_version: The version that an update or a delete expects.
        new_version: The version of an update's state.
    """

    step: Step
    expected_version: int | None
    new_version: int

    def __str__(self) -> str:  # noqa: PLR0911 - one for each operation
        step = self.step
        saga_name, key = step.saga
        match step.kind:
            case "insert":
                return f"insert({saga_name!r}, {step.correlation_id!r}, {key!r} with {step.content!r})"
            case "update":
                about = f"{key!r} at version {self.new_version} with {step.content!r}"
                return f"update({saga_name!r}, {about}, expected_version={self.expected_version})"
            case "delete":
                expected = "" if self.expected_version is None else f", expected_version={self.expected_version}"
                return f"delete({saga_name!r}, {key!r}{expected})"
            case "find":
                return f"find(SagaFilter({shown_fields(step.where)}), limit={step.limit})"
            case "find_next":
                return f"find(the same filter, limit={step.limit}, cursor: {step.cursor})"
            case "count":
                return f"count(SagaFilter({shown_fields(step.where)}))"
            case "purge":
                before = step.before.isoformat()
                return f"delete_completed_before({saga_name!r}, {before}, batch_size={step.limit})"
            case _:
                return f"{step.kind}({saga_name!r}, {key!r})"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a call did: it returned something or raised something.

    Args:
        result: What it returned.
        error: What it raised.
    """

    result: Any = None
    error: Exception | None = None

    def __str__(self) -> str:
        return f"returned {self.result!r}" if self.error is None else f"raised {self.error!r}"


def agree(left: Outcome, right: Outcome, *, either_conflict: bool) -> bool:
    """Whether two stores did the same.

    Args:
        left: What one did.
        right: What the other did.
        either_conflict: Whether a duplicate error may name either key, because both are taken.
    """
    if left.error is None or right.error is None:
        return left.error is right.error and bool(left.result == right.result)
    if _kind_of_error(left.error) is not _kind_of_error(right.error):
        return False
    if not either_conflict and getattr(left.error, "conflict", None) != getattr(right.error, "conflict", None):
        return False
    versions = {getattr(error, "actual_version", None) for error in (left.error, right.error)} - {None}
    return len(versions) < 2


def _kind_of_error(error: Exception) -> type[BaseException]:
    # A backend may have subclasses of its own; what counts is the type that the contract knows.
    return next((kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__), type(error))


class Player:
    """Plays calls on a store, and keeps the cursor of its last page.

    Args:
        store: The store.
    """

    def __init__(self, store: Any) -> None:
        self._store = store
        self._where = SagaFilter()
        self._cursor: str | None = None
        self._call: Call | None = None
        self._start: tuple[SagaFilter, str | None] = self._where, self._cursor
        self._deleted = 0

    async def play(self, call: Call) -> Outcome:
        """Make one call; made again, a search starts from the same place, and a purge counts what it deleted before.

        Args:
            call: The call.
        """
        if call is not self._call:
            self._call, self._start, self._deleted = call, (self._where, self._cursor), 0
        self._where, self._cursor = self._start
        try:
            return Outcome(result=await self._result(call))
        except Exception as error:  # noqa: BLE001 - what it raises is what is compared
            return Outcome(error=error)

    async def _result(self, call: Call) -> Any:  # noqa: C901, PLR0911 - one for each operation
        step, expected = call.step, call.expected_version
        saga_name, key = step.saga
        match step.kind:
            case "insert":
                return await self._store.insert(saga_name, step.correlation_id, step.content.state(key, 0))
            case "update":
                state = step.content.state(key, call.new_version, created=MOMENTS[0])
                return await self._store.update(saga_name, state, expected)
            case "delete" if expected is None:
                return await self._store.delete(saga_name, key)
            case "delete":
                return await self._store.delete(saga_name, key, expected)
            case "get_by_id":
                return await self._store.get_by_id(saga_name, key)
            case "get_by_correlation_id":
                return await self._store.get_by_correlation_id(saga_name, key)
            case "count":
                return await self._store.count(step.where)
            case "purge":
                purge = self._store.delete_completed_before
                self._deleted += await purge(saga_name, step.before, batch_size=step.limit)
                return self._deleted
            case "find":
                self._where, self._cursor = step.where, None
                return await self._page(step.where, step.limit, None)
            case "find_next":
                return await self._go_on(step)

    async def _go_on(self, step: Step) -> Any:
        if step.cursor == "garbage":
            return await self._page(self._where, step.limit, "no cursor")
        if self._cursor is None:
            return None
        match step.cursor:
            case "changed":
                last = "A" if self._cursor[-1] != "A" else "B"
                return await self._page(self._where, step.limit, self._cursor[:-1] + last)
            case "of another filter":
                other = msgspec.structs.replace(self._where, completed=not self._where.completed)
                return await self._page(other, step.limit, self._cursor)
            case _:
                return await self._page(self._where, step.limit, self._cursor)

    async def _page(self, where: SagaFilter, limit: int, cursor: str | None) -> Any:
        page = await self._store.find(where, limit=limit, cursor=cursor)
        self._cursor = page.cursor
        # Cursors are opaque, so only whether there is one is compared.
        return page.items, page.cursor is not None


class Progress:
    """Which sagas a script has made so far, so that a step can mean "the right version"."""

    def __init__(self) -> None:
        self._versions: dict[tuple[str, str], int] = {}
        self._correlations: dict[tuple[str, str], str] = {}

    def resolve(self, step: Step) -> Call:
        """Settle a step's versions.

        Args:
            step: The step.
        """
        version = self._versions.get(step.saga, 0)
        if step.versions is None:
            return Call(step=step, expected_version=None, new_version=0)
        distance, raised_by = step.versions
        expected = version + distance
        return Call(step=step, expected_version=expected, new_version=expected + raised_by)

    def both_taken(self, call: Call) -> bool:
        """Whether an insert meets its id and its correlation id taken.

        Args:
            call: The call.
        """
        step = call.step
        return step.saga in self._versions and any(
            (name, other) == (step.saga[0], step.correlation_id) for (name, _), other in self._correlations.items()
        )

    def follow(self, call: Call, outcome: Outcome) -> None:
        """Note what a call did.

        Args:
            call: The call.
            outcome: What it did on both stores.
        """
        if outcome.error is not None:
            return
        step, saga = call.step, call.step.saga
        match step.kind:
            case "insert":
                self._versions[saga], self._correlations[saga] = 0, step.correlation_id
            case "update":
                self._versions[saga] = call.new_version
            case "delete":
                self._versions.pop(saga, None)
                self._correlations.pop(saga, None)


def _mostly(usual: tuple[Any, ...], odd: tuple[Any, ...], share: int = 12) -> st.SearchStrategy[Any]:
    # The usual values come about so many times as often, so that scripts get somewhere between two refusals.
    usual *= max(1, share * len(odd) // len(usual))
    return st.sampled_from((*usual, *odd * max(1, len(usual) // (share * len(odd)))))


def scripts_for(abilities: frozenset[str], steps: int) -> st.SearchStrategy[list[Step]]:
    """Scripts of up to so many steps that use the five operations and some abilities.

    Args:
        abilities: Which of "conditional_delete", "query" and "retention".
        steps: The most steps.
    """
    # One list would have about six steps whatever its largest size; several short ones shrink as well.
    step = _steps_for(abilities)
    sizes = [min(10, steps - start) for start in range(0, steps, 10)]
    return st.tuples(*(st.lists(step, max_size=size) for size in sizes)).map(lambda parts: [*chain(*parts)])


def _steps_for(abilities: frozenset[str]) -> st.SearchStrategy[Step]:
    odd_sagas = (("", "k1"), ("n" * 129, "k1"), *((SAGA_NAMES[0], key) for key in _ODD_KEYS))
    sagas = _mostly(tuple((saga_name, key) for saga_name in SAGA_NAMES for key in KEYS[:2]), odd_sagas)
    keys = _mostly(KEYS[:2], _ODD_KEYS)
    contents = _mostly(CONTENTS, (Content(weight=nan), Content(weight=-inf), Content(note="nul\x00")))

    def steps(kind: Kind, **fields: Any) -> st.SearchStrategy[Step]:
        return st.builds(Step, kind=st.just(kind), **fields)

    insert = steps("insert", saga=sagas, correlation_id=keys, content=contents)
    update = steps("update", saga=sagas, content=contents, versions=_mostly(((0, 1),), _ODD_UPDATES, share=1))
    look_up = steps("get_by_id", saga=sagas)
    choices = [
        *(insert, insert, insert, update, update, look_up, look_up),
        steps("get_by_correlation_id", saga=sagas),
        steps("delete", saga=sagas),
    ]
    if "conditional_delete" in abilities:
        choices.append(steps("delete", saga=sagas, versions=_mostly(((0, 0),), ((1, 0), (-1, 0)), share=1)))
    if "query" in abilities:
        filters = _mostly(FILTERS, _ODD_FILTERS)
        limits = _mostly((1, 2, 3), (0, -1))
        cursors = st.sampled_from(_CURSORS)
        choices += [
            steps("find", where=filters, limit=limits),
            steps("find_next", limit=limits, cursor=cursors),
            steps("count", where=filters),
        ]
    if "retention" in abilities:
        moments = st.sampled_from(MOMENTS)
        choices.append(steps("purge", saga=sagas, before=moments, limit=_mostly((1, 2), (0,))))
    return st.one_of(choices)

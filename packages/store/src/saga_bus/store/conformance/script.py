"""The scripts of the differential machine: steps, how they are played on a store, and when two outcomes agree."""

from __future__ import annotations

from datetime import datetime
from math import nan
from typing import Any, Literal

import msgspec
from hypothesis import strategies as st

from saga_bus.store import errors
from saga_bus.store.conformance.model import KEYS, MOMENTS, SAGA_NAMES, machine_state
from saga_bus.store.query import SagaFilter

__all__ = ["Call", "Outcome", "Player", "Progress", "Step", "agree", "steps_for"]

Kind = Literal[
    "insert", "update", "get_by_id", "get_by_correlation_id", "delete", "find", "find_next", "count", "purge"
]
Cursor = Literal["first", "next", "changed", "of another filter", "garbage"]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of a script, as hypothesis makes it.

    Args:
        kind: The operation.
        saga_name: Its saga name.
        key: Its saga id; the correlation id of a look-up by correlation id.
        correlation_id: Of an insert.
        distance: From the version that the saga has to the one that is expected; None expects none.
        raised_by: From the expected version to that of the state.
        at: When the state is made; the moment of a purge.
        completed: Whether the state is completed.
        timeout: When the state's timeout is due.
        weight: The state's float.
        where: The filter of a search.
        limit: The page's limit, or the batch size of a purge.
        cursor: Where a search goes on.
    """

    kind: Kind
    saga_name: str = SAGA_NAMES[0]
    key: str = KEYS[0]
    correlation_id: str = KEYS[0]
    distance: int | None = 0
    raised_by: int = 1
    at: datetime = MOMENTS[0]
    completed: bool = False
    timeout: datetime | None = None
    weight: float = 0.0
    where: SagaFilter = SagaFilter()
    limit: int = 1
    cursor: Cursor = "first"


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A step with its versions settled.

    Args:
        step: The step.
        expected_version: The version that an update or a delete expects.
    """

    step: Step
    expected_version: int | None

    def __str__(self) -> str:  # noqa: PLR0911 - one for each operation
        step = self.step
        state = f"weight={step.weight}, completed={step.completed}, at={step.at.isoformat()}"
        match step.kind:
            case "insert":
                return f"insert({step.saga_name!r}, {step.correlation_id!r}, state of {step.key!r}: {state})"
            case "update":
                version = (self.expected_version or 0) + step.raised_by
                about = f"state of {step.key!r}: version {version}, {state}"
                return f"update({step.saga_name!r}, {about}, expected_version={self.expected_version})"
            case "delete":
                expected = "" if self.expected_version is None else f", expected_version={self.expected_version}"
                return f"delete({step.saga_name!r}, {step.key!r}{expected})"
            case "find":
                return f"find({_set_fields(step.where)}, limit={step.limit})"
            case "find_next":
                return f"find(the filter of the last find, limit={step.limit}, cursor={step.cursor})"
            case "count":
                return f"count({_set_fields(step.where)})"
            case "purge":
                return f"delete_completed_before({step.saga_name!r}, {step.at.isoformat()}, batch_size={step.limit})"
            case _:
                return f"{step.kind}({step.saga_name!r}, {step.key!r})"


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

    async def play(self, call: Call) -> Outcome:
        """Make one call.

        Args:
            call: The call.
        """
        try:
            return Outcome(result=await self._result(call))
        except Exception as error:  # noqa: BLE001 - what it raises is what is compared
            return Outcome(error=error)

    async def _result(self, call: Call) -> Any:  # noqa: C901, PLR0911 - one for each operation
        step, expected = call.step, call.expected_version
        match step.kind:
            case "insert":
                return await self._store.insert(step.saga_name, step.correlation_id, _state(step, 0))
            case "update":
                version = (expected or 0) + step.raised_by
                return await self._store.update(step.saga_name, _state(step, version), expected)
            case "delete" if expected is None:
                return await self._store.delete(step.saga_name, step.key)
            case "delete":
                return await self._store.delete(step.saga_name, step.key, expected)
            case "get_by_id":
                return await self._store.get_by_id(step.saga_name, step.key)
            case "get_by_correlation_id":
                return await self._store.get_by_correlation_id(step.saga_name, step.key)
            case "count":
                return await self._store.count(step.where)
            case "purge":
                return await self._store.delete_completed_before(step.saga_name, step.at, batch_size=step.limit)
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
        version = self._versions.get((step.saga_name, step.key), 0)
        return Call(step=step, expected_version=None if step.distance is None else version + step.distance)

    def both_taken(self, call: Call) -> bool:
        """Whether an insert meets its id and its correlation id taken.

        Args:
            call: The call.
        """
        step = call.step
        taken = [name for (name, _), other in self._correlations.items() if other == step.correlation_id]
        return (step.saga_name, step.key) in self._versions and step.saga_name in taken

    def follow(self, call: Call, outcome: Outcome) -> None:
        """Note what a call did.

        Args:
            call: The call.
            outcome: What it did on both stores.
        """
        if outcome.error is not None:
            return
        step, key = call.step, (call.step.saga_name, call.step.key)
        match step.kind:
            case "insert":
                self._versions[key], self._correlations[key] = 0, step.correlation_id
            case "update":
                self._versions[key] = (call.expected_version or 0) + step.raised_by
            case "delete":
                self._versions.pop(key, None)
                self._correlations.pop(key, None)


def _state(step: Step, version: int) -> Any:
    return machine_state(
        step.key,
        version,
        created=MOMENTS[0],
        updated=step.at,
        completed=step.completed,
        timeout=step.timeout,
        weight=step.weight,
    )


def _set_fields(where: SagaFilter) -> str:
    fields = msgspec.structs.asdict(where).items()
    return f"SagaFilter({', '.join(f'{name}={value!r}' for name, value in fields if value is not None)})"


def _mostly(usual: tuple[Any, ...], odd: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    # The usual values several times over, so that scripts get somewhere between two refusals.
    repeated = usual * max(1, 8 * len(odd) // len(usual))
    return st.sampled_from((*repeated, *odd))


def steps_for(abilities: frozenset[str]) -> st.SearchStrategy[Step]:
    """Steps that use the five operations and some abilities, invalid arguments among them.

    Args:
        abilities: Which of "conditional_delete", "query" and "retention".
    """
    names = _mostly(SAGA_NAMES, ("", "n" * 129))
    keys = _mostly(KEYS[:3], ("", "i" * 129, "i" * 257, "nul\x00"))
    moments = st.sampled_from(MOMENTS)
    about: dict[str, Any] = {"saga_name": names, "key": keys}
    content: dict[str, Any] = {
        "at": moments,
        "completed": st.booleans(),
        "timeout": st.none() | moments,
        "weight": _mostly((0.0, 1.5, -0.0), (nan,)),
    }
    distances = _mostly((0,), (-1, 1))

    def steps(kind: Kind, **fields: Any) -> st.SearchStrategy[Step]:
        return st.builds(Step, kind=st.just(kind), **fields)

    choices = [
        steps("insert", **about, **content, correlation_id=keys),
        steps("update", **about, **content, distance=distances, raised_by=_mostly((1,), (0, 2))),
        steps("get_by_id", **about),
        steps("get_by_correlation_id", **about),
        steps("delete", **about, distance=st.none()),
    ]
    if "conditional_delete" in abilities:
        choices.append(steps("delete", **about, distance=distances))
    if "query" in abilities:
        limits = _mostly((1, 2, 3), (0, -1))
        cursors = st.sampled_from(("next", "next", "changed", "of another filter", "garbage"))
        choices += [
            steps("find", where=_filters(), limit=limits),
            steps("find_next", limit=limits, cursor=cursors),
            steps("count", where=_filters()),
        ]
    if "retention" in abilities:
        choices.append(steps("purge", saga_name=names, at=moments, limit=_mostly((1, 2), (0,))))
    return st.one_of(choices)


def _filters() -> st.SearchStrategy[SagaFilter]:
    moments = _mostly((None, *MOMENTS), (MOMENTS[0].replace(tzinfo=None),))
    return st.builds(
        SagaFilter,
        saga_name=_mostly((None, *SAGA_NAMES), ("",)),
        completed=st.sampled_from((None, False, True)),
        created_before=moments,
        updated_after=moments,
        timeout_due_before=st.none() | st.sampled_from(MOMENTS),
        order=_mostly((None, "newest", "stalest"), ("due", "backwards")),
    )

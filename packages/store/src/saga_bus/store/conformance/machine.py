"""The stateful machine: hypothesis makes scripts of operations and compares a store with a plain model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from copy import deepcopy
from datetime import datetime
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from saga_bus.store.conformance import expect
from saga_bus.store.conformance.model import (
    KEYS,
    MOMENTS,
    SAGA_NAMES,
    STATE_TYPES,
    MachineState,
    Model,
    machine_state,
)
from saga_bus.store.errors import ConcurrencyError, DuplicateSagaError, InvalidSagaError, SagaNotFoundError
from saga_bus.store.protocol import capabilities_of
from saga_bus.store.query import SagaFilter

__all__ = ["SAGA_NAMES", "STATE_TYPES", "MachineState", "machine_settings", "run_machine"]

_names = st.sampled_from(SAGA_NAMES)
_keys = st.sampled_from(KEYS)
_moments = st.sampled_from(MOMENTS)
_maybe_moment = st.none() | _moments
_maybe_bool = st.none() | st.booleans()
_counts = st.integers(0, 9)
_limits = st.integers(1, 3)


@st.composite
def _filters(draw: st.DrawFn) -> SagaFilter:
    due = draw(_maybe_moment)
    return SagaFilter(
        saga_name=draw(st.none() | _names),
        completed=draw(_maybe_bool),
        archived=draw(_maybe_bool),
        created_after=draw(_maybe_moment),
        created_before=draw(_maybe_moment),
        updated_after=draw(_maybe_moment),
        updated_before=draw(_maybe_moment),
        timeout_due_before=due,
        outbox_pending=draw(_maybe_bool),
        order=draw(st.sampled_from((None, "newest", "stalest") if due is None else (None, "newest", "stalest", "due"))),
    )


def machine_settings(examples: int, **others: Any) -> settings:
    """Settings under which every run makes the same scripts and leaves nothing behind.

    Args:
        examples: How many scripts.
        **others: More of hypothesis's settings.
    """
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        print_blob=False,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        **others,
    )


def run_machine(
    open_store: Callable[[], Awaitable[Any]],
    close: Callable[[Any], Awaitable[None]],
    *,
    examples: int,
    steps: int,
) -> None:
    """Compare a store with a plain model, step by step; for a thread that runs no event loop.

    Each example has an event loop of its own, and opens and closes its store in it.

    Args:
        open_store: Opens a store on a fresh place.
        close: Closes it.
        examples: How many scripts.
        steps: The most steps of a script.

    Raises:
        AssertionError: The store differs from the model; the message names the rule, and hypothesis's notes
            on the exception hold the shortest script found.
    """
    run_state_machine_as_test(
        lambda: StoreMachine(open_store, close),  # type: ignore[arg-type]  # any factory serves, says its documentation
        settings=machine_settings(examples, stateful_step_count=steps),
    )


class StoreMachine(RuleBasedStateMachine):
    """A store beside its model; every rule is one operation on both."""

    def __init__(self, open_store: Callable[[], Awaitable[Any]], close: Callable[[Any], Awaitable[None]]) -> None:
        super().__init__()
        self._close = close
        self._model = Model()
        self._runner = asyncio.Runner()
        try:
            self._store = self._runner.run(_awaited(open_store))
            self._abilities = capabilities_of(self._store)
            for saga_name, state_type in STATE_TYPES.items():
                if hasattr(self._store, "register"):
                    self._store.register(saga_name, state_type)
        except BaseException:
            self._runner.close()
            raise

    def teardown(self) -> None:
        """Close the store and the event loop."""
        try:
            self._runner.run(_awaited(self._close, self._store))
        finally:
            self._runner.close()

    # -- insert and update -------------------------------------------------------------------------------

    @rule(
        saga_name=_names,
        saga_id=_keys,
        correlation_id=_keys,
        at=_moments,
        completed=st.booleans(),
        timeout=_maybe_moment,
        outbox=st.booleans(),
        count=_counts,
    )
    def insert(
        self,
        *,
        saga_name: str,
        saga_id: str,
        correlation_id: str,
        at: datetime,
        completed: bool,
        timeout: datetime | None,
        outbox: bool,
        count: int,
    ) -> None:
        """Insert a new saga, or one whose id or correlation id is taken."""
        state = machine_state(
            saga_id, 0, created=at, updated=at, completed=completed, timeout=timeout, outbox=outbox, count=count
        )
        id_taken = self._model.by_id(saga_name, saga_id) is not None
        correlation_taken = self._model.by_correlation(saga_name, correlation_id) is not None
        if id_taken and correlation_taken:
            what = "insert of a taken id and a taken correlation id"
            self._refused(what, DuplicateSagaError, self._store.insert, saga_name, correlation_id, state)
        elif id_taken or correlation_taken:
            conflict = "saga_id" if id_taken else "correlation_id"
            what = f"insert of a taken {'id' if id_taken else 'correlation id'}"
            error = self._refused(what, DuplicateSagaError, self._store.insert, saga_name, correlation_id, state)
            expect.true(error.conflict == conflict, f"{what}: .conflict is {error.conflict!r}, not {conflict!r}")
        else:
            kept = deepcopy(state)
            self._done("insert of a new saga", self._store.insert, saga_name, correlation_id, state)
            self._model.put(saga_name, correlation_id, kept)
        state.note = "changed after insert"

    @rule(
        saga_name=_names,
        saga_id=_keys,
        at=_moments,
        completed=st.booleans(),
        archived=_maybe_moment,
        timeout=_maybe_moment,
        outbox=st.booleans(),
        note=st.sampled_from(("", "n", "\N{CRAB}")),
        count=_counts,
    )
    def update(
        self,
        *,
        saga_name: str,
        saga_id: str,
        at: datetime,
        completed: bool,
        archived: datetime | None,
        timeout: datetime | None,
        outbox: bool,
        note: str,
        count: int,
    ) -> None:
        """Update a saga from its version, or one that is absent."""
        held = self._model.by_id(saga_name, saga_id)
        version = 0 if held is None else held.metadata.version
        state = machine_state(
            saga_id,
            version + 1,
            created=at if held is None else held.metadata.created_at,
            updated=at,
            completed=completed,
            archived=archived,
            timeout=timeout,
            outbox=outbox,
            note=note,
            count=count,
        )
        if held is None:
            what = "update of an absent saga"
            self._refused(what, SagaNotFoundError, self._store.update, saga_name, state, version)
            return
        kept = deepcopy(state)
        self._done("update from the right version", self._store.update, saga_name, state, version)
        self._model.replace(saga_name, kept)
        state.note = "changed after update"

    @rule(saga_name=_names, saga_id=_keys, distance=st.sampled_from((-1, -2, 1, 5)))
    def update_from_another_version(self, saga_name: str, saga_id: str, distance: int) -> None:
        """Update a present saga from an older version, or from one that never was."""
        held = self._model.by_id(saga_name, saga_id)
        if held is None or held.metadata.version + distance < 0:
            return
        version = held.metadata.version + distance
        state = self._next(held, version + 1)
        what = f"update from a {'stale' if distance < 0 else 'future'} version"
        error = self._refused(what, ConcurrencyError, self._store.update, saga_name, state, version)
        self._names_versions(what, error, version, held.metadata.version)

    @rule(saga_name=_names, saga_id=_keys, step=st.sampled_from((0, 2, -1)))
    def update_skipping(self, saga_name: str, saga_id: str, step: int) -> None:
        """Update a present saga from its version, to another one than the next."""
        held = self._model.by_id(saga_name, saga_id)
        if held is None or held.metadata.version + step < 0:
            return
        version = held.metadata.version
        state = self._next(held, version + step)
        what = "update that does not raise the version by one"
        self._refused(what, InvalidSagaError, self._store.update, saga_name, state, version)

    # -- delete ------------------------------------------------------------------------------------------

    @rule(saga_name=_names, saga_id=_keys)
    def delete(self, saga_name: str, saga_id: str) -> None:
        """Delete a saga whatever its version; an absent one is no error."""
        present = self._model.by_id(saga_name, saga_id) is not None
        what = f"delete of {'a present' if present else 'an absent'} saga"
        self._done(what, self._store.delete, saga_name, saga_id)
        self._model.remove(saga_name, saga_id)

    @precondition(lambda self: self._abilities.conditional_delete)
    @rule(saga_name=_names, saga_id=_keys, distance=st.sampled_from((0, -1, 1)))
    def delete_at_version(self, saga_name: str, saga_id: str, distance: int) -> None:
        """Delete a saga at its version, at another one, or an absent one."""
        held = self._model.by_id(saga_name, saga_id)
        actual = 0 if held is None else held.metadata.version
        version = max(0, actual + distance)
        arguments = (self._store.delete, saga_name, saga_id, version)
        if held is None:
            self._refused("delete of an absent saga at a version", SagaNotFoundError, *arguments)
        elif version != actual:
            what = f"delete at a {'stale' if version < actual else 'future'} version"
            self._names_versions(what, self._refused(what, ConcurrencyError, *arguments), version, actual)
        else:
            self._done("delete at the right version", *arguments)
            self._model.remove(saga_name, saga_id)

    # -- query and retention -----------------------------------------------------------------------------

    @precondition(lambda self: self._abilities.query)
    @rule(where=_filters(), limit=_limits)
    def find(self, where: SagaFilter, limit: int) -> None:
        """Walk all pages of a search."""
        expected = self._model.find(where)
        found: list[tuple[str, str, Any]] = []
        cursor: str | None = None
        while True:
            page = self._done("find", self._store.find, where, limit=limit, cursor=cursor)
            expect.true(len(page.items) <= limit, f"find: a page of {len(page.items)} with the limit {limit}")
            found += [(record.saga_name, record.correlation_id, record.state) for record in page.items]
            cursor = page.cursor
            if cursor is None:
                break
            expect.true(page.items, "find: an empty page with more behind it")
            expect.true(len(found) <= len(expected), f"find: more records than the {len(expected)} that match")
        expect.true(found == expected, f"find: found {_listed(found)}, not {_listed(expected)}")

    @precondition(lambda self: self._abilities.query)
    @rule(where=_filters())
    def count(self, where: SagaFilter) -> None:
        """Count the sagas of a search."""
        counted, expected = self._done("count", self._store.count, where), len(self._model.find(where))
        expect.true(counted == expected, f"count: {counted}, not {expected}")

    @precondition(lambda self: self._abilities.retention)
    @rule(saga_name=_names, before=_moments, batch_size=_limits, dry_run=st.booleans())
    def purge(
        self,
        *,
        saga_name: str,
        before: datetime,
        batch_size: int,
        dry_run: bool,
    ) -> None:
        """Delete the completed sagas that are older than a moment."""
        old = self._model.find(SagaFilter(saga_name=saga_name, completed=True, updated_before=before))
        purge = self._store.delete_completed_before
        deleted = self._done("purge", purge, saga_name, before, batch_size=batch_size, dry_run=dry_run)
        expect.true(deleted == len(old), f"purge: {deleted} sagas, not {len(old)}")
        if not dry_run:
            for _, _, state in old:
                self._model.remove(saga_name, state.metadata.saga_id)

    # -- after every step --------------------------------------------------------------------------------

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        """Every saga is found by both keys, equal to the model's, and nothing else is found."""
        for saga_name in SAGA_NAMES:
            for key in KEYS:
                found = self._done("get by id", self._store.get_by_id, saga_name, key)
                _compare("get by id", saga_name, key, found, self._model.by_id(saga_name, key))
                found = self._done("get by correlation id", self._store.get_by_correlation_id, saga_name, key)
                _compare("get by correlation id", saga_name, key, found, self._model.by_correlation(saga_name, key))

    # -- helpers -----------------------------------------------------------------------------------------

    @staticmethod
    def _next(held: MachineState, version: int) -> MachineState:
        at = held.metadata.updated_at
        return machine_state(
            held.metadata.saga_id, version, created=held.metadata.created_at, updated=at, note="must not be written"
        )

    def _done(self, what: str, operation: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Any:
        try:
            return self._runner.run(_awaited(operation, *arguments, **options))
        except Exception as error:
            raise AssertionError(f"{what}: raised {type(error).__name__}: {error}") from error

    def _refused(
        self, what: str, expected: type[Exception], operation: Callable[..., Awaitable[Any]], *arguments: Any
    ) -> Any:
        try:
            self._runner.run(_awaited(operation, *arguments))
        except Exception as error:
            # A conflict of versions is neither a duplicate nor a missing saga, though both are its subclasses.
            other = isinstance(error, (DuplicateSagaError, SagaNotFoundError)) and expected is ConcurrencyError
            if isinstance(error, expected) and not other:
                return error
            wrong = f"{what}: raised {type(error).__name__} ({error}), not {expected.__name__}"
            raise AssertionError(wrong) from error
        raise AssertionError(f"{what}: was accepted, must raise {expected.__name__}")

    @staticmethod
    def _names_versions(what: str, error: Any, expected: int, actual: int) -> None:
        expect.true(error.expected_version == expected, f"{what}: .expected_version is {error.expected_version}")
        expect.true(error.actual_version in (None, actual), f"{what}: .actual_version is {error.actual_version}")


async def _awaited(operation: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Any:
    return await operation(*arguments, **options)


def _compare(what: str, saga_name: str, key: str, found: Any, expected: MachineState | None) -> None:
    expect.true(found == expected, f"{what}: {saga_name} {key!r} is {found!r}, not {expected!r}")
    if found is not None:
        found.note = "changed after a read"  # must not reach the store


def _listed(records: list[tuple[str, str, Any]]) -> str:
    return str([f"{saga_name} {state.metadata.saga_id} v{state.metadata.version}" for saga_name, _, state in records])

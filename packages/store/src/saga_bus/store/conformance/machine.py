"""The stateful machine: hypothesis makes scripts of operations and compares a store with a plain model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from copy import deepcopy
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from saga_bus.store.conformance import expect
from saga_bus.store.conformance.lag import InexcusableError, find_page, purged, settled
from saga_bus.store.conformance.model import (
    CONTENTS,
    FILTERS,
    KEYS,
    MOMENTS,
    SAGA_NAMES,
    STATE_TYPES,
    Content,
    MachineState,
    Model,
)
from saga_bus.store.errors import ConcurrencyError, DuplicateSagaError, InvalidSagaError, SagaNotFoundError
from saga_bus.store.protocol import StoreCapabilities, capabilities_of
from saga_bus.store.query import SagaFilter

__all__ = ["SAGA_NAMES", "STATE_TYPES", "MachineState", "declared_by", "machine_settings", "run_machine"]


_names = st.sampled_from(SAGA_NAMES)
_keys = st.sampled_from(KEYS)
_sagas = st.sampled_from([(saga_name, key) for saga_name in SAGA_NAMES for key in KEYS])
_contents = st.sampled_from(CONTENTS)
_filters = st.sampled_from(FILTERS)
_moments = st.sampled_from(MOMENTS)
_limits = st.integers(1, 3)
_batches = st.sampled_from(((1, False), (2, False), (3, False), (1, True)))


async def declared_by(
    open_store: Callable[[], Awaitable[Any]], close: Callable[[Any], Awaitable[None]]
) -> StoreCapabilities:
    """What a store declares, which is opened and closed for it.

    Args:
        open_store: Opens a store.
        close: Closes it.
    """
    store = await open_store()
    try:
        return capabilities_of(store)
    finally:
        await close(store)


def machine_settings(examples: int, *, lag: timedelta, **others: Any) -> settings:
    """Settings under which every run makes the same scripts and leaves nothing behind.

    Args:
        examples: How many scripts.
        lag: The ``index_lag`` of the stores. With one, a script that fails is not made shorter, as each of hundreds
            of tries would wait for it.
        **others: More of hypothesis's settings.
    """
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        print_blob=False,
        report_multiple_bugs=False,
        phases=(Phase.generate,) if lag else (Phase.generate, Phase.shrink),
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much),
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

    Each example has an event loop of its own, and opens and closes its store in it. One store more is opened first,
    to learn what it declares.

    Args:
        open_store: Opens a store on a fresh place.
        close: Closes it.
        examples: How many scripts.
        steps: The most steps of a script.

    Raises:
        AssertionError: The store differs from the model; the message names the rule, and hypothesis's notes
            on the exception hold the shortest script found.
    """
    lag = asyncio.run(declared_by(open_store, close)).index_lag
    run_state_machine_as_test(
        lambda: StoreMachine(open_store, close),  # type: ignore[arg-type]  # any factory serves, says its documentation
        settings=machine_settings(examples, lag=lag, stateful_step_count=steps),
    )


class StoreMachine(RuleBasedStateMachine):
    """A store beside its model; every rule is one operation on both."""

    inserted: Bundle[tuple[str, str]] = Bundle("inserted")

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

    # Hypothesis leaves some rules out of each script; without the first sagas many would do nothing.
    @initialize(target=inserted, saga=_sagas, correlation_id=_keys, content=_contents)
    def insert_the_first(self, saga: tuple[str, str], correlation_id: str, content: Content) -> Any:
        """Insert the first saga."""
        return self._insert(saga, correlation_id, content)

    @initialize(target=inserted, saga=_sagas, correlation_id=_keys, content=_contents)
    def insert_the_second(self, saga: tuple[str, str], correlation_id: str, content: Content) -> Any:
        """Insert the second saga, if its keys are free."""
        return self._insert(saga, correlation_id, content)

    @rule(target=inserted, saga=_sagas, correlation_id=_keys, content=_contents)
    def insert(self, saga: tuple[str, str], correlation_id: str, content: Content) -> Any:
        """Insert a new saga, or one whose id or correlation id is taken."""
        return self._insert(saga, correlation_id, content)

    @rule(saga=inserted | _sagas, content=_contents)
    def update(self, saga: tuple[str, str], content: Content) -> None:
        """Update a saga from its version, or one that is absent."""
        saga_name, saga_id = saga
        held = self._model.by_id(saga_name, saga_id)
        version = 0 if held is None else held.metadata.version
        created = None if held is None else held.metadata.created_at
        state = content.state(saga_id, version + 1, created=created)
        if held is None:
            what = "update of an absent saga"
            self._refused(what, SagaNotFoundError, self._store.update, saga_name, state, version)
            return
        kept = deepcopy(state)
        self._done("update from the right version", self._store.update, saga_name, state, version)
        self._model.replace(saga_name, kept)
        state.note = "changed after update"

    @rule(saga=inserted, distance=st.sampled_from((1, -1, -2, 5)))
    def update_from_another_version(self, saga: tuple[str, str], distance: int) -> None:
        """Update a present saga from an older version, or from one that never was."""
        saga_name, saga_id = saga
        held = self._model.by_id(saga_name, saga_id)
        if held is None or held.metadata.version + distance < 0:
            return
        version = held.metadata.version + distance
        state = self._next(held, version + 1)
        what = f"update from a {'stale' if distance < 0 else 'future'} version"
        error = self._refused(what, ConcurrencyError, self._store.update, saga_name, state, version)
        self._names_versions(what, error, version, held.metadata.version)

    @rule(saga=inserted, step=st.sampled_from((0, 2, -1)))
    def update_skipping(self, saga: tuple[str, str], step: int) -> None:
        """Update a present saga from its version, to another one than the next."""
        saga_name, saga_id = saga
        held = self._model.by_id(saga_name, saga_id)
        if held is None or held.metadata.version + step < 0:
            return
        version = held.metadata.version
        state = self._next(held, version + step)
        what = "update that does not raise the version by one"
        self._refused(what, InvalidSagaError, self._store.update, saga_name, state, version)

    # -- delete ------------------------------------------------------------------------------------------

    @rule(saga=inserted | _sagas)
    def delete(self, saga: tuple[str, str]) -> None:
        """Delete a saga whatever its version; an absent one is no error."""
        saga_name, saga_id = saga
        present = self._model.by_id(saga_name, saga_id) is not None
        what = f"delete of {'a present' if present else 'an absent'} saga"
        self._done(what, self._store.delete, saga_name, saga_id)
        self._model.remove(saga_name, saga_id)

    @rule(target=inserted, saga=inserted, correlation_id=_keys, content=_contents)
    def insert_again(self, saga: tuple[str, str], correlation_id: str, content: Content) -> Any:
        """Delete a saga and insert its id again, under any correlation id; chance alone would seldom do it."""
        self.delete(saga)
        return self._insert(saga, correlation_id, content)

    @precondition(lambda self: self._abilities.conditional_delete)
    @rule(saga=inserted, distance=st.sampled_from((1, -1, 0)))
    def delete_at_version(self, saga: tuple[str, str], distance: int) -> None:
        """Delete a saga at its version, at another one, or an absent one."""
        saga_name, saga_id = saga
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
    @rule(where=_filters, limit=_limits)
    def find(self, where: SagaFilter, limit: int) -> None:
        """Walk all pages of a search."""
        expected = self._model.find(where)

        async def look() -> None:
            found: list[tuple[str, str, Any]] = []
            cursor: str | None = None
            while True:
                page = await _answer("find", find_page, self._store, where, "find", limit=limit, cursor=cursor)
                expect.true(len(page.items) <= limit, f"find: a page of {len(page.items)} with the limit {limit}")
                found += [(record.saga_name, record.correlation_id, record.state) for record in page.items]
                cursor = page.cursor
                if cursor is None:
                    break
                expect.true(page.items, "find: an empty page with more behind it")
                expect.true(len(found) <= len(expected), f"find: more records than the {len(expected)} that match")
            expect.true(found == expected, f"find: found {_listed(found)}, not {_listed(expected)}")

        self._runner.run(settled(look, self._abilities.index_lag))

    @precondition(lambda self: self._abilities.query)
    @rule(where=_filters)
    def count(self, where: SagaFilter) -> None:
        """Count the sagas of a search."""
        expected = len(self._model.find(where))

        async def look() -> None:
            counted = await _answer("count", self._store.count, where)
            expect.true(counted == expected, f"count: {counted}, not {expected}")

        self._runner.run(settled(look, self._abilities.index_lag))

    @precondition(lambda self: self._abilities.retention)
    @rule(saga_name=_names, before=_moments, batch=_batches)
    def purge(self, saga_name: str, before: datetime, batch: tuple[int, bool]) -> None:
        """Delete the completed sagas that are older than a moment, a batch at a time or as a dry run."""
        batch_size, dry_run = batch
        old = self._model.find(SagaFilter(saga_name=saga_name, completed=True, updated_before=before))
        purge = partial(_answer, "purge", self._store.delete_completed_before, saga_name, before, batch_size=batch_size)

        async def look() -> None:
            counted = await purge(dry_run=True)
            expect.true(counted == len(old), f"purge: {counted} sagas, not {len(old)}, as a dry run")

        if dry_run:
            self._runner.run(settled(look, self._abilities.index_lag))
            return
        deleted = self._runner.run(purged(purge, len(old), self._abilities.index_lag))
        expect.true(deleted == len(old), f"purge: {deleted} sagas, not {len(old)}")
        for _, _, state in old:
            self._model.remove(saga_name, state.metadata.saga_id)

    # -- after every step --------------------------------------------------------------------------------

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        """Every saga is found by both keys, equal to the model's, and nothing else is found."""
        what = "get by id or by correlation id"
        for saga_name, key, by_id, by_correlation in self._done(what, self._everything):
            _compare("get by id", saga_name, key, by_id, self._model.by_id(saga_name, key))
            _compare(
                "get by correlation id", saga_name, key, by_correlation, self._model.by_correlation(saga_name, key)
            )

    async def _everything(self) -> list[tuple[str, str, Any, Any]]:
        keys = [(saga_name, key) for saga_name in SAGA_NAMES for key in KEYS]
        # At once: a store whose reads are round trips would take minutes for them one by one.
        by_id = await asyncio.gather(*(self._store.get_by_id(*each) for each in keys))
        by_correlation = await asyncio.gather(*(self._store.get_by_correlation_id(*each) for each in keys))
        return [(*each, *found) for each, *found in zip(keys, by_id, by_correlation, strict=True)]

    # -- helpers -----------------------------------------------------------------------------------------

    def _insert(self, saga: tuple[str, str], correlation_id: str, content: Content) -> Any:
        saga_name, saga_id = saga
        state = content.state(saga_id, 0)
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
        return multiple() if id_taken or correlation_taken else saga

    @staticmethod
    def _next(held: MachineState, version: int) -> MachineState:
        content = Content(at=held.metadata.updated_at, note="must not be written")
        return content.state(held.metadata.saga_id, version, created=held.metadata.created_at)

    def _done(self, what: str, operation: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Any:
        return self._runner.run(_answer(what, operation, *arguments, **options))

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


async def _answer(what: str, operation: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Any:
    try:
        return await operation(*arguments, **options)
    except InexcusableError:
        raise
    except Exception as error:
        raise InexcusableError(f"{what}: raised {type(error).__name__}: {error}") from error


async def _awaited(operation: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Any:
    return await operation(*arguments, **options)


def _compare(what: str, saga_name: str, key: str, found: Any, expected: MachineState | None) -> None:
    expect.true(found == expected, f"{what}: {saga_name} {key!r} is {found!r}, not {expected!r}")
    if found is not None:
        found.note = "changed after a read"  # must not reach the store


def _listed(records: list[tuple[str, str, Any]]) -> str:
    return str([f"{saga_name} {state.metadata.saga_id} v{state.metadata.version}" for saga_name, _, state in records])

"""The differential machine: equal stores agree, and a subtle difference is found and shown with its script."""

from itertools import cycle

import pytest

from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
    InvalidSagaError,
    Page,
    SagaNotFoundError,
    StoreCapabilities,
)
from saga_bus.store.conformance.differential import run_differential
from saga_bus.store_inmemory import InMemorySagaStore


class CoreOnlyStore(InMemorySagaStore):
    capabilities = StoreCapabilities()


class NoneInsteadOfAnError(InMemorySagaStore):
    async def _update(self, row, expected_version):
        try:
            await super()._update(row, expected_version)
        except SagaNotFoundError:
            return


class WrongErrorType(InMemorySagaStore):
    async def _update(self, row, expected_version):
        try:
            await super()._update(row, expected_version)
        except SagaNotFoundError as error:
            raise ConcurrencyError(saga_name=row.saga_name, saga_id=row.saga_id) from error


class WrongConflict(InMemorySagaStore):
    async def _insert(self, row, correlation_id):
        try:
            await super()._insert(row, correlation_id)
        except DuplicateSagaError as error:
            error.conflict = "saga_id"
            raise


class WrongActualVersion(InMemorySagaStore):
    async def _update(self, row, expected_version):
        try:
            await super()._update(row, expected_version)
        except SagaNotFoundError:
            raise
        except ConcurrencyError as error:
            error.actual_version = expected_version
            raise


class TakesAnyCursor(InMemorySagaStore):
    async def find(self, saga_filter, *, limit=100, cursor=None):
        try:
            return await super().find(saga_filter, limit=limit, cursor=cursor)
        except InvalidSagaError:
            if cursor is None:
                raise
            return Page(())


class TakesLongIds(InMemorySagaStore):
    async def get_by_id(self, saga_name, saga_id):
        return await super().get_by_id(saga_name, saga_id[:128])


class OwnConflictError(ConcurrencyError):
    """A subclass of a backend's own, which is as good as the type of the contract."""


class OwnErrors(InMemorySagaStore):
    async def _update(self, row, expected_version):
        try:
            await super()._update(row, expected_version)
        except SagaNotFoundError:
            raise
        except ConcurrencyError as error:
            raise OwnConflictError(saga_name=row.saga_name, saga_id=row.saga_id) from error


def compare(left, right, examples=500):  # those that differ end at the first difference
    opened, closed = [], []

    def opener(kind):
        async def open_store():
            opened.append(kind())
            return opened[-1]

        return open_store

    async def close(store):
        closed.append(store)
        await store.close()

    try:
        run_differential(opener(left), opener(right), close, examples=examples, steps=60)
    finally:
        assert sorted(map(id, closed)) == sorted(map(id, opened))


@pytest.mark.parametrize("right", [InMemorySagaStore, CoreOnlyStore, OwnErrors])
def test_stores_that_keep_the_contract_agree(right):
    compare(InMemorySagaStore, right, examples=60)


@pytest.mark.parametrize(
    ("right", "step", "outcome"),
    [
        (NoneInsteadOfAnError, "update(", "returned None"),
        (WrongErrorType, "update(", "raised ConcurrencyError("),
        (WrongConflict, "insert(", "raised DuplicateSagaError("),
        (WrongActualVersion, "update(", "raised ConcurrencyError("),
        (TakesAnyCursor, "find(", "returned ((), False)"),
        (TakesLongIds, "get_by_id(", "returned None"),
    ],
)
def test_a_difference_is_found_and_shown(right, step, outcome):
    with pytest.raises(AssertionError) as caught:
        compare(InMemorySagaStore, right)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"the stores differ in: {step}"), str(caught.value)
    assert lines[1].startswith("  InMemorySagaStore: ")
    assert lines[2].startswith(f"  {right.__qualname__}: {outcome}"), str(caught.value)
    assert lines[3] == "the script:"
    assert lines[-1].endswith(lines[0].removeprefix("the stores differ in: "))
    assert len(lines) <= 4 + 4, str(caught.value)


def test_two_stores_of_one_class_are_told_apart():
    openings = cycle((False, True))

    class SometimesBroken(InMemorySagaStore):
        def __init__(self):
            super().__init__()
            self.broken = next(openings)

        async def _get_by_id(self, saga_name, saga_id):
            return None if self.broken else await super()._get_by_id(saga_name, saga_id)

    with pytest.raises(AssertionError, match=r"(?s)left SometimesBroken: returned MachineState.*right SometimesBroken"):
        compare(SometimesBroken, SometimesBroken)

"""The stateful machine passes on a right store, and fails a broken one with the rule's name and a short script."""

import asyncio
import threading

import pytest

from saga_bus.store import ConcurrencyError, Page, SagaNotFoundError, StoreCapabilities
from saga_bus.store.conformance.machine import SAGA_NAMES, STATE_TYPES, MachineState, run_machine
from saga_bus.store_inmemory import InMemorySagaStore


class CoreOnlyStore(InMemorySagaStore):
    capabilities = StoreCapabilities()


class ForgetsTheVersionCheck(InMemorySagaStore):
    async def _update(self, row, expected_version):
        stored = self._database.by_id.get((row.saga_name, row.saga_id))
        await super()._update(row, expected_version if stored is None else stored.row.version)


class NoSuchSagaIsAConflict(InMemorySagaStore):
    async def _update(self, row, expected_version):
        try:
            await super()._update(row, expected_version)
        except SagaNotFoundError as error:
            raise ConcurrencyError(saga_name=row.saga_name, saga_id=row.saga_id) from error


class LeavesTheCorrelationIndex(InMemorySagaStore):
    async def _delete(self, saga_name, saga_id, expected_version):
        stored = self._database.by_id.get((saga_name, saga_id))
        await super()._delete(saga_name, saga_id, expected_version)
        if stored is not None:
            self._database.by_correlation[saga_name, stored.correlation_id] = stored


class PageSkipsARow(InMemorySagaStore):
    async def find(self, saga_filter, *, limit=100, cursor=None):
        page = await super().find(saga_filter, limit=limit, cursor=cursor)
        return page if cursor is None else Page(page.items[1:], page.cursor)


class PurgesTheEqualMoment(InMemorySagaStore):
    async def _purge(self, saga_name, before, batch_size):
        old = [
            stored
            for stored in self._database.by_id.values()
            if stored.row.saga_name == saga_name and stored.row.is_completed and stored.row.updated_at <= before
        ][:batch_size]
        for stored in old:
            self._database.remove(stored)
        return len(old)


class DeletesAnyVersion(InMemorySagaStore):
    async def _delete(self, saga_name, saga_id, expected_version):
        stored = self._database.by_id.get((saga_name, saga_id))
        await super()._delete(saga_name, saga_id, expected_version if stored is None else None)


class Places:
    """Opens stores and watches that each is closed, in the event loop that opened it."""

    def __init__(self, kind):
        self.kind = kind
        self.opened, self.closed, self.loops = [], [], []

    async def open(self):
        self.opened.append(self.kind())
        self.loops.append(asyncio.get_running_loop())
        return self.opened[-1]

    async def close(self, store):
        assert asyncio.get_running_loop() is self.loops[self.opened.index(store)]
        self.closed.append(store)
        await store.close()


@pytest.mark.parametrize("kind", [InMemorySagaStore, CoreOnlyStore])
def test_a_right_store_passes(kind):
    places = Places(kind)
    run_machine(places.open, places.close, examples=25, steps=25)
    assert len(places.opened) >= 25
    assert places.closed == places.opened
    assert all(loop.is_closed() for loop in places.loops)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (ForgetsTheVersionCheck, r"^update from a \w+ version: was accepted, must raise ConcurrencyError"),
        (NoSuchSagaIsAConflict, r"^update of an absent saga: raised ConcurrencyError .*, not SagaNotFoundError"),
        (LeavesTheCorrelationIndex, r"^get by correlation id: MachineSaga 'k1' is MachineState\(.*, not None"),
        (PageSkipsARow, "^find: (found|an empty page)"),
        (PurgesTheEqualMoment, "^purge: 1 sagas, not 0"),
        (DeletesAnyVersion, r"^delete at a \w+ version: was accepted, must raise ConcurrencyError"),
    ],
)
def test_a_broken_store_fails_with_the_rule_and_a_short_script(kind, fault):
    places = Places(kind)
    with pytest.raises(AssertionError, match=fault) as caught:
        run_machine(places.open, places.close, examples=600, steps=20)
    script = "\n".join(caught.value.__notes__)
    assert "state = StoreMachine()" in script
    rules = [line for line in script.splitlines() if "state." in line and "holds_what" not in line]
    assert len(rules) <= 10, script  # with the teardown
    assert places.closed == places.opened
    assert all(loop.is_closed() for loop in places.loops)


def test_it_runs_in_a_worker_thread_of_a_running_loop():
    places = Places(InMemorySagaStore)

    async def run():
        here = threading.get_ident()
        await asyncio.to_thread(run_machine, places.open, places.close, examples=3, steps=5)
        assert threading.get_ident() == here

    asyncio.run(run())
    assert places.closed == places.opened


def test_a_store_that_cannot_be_opened_leaves_no_loop():
    loops = []

    async def refuse():
        loops.append(asyncio.get_running_loop())
        raise OSError("no database")

    async def close(store):
        raise AssertionError("nothing was opened")

    with pytest.raises(OSError, match="no database"):
        run_machine(refuse, close, examples=3, steps=5)
    assert all(loop.is_closed() for loop in loops)


def test_the_state_types_are_known():
    assert dict.fromkeys(SAGA_NAMES, MachineState) == STATE_TYPES

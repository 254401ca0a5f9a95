"""Completed sagas that expire by themselves."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

from saga_bus.store.conformance import expect
from saga_bus.store.conformance.kit import Kit, case
from saga_bus.store.conformance.states import MAIN, follow
from saga_bus.store.state import SagaMetadata

GRACE = 10.0  # seconds that a store may take longer than it says
LONGEST = timedelta(seconds=10)


def _seconds(kit: Kit) -> float:
    ttl = kit.capabilities.completed_ttl or timedelta()
    expect.true(
        timedelta() < ttl <= LONGEST,
        f"open the kit's store with a completed_ttl of at most {LONGEST.seconds} s: it waits that long; got {ttl}",
    )
    return ttl.total_seconds()


@case("completed_ttl")
async def never_a_running_saga(kit: Kit) -> None:
    """A running saga never expires, updated or not, and neither does one that was completed and reopened."""
    store, seconds = await kit.store(), _seconds(kit)
    idle = await kit.inserted("order-1", "idle")
    busy = follow(await kit.inserted("order-2"), "busy")
    await store.update(MAIN, busy, 0)
    done = follow(await kit.inserted("order-3"), is_completed=True)
    await store.update(MAIN, done, 0)
    reopened = follow(done, is_completed=False)
    await store.update(MAIN, reopened, 1)
    born_done = await kit.inserted("order-4")
    completed = follow(born_done, is_completed=True)
    await store.update(MAIN, completed, 0)
    running_again = follow(completed, "again", is_completed=False)
    await store.update(MAIN, running_again, 1)
    await asyncio.sleep(seconds * 1.5 + 0.5)
    await kit.holds("order-1", idle, "a running saga after the time to live")
    await kit.holds("order-2", busy, "an updated running saga after the time to live")
    await kit.holds("order-3", reopened, "a reopened saga after the time to live")
    await kit.holds("order-4", running_again, "another reopened saga after the time to live")


@case("completed_ttl")
async def completed_sagas_expire_whole(kit: Kit) -> None:
    """A completed saga expires not before its time, and then with both keys together, which are free again."""
    store, seconds = await kit.store(), _seconds(kit)
    started = time.monotonic()
    state = await kit.inserted("order-1")
    done = follow(state, is_completed=True)
    await store.update(MAIN, done, 0)
    by_id = await store.get_by_id(MAIN, state.metadata.saga_id)
    if time.monotonic() - started < seconds:
        expect.same_state(by_id, done, "a completed saga before its time")
    while (await store.get_by_id(MAIN, state.metadata.saga_id)) is not None:
        expect.true(time.monotonic() - started < seconds + GRACE, "a completed saga is there long after its time")
        await asyncio.sleep(0.05)
    found = await store.get_by_correlation_id(MAIN, "order-1")
    expect.none(found, "the correlation id of an expired saga")
    again = await kit.inserted("order-1", "again", metadata=SagaMetadata.fresh(state.metadata.saga_id))
    await kit.holds("order-1", again, "a new saga under the keys of an expired one")

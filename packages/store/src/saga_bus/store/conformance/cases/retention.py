"""Deleting old completed sagas."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any

from saga_bus.store.conformance import expect
from saga_bus.store.conformance.kit import Kit, case
from saga_bus.store.conformance.states import MAIN, OTHER, KitState, follow
from saga_bus.store.errors import InvalidSagaError, SagaNotFoundError
from saga_bus.store.state import SagaMetadata

NOW = datetime(2026, 6, 1, tzinfo=UTC)


async def _saga(kit: Kit, number: int, *, age: float, completed: bool = True, saga_name: str = MAIN) -> KitState:
    """Insert a saga that was last updated some seconds before NOW."""
    updated = NOW - timedelta(seconds=age)
    metadata = SagaMetadata(
        saga_id=f"id-{number}",
        version=0,
        created_at=updated - timedelta(days=1),
        updated_at=updated,
        is_completed=completed,
    )
    return await kit.inserted(f"order-{number}", metadata=metadata, saga_name=saga_name)


async def _purges(kit: Kit, number: int, what: str, **options: Any) -> None:
    store = await kit.store()
    purge = partial(store.delete_completed_before, MAIN, NOW, **options)
    await kit.purges(purge, number, f"the number that delete_completed_before returned, {what}")


async def _would_purge(kit: Kit, number: int, what: str, *, before: datetime = NOW, **options: Any) -> None:
    store = await kit.store()
    dry_run = partial(store.delete_completed_before, MAIN, before, dry_run=True, **options)
    await kit.sees(dry_run, number, f"the number that delete_completed_before returned, as a dry run {what}")


@case("retention")
async def only_completed_and_strictly_older(kit: Kit) -> None:
    """Completed sagas whose last update is strictly older go, with their index; any time zone, an exact count."""
    old = [await _saga(kit, number, age=0.000001 + number) for number in range(3)]
    on_time = await _saga(kit, 10, age=0)
    younger = await _saga(kit, 11, age=-1)
    running = await _saga(kit, 12, age=1000, completed=False)
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    store = await kit.store()
    await _would_purge(kit, 3, "before a moment in another time zone", before=elsewhere)
    await _purges(kit, 3, "with three old completed sagas")
    for number, state in enumerate(old):
        await kit.lacks(f"order-{number}", state.metadata.saga_id, "an old completed saga")
    for number, state in ((10, on_time), (11, younger), (12, running)):
        await kit.holds(f"order-{number}", state, "a saga that is not old, or not completed")
    again = await kit.inserted("order-0", "again", metadata=SagaMetadata.fresh("id-0"))
    await kit.holds("order-0", again, "a new saga under the keys of a purged one")
    await kit.inserted("order-99", "moved", metadata=SagaMetadata.fresh("id-1"))
    found = await store.get_by_correlation_id(MAIN, "order-1")
    expect.none(found, "the correlation id of a purged saga whose id came back under another one")
    await _purges(kit, 0, "the second time")


@case("retention")
async def only_its_own_name(kit: Kit) -> None:
    """Sagas of another name stay, under the same keys too."""
    await _saga(kit, 1, age=10)
    other = await _saga(kit, 1, age=10, saga_name=OTHER)
    await _purges(kit, 1, "with an old saga of each of two names")
    await kit.lacks("order-1", "id-1", "the purged saga")
    await kit.holds("order-1", other, "the saga of another name", saga_name=OTHER)


@case("retention")
async def in_batches(kit: Kit) -> None:
    """Batches of any size together delete all, and count all."""
    for size in (1, 3, 7, 100):
        for number in range(7):
            await _saga(kit, number, age=10 + number)
        await _purges(kit, 7, f"in batches of {size}", batch_size=size)
        for number in range(7):
            await kit.lacks(f"order-{number}", f"id-{number}", f"after batches of {size}")


@case("retention")
async def dry_run_only_counts(kit: Kit) -> None:
    """A dry run returns the exact number and deletes nothing."""
    states = [await _saga(kit, number, age=number, completed=number != 4) for number in range(1, 6)]
    await _would_purge(kit, 4, "with four old completed sagas", batch_size=2)
    for number, state in enumerate(states, start=1):
        await kit.holds(f"order-{number}", state, "after a dry run")
    await _purges(kit, 4, "after the dry run")


@case("retention")
async def never_what_was_reopened_or_updated(kit: Kit) -> None:
    """A completed saga that was reopened, or updated since, stays."""
    store = await kit.store()
    one, two = [await _saga(kit, number, age=1000) for number in (1, 2)]
    await _would_purge(kit, 2, "with two old completed sagas")
    reopened = follow(one, is_completed=False, now=NOW - timedelta(seconds=900))
    await store.update(MAIN, reopened, 0)
    touched = follow(two, now=NOW + timedelta(seconds=1))
    await store.update(MAIN, touched, 0)
    await _purges(kit, 0, "with a reopened and a touched saga")
    await kit.holds("order-1", reopened, "a reopened saga")
    await kit.holds("order-2", touched, "a saga updated since")


@case("retention")
async def never_what_is_reopened_meanwhile(kit: Kit) -> None:
    """While a purge runs, a saga is either purged or reopened, never reopened and then deleted."""
    store, other = await kit.store(), await kit.client()
    states = [await _saga(kit, number, age=10 + number) for number in range(40)]
    await _would_purge(kit, 40, "with forty old completed sagas")
    kept: list[tuple[int, KitState]] = []

    async def reopen(number: int) -> None:
        running = follow(states[number], is_completed=False, now=NOW - timedelta(seconds=5))
        try:
            await other.update(MAIN, running, 0)
        except SagaNotFoundError:
            return  # the purge was faster
        kept.append((number, running))

    purge = asyncio.create_task(store.delete_completed_before(MAIN, NOW, batch_size=2))
    for start in range(0, 40, 4):
        await asyncio.gather(*(reopen(number) for number in range(start, start + 4)))
    deleted = await purge
    for number, running in kept:
        await kit.holds(f"order-{number}", running, "a saga that was reopened while a purge ran")
    expect.equal(deleted + len(kept), 40, "the purged and the reopened sagas together")


@case("retention")
async def refuses_bad_arguments(kit: Kit) -> None:
    """A naive moment, a bad name and a bad batch size are an InvalidSagaError, and nothing is deleted."""
    store = await kit.store()
    state = await _saga(kit, 1, age=10)
    naive = datetime(2027, 1, 1)  # noqa: DTZ001 - the point of the case
    bad: tuple[tuple[Any, Any, dict[str, Any]], ...] = (
        (MAIN, naive, {}),
        (MAIN, "2027-01-01", {}),
        ("", NOW, {}),
        ("n" * 129, NOW, {}),
        (MAIN, NOW, {"batch_size": 0}),
        (MAIN, NOW, {"batch_size": -1}),
        (MAIN, NOW, {"batch_size": "all"}),
    )
    for name, before, options in bad:
        call = store.delete_completed_before(name, before, **options)
        await expect.raises(call, InvalidSagaError, f"delete_completed_before({name[:9]!r}, {before!r}, {options})")
    await kit.holds("order-1", state, "after refused purges")

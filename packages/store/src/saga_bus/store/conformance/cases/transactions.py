"""Taking part in the caller's transaction."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from saga_bus.store.conformance import expect
from saga_bus.store.conformance.kit import Kit, case
from saga_bus.store.conformance.lag import find_page
from saga_bus.store.conformance.states import MAIN, OTHER, follow, new_state
from saga_bus.store.errors import DuplicateSagaError
from saga_bus.store.query import SagaFilter
from saga_bus.store.state import SagaMetadata


@case("transactions")
async def rollback_undoes_everything(kit: Kit) -> None:
    """Insert, update and delete vanish with the caller's rollback: the bound store never commits."""
    store = await kit.store()
    updated, deleted = await kit.inserted("order-1", "first"), await kit.inserted("order-2")
    inserted = new_state("never")
    async with kit.transaction() as transaction:
        bound = store.bind(transaction.connection)
        await bound.insert(MAIN, "order-3", inserted)
        await bound.update(MAIN, follow(updated, "never"), 0)
        await bound.delete(MAIN, deleted.metadata.saga_id)
        await transaction.rollback()
    await kit.holds("order-1", updated, "an update after the rollback")
    await kit.holds("order-2", deleted, "a delete after the rollback")
    await kit.lacks("order-3", inserted.metadata.saga_id, "an insert after the rollback")


@case("transactions")
async def commit_keeps_everything(kit: Kit) -> None:
    """Insert, update and delete are there after the caller's commit."""
    store = await kit.store()
    first, deleted = await kit.inserted("order-1", "first"), await kit.inserted("order-2")
    inserted, updated = new_state("new"), follow(first, "second")
    async with kit.transaction() as transaction:
        bound = store.bind(transaction.connection)
        await bound.insert(MAIN, "order-3", inserted)
        await bound.update(MAIN, updated, 0)
        await bound.delete(MAIN, deleted.metadata.saga_id)
        await transaction.commit()
    await kit.holds("order-1", updated, "an update after the commit")
    await kit.lacks("order-2", deleted.metadata.saga_id, "a delete after the commit")
    await kit.holds("order-3", inserted, "an insert after the commit")


@case("transactions")
async def sees_its_own_writes(kit: Kit) -> None:
    """Inside the transaction the bound store reads what it wrote."""
    store = await kit.store()
    state = new_state("first")
    async with kit.transaction() as transaction:
        bound = store.bind(transaction.connection)
        await bound.insert(MAIN, "order-1", state)
        expect.same_state(await bound.get_by_id(MAIN, state.metadata.saga_id), state, "by id, inside")
        newer = follow(state, "second")
        await bound.update(MAIN, newer, 0)
        found = await bound.get_by_correlation_id(MAIN, "order-1")
        expect.same_state(found, newer, "by correlation id, inside")
        await bound.delete(MAIN, state.metadata.saga_id)
        expect.none(await bound.get_by_id(MAIN, state.metadata.saga_id), "by id after the delete, inside")
        await transaction.rollback()
    await kit.lacks("order-1", state.metadata.saga_id, "after the rollback")


@case("transactions")
async def together_with_business_rows(kit: Kit) -> None:
    """Several sagas and a business row are committed together, or rolled back together."""
    store = await kit.store()
    for ending in ("rollback", "commit"):
        one, two = new_state("one"), new_state("two")
        async with kit.transaction() as transaction:
            bound = store.bind(transaction.connection)
            await bound.insert(MAIN, f"order {ending}", one)
            await transaction.put_row(f"row {ending}")
            await bound.insert(OTHER, f"order {ending}", two)
            await (transaction.commit() if ending == "commit" else transaction.rollback())
            stored = await transaction.has_row(f"row {ending}")
        expect.equal(stored, ending == "commit", f"whether the business row is there after the {ending}")
        if ending == "commit":
            await kit.holds(f"order {ending}", one, "the first saga after the commit")
            await kit.holds(f"order {ending}", two, "the second saga after the commit", saga_name=OTHER)
        else:
            await kit.lacks(f"order {ending}", one.metadata.saga_id, "the first saga after the rollback")
            await kit.lacks(f"order {ending}", two.metadata.saga_id, "the second, rolled back", saga_name=OTHER)


@case("transactions")
async def refused_writes_leave_it_usable(kit: Kit) -> None:
    """A duplicate, a conflict or a missing saga inside the transaction leaves it usable, with the work before it."""
    store = await kit.store()
    taken = await kit.inserted("order-1", "taken")
    before, after = new_state("before"), new_state("after")
    same_id = new_state(metadata=SagaMetadata.fresh(taken.metadata.saga_id))
    async with kit.transaction() as transaction:
        bound = store.bind(transaction.connection)
        await bound.insert(MAIN, "order-2", before)
        await expect.raises(bound.insert(MAIN, "order-1", new_state()), DuplicateSagaError, "a taken correlation id")
        await expect.raises(bound.insert(MAIN, "order-3", same_id), DuplicateSagaError, "a taken id")
        ahead = follow(follow(taken))
        await expect.conflict(bound.update(MAIN, ahead, 1), ahead, expected=1, actual=0, what="a conflict inside")
        nothing = follow(new_state())
        what = "an update of a missing saga inside"
        await expect.conflict(bound.update(MAIN, nothing, 0), nothing, expected=0, actual=None, what=what)
        await bound.insert(MAIN, "order-4", after)
        newer = follow(taken, "newer")
        await bound.update(MAIN, newer, 0)
        await transaction.commit()
    await kit.holds("order-2", before, "what was written before the refused writes")
    await kit.holds("order-4", after, "what was written after the refused writes")
    await kit.holds("order-1", newer, "an update after the refused writes")
    await kit.lacks("order-3", "nothing", "a refused insert")


@case("transactions")
async def queries_inside(kit: Kit) -> None:
    """find, count and purge of a bound store work inside the transaction, and a rollback undoes the purge."""
    kit.require("query")
    kit.require("retention")
    store = await kit.store()
    old = follow(await kit.inserted("order-1"), is_completed=True)
    await store.update(MAIN, old, 0)
    later = old.metadata.updated_at + timedelta(days=1)
    async with kit.transaction() as transaction:
        bound = store.bind(transaction.connection)
        await bound.insert(MAIN, "order-2", new_state("new"))

        async def found() -> set[str]:
            page = await find_page(bound, SagaFilter(), "what find sees inside")
            return {item.correlation_id for item in page.items}

        counted, purge = partial(bound.count, SagaFilter()), partial(bound.delete_completed_before, MAIN, later)
        await kit.sees(found, {"order-1", "order-2"}, "what find sees inside")
        await kit.sees(counted, 2, "what count sees inside")
        await kit.purges(purge, 1, "the number of sagas purged inside")
        await kit.sees(counted, 1, "what count sees after the purge inside")
        await transaction.rollback()
    await kit.holds("order-1", old, "a saga that was purged inside, after the rollback")
    await kit.sees(partial(store.count, SagaFilter()), 1, "the number of sagas after the rollback")


@case("transactions")
async def closing_the_bound_store_ends_nothing(kit: Kit) -> None:
    """Closing a bound store ends neither the caller's transaction nor the store that it came from."""
    store = await kit.store()
    state, later = new_state("in the transaction"), new_state("later")
    async with kit.transaction() as transaction:
        bound = store.bind(transaction.connection)
        await bound.insert(MAIN, "order-1", state)
        await bound.close()
        await store.bind(transaction.connection).insert(MAIN, "order-2", later)
        await transaction.commit()
    await kit.holds("order-1", state, "after a bound store was closed")
    await kit.holds("order-2", later, "through another bound store")

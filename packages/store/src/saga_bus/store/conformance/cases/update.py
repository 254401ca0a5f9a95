"""Saving the next version: compare-and-swap."""

from __future__ import annotations

from typing import Any

import msgspec

from saga_bus.store.conformance import expect
from saga_bus.store.conformance.kit import Kit, case
from saga_bus.store.conformance.states import MAIN, OTHER, follow, new_state
from saga_bus.store.errors import InvalidSagaError
from saga_bus.store.state import SagaMetadata


@case()
async def raises_the_version_by_one(kit: Kit) -> None:
    """An update of the current version, also of one that is not new, is stored and found by both keys."""
    store = await kit.store()
    state = await kit.inserted("order-1", "first")
    newer = follow(state, "second", count=5)
    await store.update(MAIN, newer, 0)
    await kit.holds("order-1", newer, "after the update")
    expect.equal((await store.get_by_id(MAIN, state.metadata.saga_id)).metadata.version, 1, "the stored version")
    # As a saga that comes from another store does.
    moved = await kit.inserted("order-2", metadata=msgspec.structs.replace(SagaMetadata.fresh(), version=7))
    newer = follow(moved, "newer")
    await store.update(MAIN, newer, 7)
    await kit.holds("order-2", newer, "after an update of a saga that was inserted at version 7")


@case()
async def refuses_a_stale_version(kit: Kit) -> None:
    """An update made from an older version is a ConcurrencyError with both versions, and changes nothing."""
    store = await kit.store()
    first = await kit.inserted("order-1", "first")
    second = follow(first, "second")
    await store.update(MAIN, second, 0)
    lost = follow(first, "lost")
    await expect.conflict(store.update(MAIN, lost, 0), lost, expected=0, actual=1, what="an update from version 0 of 1")
    await kit.holds("order-1", second, "after a stale update")
    third = follow(second, "third")
    await store.update(MAIN, third, 1)
    await expect.conflict(store.update(MAIN, lost, 0), lost, expected=0, actual=2, what="an update from version 0 of 2")
    await kit.holds("order-1", third, "after another stale update")


@case()
async def refuses_a_version_that_is_not_there_yet(kit: Kit) -> None:
    """An update made from a version that the store has not reached is a ConcurrencyError, and changes nothing."""
    store = await kit.store()
    state = await kit.inserted("order-1", "first")
    ahead = follow(follow(state, "ahead"))
    await expect.conflict(
        store.update(MAIN, ahead, 1), ahead, expected=1, actual=0, what="an update from version 1 of 0"
    )
    await kit.holds("order-1", state, "after an update from a later version")


@case()
async def missing_saga_is_not_found(kit: Kit) -> None:
    """An update of a saga that is not there is a SagaNotFoundError, and inserts nothing."""
    store = await kit.store()
    state = follow(new_state("never inserted"))
    what = "an update of a saga that was never inserted"
    await expect.conflict(store.update(MAIN, state, 0), state, expected=0, actual=None, what=what)
    await kit.lacks("order-1", state.metadata.saga_id, "after an update of nothing")
    gone = await kit.inserted("order-1")
    await store.delete(MAIN, gone.metadata.saga_id)
    what = "an update of a deleted saga"
    await expect.conflict(store.update(MAIN, follow(gone), 0), gone, expected=0, actual=None, what=what)
    await kit.lacks("order-1", gone.metadata.saga_id, "after an update of a deleted saga")


@case()
async def another_name_is_not_found(kit: Kit) -> None:
    """An update under another saga name is a SagaNotFoundError, and the saga of the same id stays."""
    store = await kit.store()
    state = await kit.inserted("order-1", "first")
    newer = follow(state, "newer")
    what = "an update under another saga name"
    await expect.conflict(store.update(OTHER, newer, 0), newer, expected=0, actual=None, what=what)
    await kit.holds("order-1", state, "after an update under another name")


@case()
async def touches_only_its_own_name(kit: Kit) -> None:
    """An update changes no saga of the same id under another name."""
    store = await kit.store()
    one = await kit.inserted("order-1", "one")
    two = await kit.inserted("order-1", "two", saga_name=OTHER, metadata=SagaMetadata.fresh(one.metadata.saga_id))
    newer = follow(one, "newer")
    await store.update(MAIN, newer, 0)
    await kit.holds("order-1", newer, "the saga that was updated")
    await kit.holds("order-1", two, "the saga of another name", saga_name=OTHER)


@case()
async def refuses_a_version_that_was_not_raised_by_one(kit: Kit) -> None:
    """A state whose version is not the expected one plus one is an InvalidSagaError, and changes nothing."""
    store = await kit.store()
    state = await kit.inserted("order-1", "first")
    for version, expected in ((0, 0), (2, 0), (5, 0), (1, 1), (0, 1), (1, 5)):
        metadata = msgspec.structs.replace(state.metadata, version=version)
        wrong = msgspec.structs.replace(state, metadata=metadata, note="wrong")
        what = f"an update to version {version} with expected_version={expected}"
        await expect.raises(store.update(MAIN, wrong, expected), InvalidSagaError, what)
        await kit.holds("order-1", state, f"after {what}")


@case()
async def refuses_what_is_no_version(kit: Kit) -> None:
    """Negative numbers and other types are no versions: an InvalidSagaError, and nothing changes."""
    store = await kit.store()
    state = await kit.inserted("order-1", "first")
    bad: tuple[Any, ...] = (-1, "0", None, 0.0, False)
    for expected in bad:
        call = store.update(MAIN, follow(state, "wrong"), expected)
        await expect.raises(call, InvalidSagaError, f"an update with expected_version={expected!r}")
    for version in (-1, "1", None, 1.0, True):
        metadata = msgspec.structs.replace(state.metadata, version=version)
        wrong = msgspec.structs.replace(state, metadata=metadata, note="wrong")
        await expect.raises(store.update(MAIN, wrong, 0), InvalidSagaError, f"an update to version {version!r}")
    await kit.holds("order-1", state, "after refused updates")


@case()
async def smaller_state_leaves_no_remains(kit: Kit) -> None:
    """The document is replaced, not merged: what the new state lacks is gone."""
    store = await kit.store()
    state = await kit.inserted("order-1", "long " * 50, count=1, tags=["a", "b"], data={"a": {"b": 1}, "c": 2})
    small = new_state("", metadata=state.metadata.next(), data={"a": {}})
    await store.update(MAIN, small, 0)
    await kit.holds("order-1", small, "after an update to a smaller state")


@case()
async def same_content_counts(kit: Kit) -> None:
    """An update that changes nothing but the version is an update."""
    store = await kit.store()
    state = await kit.inserted("order-1", "same")
    for version in range(3):
        metadata = msgspec.structs.replace(state.metadata, version=version + 1)
        state = msgspec.structs.replace(state, metadata=metadata)
        await store.update(MAIN, state, version)
        await kit.holds("order-1", state, "after an update of the version alone")


@case()
async def keeps_created_at_and_correlation(kit: Kit) -> None:
    """Updates keep the creation time and the correlation id."""
    store = await kit.store()
    first = state = await kit.inserted("order-1", "first")
    for turn in range(3):
        state = follow(state, f"update {turn}")
        await store.update(MAIN, state, turn)
    found = await store.get_by_correlation_id(MAIN, "order-1")
    expect.same_state(found, state, "by correlation id after three updates")
    expect.equal(found.metadata.created_at, first.metadata.created_at, "metadata.created_at after three updates")


@case()
async def many_in_a_row(kit: Kit) -> None:
    """Fifty updates one after the other are fifty versions."""
    store = await kit.store()
    state = await kit.inserted("order-1")
    for turn in range(50):
        state = follow(state, count=turn + 1)
        await store.update(MAIN, state, turn)
    await kit.holds("order-1", state, "after fifty updates")
    expect.equal(state.metadata.version, 50, "the version after fifty updates")


@case()
async def starts_again_after_delete_and_insert(kit: Kit) -> None:
    """A saga that was deleted and inserted again with the same id starts at its own version."""
    store = await kit.store()
    old = await kit.inserted("order-1", "old")
    for version in range(2):
        old = follow(old)
        await store.update(MAIN, old, version)
    await store.delete(MAIN, old.metadata.saga_id)
    new = await kit.inserted("order-1", "new", metadata=SagaMetadata.fresh(old.metadata.saga_id))
    what = "an update of the saga's former life"
    await expect.conflict(store.update(MAIN, follow(old), 2), old, expected=2, actual=0, what=what)
    await kit.holds("order-1", new, "after an update of the former life")
    newer = follow(new, "newer")
    await store.update(MAIN, newer, 0)
    await kit.holds("order-1", newer, "after an update of the new life")


@case()
async def reopens_a_completed_saga(kit: Kit) -> None:
    """A completed saga is a saga: it is found, and an update can make it run again."""
    store = await kit.store()
    state = await kit.inserted("order-1")
    done = follow(state, is_completed=True)
    await store.update(MAIN, done, 0)
    await kit.holds("order-1", done, "a completed saga")
    running = follow(done, is_completed=False)
    await store.update(MAIN, running, 1)
    await kit.holds("order-1", running, "a reopened saga")

"""Deleting sagas."""

from __future__ import annotations

from typing import Any

from saga_bus.store.conformance import expect
from saga_bus.store.conformance.kit import Kit, case
from saga_bus.store.conformance.states import MAIN, OTHER, follow
from saga_bus.store.errors import InvalidSagaError
from saga_bus.store.state import SagaMetadata


@case()
async def removes_the_saga_and_its_index(kit: Kit) -> None:
    """A deleted saga is found neither by its id nor by its correlation id, and its neighbours stay."""
    store = await kit.store()
    gone = await kit.inserted("order-1")
    stays = await kit.inserted("order-2")
    await store.delete(MAIN, gone.metadata.saga_id)
    await kit.lacks("order-1", gone.metadata.saga_id, "after the delete")
    await kit.holds("order-2", stays, "a neighbour of the deleted saga")


@case()
async def absent_is_no_error(kit: Kit) -> None:
    """Deleting what is not there does nothing, also the second time and under an unknown name."""
    store = await kit.store()
    await store.delete(MAIN, "never-there")
    state = await kit.inserted("order-1")
    await store.delete(MAIN, "never-there")
    await store.delete(MAIN, "order-1")  # a correlation id is no id
    await kit.holds("order-1", state, "after deletes of other ids")
    await store.delete(MAIN, state.metadata.saga_id)
    await store.delete(MAIN, state.metadata.saga_id)
    await kit.lacks("order-1", state.metadata.saga_id, "after two deletes")


@case()
async def refuses_bad_keys(kit: Kit) -> None:
    """Deleting with an empty or over-long key is an InvalidSagaError, and nothing is deleted."""
    store = await kit.store()
    state = await kit.inserted("order-1")
    for name, key in (("", state.metadata.saga_id), ("n" * 129, "id"), (MAIN, ""), (MAIN, "k" * 129), (MAIN, None)):
        await expect.raises(store.delete(name, key), InvalidSagaError, "delete with a bad key")
    await kit.holds("order-1", state, "after refused deletes")


@case()
async def touches_only_its_own_name(kit: Kit) -> None:
    """A delete touches no saga of the same keys under another name."""
    store = await kit.store()
    one = await kit.inserted("order-1", "one")
    metadata = SagaMetadata.fresh(one.metadata.saga_id)
    two = await kit.inserted("order-1", "two", saga_name=OTHER, metadata=metadata)
    await store.delete(MAIN, one.metadata.saga_id)
    await kit.lacks("order-1", one.metadata.saga_id, "the deleted saga")
    await kit.holds("order-1", two, "the saga of another name", saga_name=OTHER)


@case()
async def old_correlation_id_finds_nothing(kit: Kit) -> None:
    """After delete and insert under another correlation id, the old one finds nothing and is free."""
    store = await kit.store()
    old = await kit.inserted("order-1", "old")
    await store.delete(MAIN, old.metadata.saga_id)
    new = await kit.inserted("order-2", "new", metadata=SagaMetadata.fresh(old.metadata.saga_id))
    await kit.holds("order-2", new, "after delete and insert under another correlation id")
    expect.none(await store.get_by_correlation_id(MAIN, "order-1"), "the old correlation id")
    other = await kit.inserted("order-1", "other")
    await kit.holds("order-1", other, "another saga under the freed correlation id")
    await kit.holds("order-2", new, "the saga that moved to another correlation id")


@case()
async def any_version_without_expectation(kit: Kit) -> None:
    """Without an expected version a delete removes the saga at whichever version it is."""
    store = await kit.store()
    state = await kit.inserted("order-1")
    newer = follow(state, is_completed=True)
    await store.update(MAIN, newer, 0)
    await store.delete(MAIN, state.metadata.saga_id)
    await kit.lacks("order-1", state.metadata.saga_id, "after the delete of an updated saga")


@case("conditional_delete")
async def expected_version_deletes(kit: Kit) -> None:
    """With the current version expected, the saga and its index are removed."""
    store = await kit.store()
    state = await kit.inserted("order-1")
    await store.update(MAIN, follow(state), 0)
    await store.delete(MAIN, state.metadata.saga_id, expected_version=1)
    await kit.lacks("order-1", state.metadata.saga_id, "after a delete with the right version")


@case("conditional_delete")
async def another_version_is_a_conflict(kit: Kit) -> None:
    """With another version expected, it is a ConcurrencyError with both versions, and the saga stays."""
    store = await kit.store()
    state = await kit.inserted("order-1")
    newer = follow(state)
    await store.update(MAIN, newer, 0)
    for expected in (0, 2):
        what = f"a delete of version {expected} where the store holds 1"
        call = store.delete(MAIN, state.metadata.saga_id, expected_version=expected)
        await expect.conflict(call, state, expected=expected, actual=1, what=what)
        await kit.holds("order-1", newer, f"after {what}")


@case("conditional_delete")
async def expected_version_of_a_missing_saga(kit: Kit) -> None:
    """With a version expected, a saga that is not there (any more) is a SagaNotFoundError."""
    store = await kit.store()
    state = await kit.inserted("order-1")
    await store.delete(MAIN, state.metadata.saga_id)
    call = store.delete(MAIN, state.metadata.saga_id, expected_version=0)
    await expect.conflict(call, state, expected=0, actual=None, what="a conditional delete of a deleted saga")


@case("conditional_delete")
async def refuses_what_is_no_version(kit: Kit) -> None:
    """Negative numbers and other types are no versions: an InvalidSagaError, and the saga stays."""
    store = await kit.store()
    state = await kit.inserted("order-1")
    bad: tuple[Any, ...] = (-1, "0", 0.0, False)
    for expected in bad:
        call = store.delete(MAIN, state.metadata.saga_id, expected_version=expected)
        await expect.raises(call, InvalidSagaError, f"a delete with expected_version={expected!r}")
    await kit.holds("order-1", state, "after refused deletes")

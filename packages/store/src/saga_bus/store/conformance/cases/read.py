"""Loading sagas."""

from __future__ import annotations

from saga_bus.store.conformance import expect
from saga_bus.store.conformance.kit import Kit, case
from saga_bus.store.conformance.states import MAIN, OTHER, follow, new_state
from saga_bus.store.errors import InvalidSagaError


@case()
async def absent_is_none(kit: Kit) -> None:
    """An unknown id, correlation id or saga name is None, in an empty store and beside other sagas."""
    await kit.lacks("order-1", "id-1", "in an empty store")
    state = await kit.inserted("order-1")
    await kit.lacks("order-2", "id-2", "with unknown keys")
    await kit.lacks("order-1", state.metadata.saga_id, "under another saga name", saga_name=OTHER)


@case()
async def keys_are_not_mixed_up(kit: Kit) -> None:
    """An id is not found as a correlation id, nor the other way round."""
    store = await kit.store()
    state = await kit.inserted("order-1")
    expect.none(await store.get_by_id(MAIN, "order-1"), "a correlation id looked up as an id")
    found = await store.get_by_correlation_id(MAIN, state.metadata.saga_id)
    expect.none(found, "an id looked up as a correlation id")


@case()
async def refuses_bad_keys(kit: Kit) -> None:
    """Looking up an empty or over-long key is an InvalidSagaError."""
    store = await kit.store()
    for name, key in (("", "id"), ("n" * 129, "id"), (MAIN, ""), (MAIN, "k" * 257), (MAIN, "a\x00b"), (MAIN, 7)):
        await expect.raises(store.get_by_id(name, key), InvalidSagaError, "get_by_id with a bad key")
        what = "get_by_correlation_id with a bad key"
        await expect.raises(store.get_by_correlation_id(name, key), InvalidSagaError, what)


@case()
async def results_are_copies(kit: Kit) -> None:
    """Every read returns an object of its own; changing it changes neither the store nor another result."""
    store = await kit.store()
    state = await kit.inserted("order-1", "kept", tags=["a"], data={"list": [1]})
    for read, key in ((store.get_by_id, state.metadata.saga_id), (store.get_by_correlation_id, "order-1")):
        one, two = await read(MAIN, key), await read(MAIN, key)
        expect.true(one is not two, "two reads returned the same object")
        expect.true(one is not state, "a read returned the object that was inserted")
        one.note = "changed"
        one.tags.append("changed")
        one.data["list"].append("changed")
        expect.same_state(two, state, "one result after another one was changed")
        await kit.holds("order-1", state, "after a result was changed")


@case()
async def arguments_are_copied(kit: Kit) -> None:
    """Changing a state after it was saved changes nothing in the store."""
    store = await kit.store()
    given, kept = new_state("kept", tags=["a"], data={"list": [1]}), None
    kept = new_state("kept", metadata=given.metadata, tags=["a"], data={"list": [1]})
    await store.insert(MAIN, "order-1", given)
    given.note = "changed"
    given.tags.append("changed")
    given.data["list"].append("changed")
    await kit.holds("order-1", kept, "after the inserted object was changed")
    given = follow(kept, "newer")
    given.tags = ["b"]
    kept = follow(kept, "newer")
    kept.metadata, kept.tags = given.metadata, ["b"]
    await store.update(MAIN, given, 0)
    given.note = "changed"
    given.tags.append("changed")
    await kit.holds("order-1", kept, "after the updated object was changed")


@case()
async def sees_own_writes(kit: Kit) -> None:
    """Whoever wrote something reads it at once, by both keys: after insert, update and delete."""
    store = await kit.store()
    for turn in range(10):
        correlation_id = f"order-{turn}"
        state = await kit.inserted(correlation_id)
        await kit.holds(correlation_id, state, "right after the insert")
        newer = follow(state, "newer")
        await store.update(MAIN, newer, 0)
        await kit.holds(correlation_id, newer, "right after the update")
        await store.delete(MAIN, state.metadata.saga_id)
        await kit.lacks(correlation_id, state.metadata.saga_id, "right after the delete")


@case()
async def second_client_sees_acknowledged_writes(kit: Kit) -> None:
    """A write that was acknowledged to one client is seen by another one at once, by both keys."""
    writer, reader = await kit.store(), await kit.client()
    for turn in range(10):
        correlation_id, state = f"order-{turn}", new_state("first")
        expect.none(await reader.get_by_correlation_id(MAIN, correlation_id), "before the insert")
        await writer.insert(MAIN, correlation_id, state)
        for current in (state, follow(state, "second")):
            if current is not state:
                await writer.update(MAIN, current, 0)
            found = await reader.get_by_id(MAIN, state.metadata.saga_id)
            expect.same_state(found, current, "another client, by id")
            found = await reader.get_by_correlation_id(MAIN, correlation_id)
            expect.same_state(found, current, "another client, by correlation id")
        await writer.delete(MAIN, state.metadata.saga_id)
        expect.none(await reader.get_by_id(MAIN, state.metadata.saga_id), "another client after the delete, by id")
        found = await reader.get_by_correlation_id(MAIN, correlation_id)
        expect.none(found, "another client after the delete, by correlation id")


@case()
async def places_are_isolated(kit: Kit) -> None:
    """Another place (table, prefix, database) holds other sagas, under the same keys too."""
    here, there = await kit.store(), await kit.elsewhere()
    state = await kit.inserted("order-1", "here")
    expect.none(await there.get_by_id(MAIN, state.metadata.saga_id), "another place, by id")
    expect.none(await there.get_by_correlation_id(MAIN, "order-1"), "another place, by correlation id")
    other = new_state("there", metadata=state.metadata)
    await there.insert(MAIN, "order-1", other)
    await kit.holds("order-1", state, "after an insert in another place")
    await there.delete(MAIN, state.metadata.saga_id)
    await kit.holds("order-1", state, "after a delete in another place")
    expect.true(await here.get_by_id(MAIN, state.metadata.saga_id) is not None, "the first place lost its saga")

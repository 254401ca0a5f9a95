"""Saving new sagas."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

from saga_bus.store.conformance import expect
from saga_bus.store.conformance.kit import Kit, case
from saga_bus.store.conformance.lag import find_page
from saga_bus.store.conformance.states import MAIN, OTHER, follow, new_state
from saga_bus.store.errors import ConcurrencyError, DuplicateSagaError, InvalidSagaError
from saga_bus.store.query import SagaFilter
from saga_bus.store.state import SagaMetadata

LONGEST = {"saga_name": 128, "saga_id": 128, "correlation_id": 256}
CRAB = "\N{CRAB}"  # outside the Basic Multilingual Plane: four bytes in UTF-8, two units in UTF-16


async def _duplicate(kit: Kit, correlation_id: str, state: Any, taken: str) -> None:
    store = await kit.store()
    what = f"inserting a taken {taken}"
    error = await expect.raises(store.insert(MAIN, correlation_id, state), DuplicateSagaError, what)
    expect.true(isinstance(error, ConcurrencyError), f"{what}: DuplicateSagaError must be a ConcurrencyError")
    expect.true(error.retryable, f"{what}: the error must be retryable")
    expect.equal(error.saga_name, MAIN, f"{what}: the error's saga_name")
    expect.equal(error.saga_id, state.metadata.saga_id, f"{what}: the error's saga_id")
    expect.equal(error.correlation_id, correlation_id, f"{what}: the error's correlation_id")
    expect.true(
        error.conflict in taken.split(" and "), f"{what}: the error's conflict is {error.conflict!r}, taken is {taken}"
    )


@case()
async def is_found_by_both_keys(kit: Kit) -> None:
    """A new saga is found by its id and by its correlation id, just as it was written."""
    state = await kit.inserted("order-1", "first", count=7, share=0.5, tags=["a", "b"], data={"k": [1, None, True]})
    await kit.holds("order-1", state, "after the insert")


@case()
async def refuses_taken_id(kit: Kit) -> None:
    """A taken id is a DuplicateSagaError; the first saga and its index stay, and nothing of the second is left."""
    first = await kit.inserted("order-1", "first")
    second = new_state("second", metadata=SagaMetadata.fresh(first.metadata.saga_id))
    await _duplicate(kit, "order-2", second, "saga_id")
    await kit.holds("order-1", first, "after a refused duplicate id")
    found = await (await kit.store()).get_by_correlation_id(MAIN, "order-2")
    expect.none(found, "the correlation id of a refused insert")


@case()
async def refuses_taken_correlation_id(kit: Kit) -> None:
    """A taken correlation id is a DuplicateSagaError; the first saga stays, and nothing of the second is left."""
    first = await kit.inserted("order-1", "first")
    second = new_state("second")
    await _duplicate(kit, "order-1", second, "correlation_id")
    await kit.holds("order-1", first, "after a refused duplicate correlation id")
    found = await (await kit.store()).get_by_id(MAIN, second.metadata.saga_id)
    expect.none(found, "the id of a refused insert")


@case()
async def refuses_the_same_saga_twice(kit: Kit) -> None:
    """Inserting one saga twice is a DuplicateSagaError, also when nothing changed in between."""
    first = await kit.inserted("order-1", "first")
    await _duplicate(kit, "order-1", first, "saga_id and correlation_id")
    await kit.holds("order-1", first, "after the second insert")


@case()
async def never_overwrites_an_updated_saga(kit: Kit) -> None:
    """A late insert with the id of a saga that has moved on is refused and changes nothing."""
    store = await kit.store()
    first = await kit.inserted("order-1", "first")
    moved = follow(first, "moved on")
    await store.update(MAIN, moved, 0)
    await _duplicate(kit, "order-1", first, "saga_id and correlation_id")
    await kit.holds("order-1", moved, "after a late insert")


@case()
async def same_id_under_another_name(kit: Kit) -> None:
    """The same id under another saga name is another saga."""
    first = await kit.inserted("order-1", "first")
    metadata = SagaMetadata.fresh(first.metadata.saga_id)
    second = await kit.inserted("refund-1", "second", saga_name=OTHER, metadata=metadata)
    await kit.holds("order-1", first, "the first saga")
    await kit.holds("refund-1", second, "the saga of another name", saga_name=OTHER)


@case()
async def same_correlation_id_under_another_name(kit: Kit) -> None:
    """The same correlation id under another saga name is another saga."""
    first = await kit.inserted("order-1", "first")
    second = await kit.inserted("order-1", "second", saga_name=OTHER)
    await kit.holds("order-1", first, "the first saga")
    await kit.holds("order-1", second, "the saga of another name", saga_name=OTHER)


@case()
async def refuses_bad_keys(kit: Kit) -> None:
    """Empty or over-long names and ids, NUL and lone surrogates are an InvalidSagaError, and nothing is written."""
    store = await kit.store()
    for part, longest in LONGEST.items():
        for bad in ("", "x" * (longest + 1), CRAB * (longest + 1), "nul\x00nul", "lone\ud800", None, 7, b"bytes"):
            keys: dict[str, Any] = {"saga_name": MAIN, "saga_id": "id-1", "correlation_id": "order-1", part: bad}
            state = new_state(metadata=SagaMetadata.fresh("id-1"))
            if part == "saga_id":
                metadata = SagaMetadata(
                    saga_id=keys["saga_id"],
                    version=0,
                    created_at=state.metadata.created_at,
                    updated_at=state.metadata.updated_at,
                )
                state = new_state(metadata=metadata)
            shown = repr(bad) if not isinstance(bad, str) or len(bad) < 20 else f"{len(bad)} characters"
            await expect.raises(
                store.insert(keys["saga_name"], keys["correlation_id"], state),
                InvalidSagaError,
                f"inserting with a {part} of {shown}",
            )
    await kit.lacks("order-1", "id-1", "after refused inserts")


@case()
async def accepts_the_longest_keys(kit: Kit) -> None:
    """Names and ids of the greatest length are kept whole, also in characters of four bytes."""
    for char in ("n", CRAB):
        name, saga_id, correlation_id = char * 128, char * 128, char * 256
        state = await kit.inserted(correlation_id, saga_name=name, metadata=SagaMetadata.fresh(saga_id))
        near = new_state(metadata=SagaMetadata.fresh(char * 127 + "z"))
        await (await kit.store()).insert(name, char * 255 + "z", near)
        await kit.holds(correlation_id, state, "keys of the greatest length", saga_name=name)
        await kit.holds(char * 255 + "z", near, "keys that differ in the last character", saga_name=name)


@case()
async def refuses_a_state_without_metadata(kit: Kit) -> None:
    """What carries no SagaMetadata is an InvalidSagaError, and nothing is written."""
    store = await kit.store()
    states: tuple[Any, ...] = (None, {}, SimpleNamespace(metadata=None), SimpleNamespace(metadata={"saga_id": "id-1"}))
    for bad in states:
        await expect.raises(store.insert(MAIN, "order-1", bad), InvalidSagaError, f"inserting {bad!r}")
    await kit.lacks("order-1", "id-1", "after refused inserts")


@case()
async def correlation_id_is_free_after_delete(kit: Kit) -> None:
    """A deleted saga gives both its keys back."""
    store = await kit.store()
    first = await kit.inserted("order-1", "first")
    await store.delete(MAIN, first.metadata.saga_id)
    second = await kit.inserted("order-1", "second", metadata=SagaMetadata.fresh(first.metadata.saga_id))
    await kit.holds("order-1", second, "after delete and insert with the same keys")


@case()
async def optional_metadata_may_be_absent(kit: Kit) -> None:
    """Optional metadata that was not set comes back as not set."""
    state = await kit.inserted("order-1")
    found = await (await kit.store()).get_by_id(MAIN, state.metadata.saga_id)
    expect.same_state(found, state, "after the insert")
    for field in ("archived_at", "trace_parent", "trace_state", "timeout", "timeout_expires_at"):
        expect.none(getattr(found.metadata, field), f"metadata.{field}, which was not set")
    expect.true(found.metadata.is_completed is False, "metadata.is_completed is not False, which is its default")
    expect.equal(found.metadata.outbox, (), "metadata.outbox")
    expect.equal(found.metadata.handled, (), "metadata.handled")


@case("query")
async def refused_insert_leaves_nothing(kit: Kit) -> None:
    """A refused insert is not counted and not found: no half of it is left in any index."""
    store = await kit.store()
    first = await kit.inserted("order-1", "first")
    same_id = new_state("second", metadata=SagaMetadata.fresh(first.metadata.saga_id))
    await expect.raises(store.insert(MAIN, "order-2", same_id), DuplicateSagaError, "a taken id")
    await expect.raises(store.insert(MAIN, "order-1", new_state("third")), DuplicateSagaError, "a taken correlation id")
    await kit.sees(partial(store.count, SagaFilter()), 1, "the number of sagas after two refused inserts")

    async def look() -> None:
        what = "what is found after two refused inserts"
        page = await find_page(store, SagaFilter(), what)
        expect.equal([item.correlation_id for item in page.items], ["order-1"], what)
        expect.same_state(page.items[0].state, first, "the saga that is found")

    await kit.settles(look)

"""What the in-memory store adds to the contract: a look inside, and places shared by name."""

from __future__ import annotations

import asyncio
import gc
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from saga_bus.store import (
    DuplicateSagaError,
    InvalidSagaError,
    SagaFilter,
    SagaMetadata,
    SagaRecord,
    SagaState,
    UntypedSagaState,
    open_store,
)
from saga_bus.store_inmemory import InMemorySagaStore

THEN = datetime(2024, 1, 2, tzinfo=UTC)


class OrderState(SagaState, kw_only=True):
    items: list[str] = msgspec.field(default_factory=list)


def order(saga_id: str, **metadata: Any) -> OrderState:
    fields = {"saga_id": saga_id, "version": 0, "created_at": THEN, "updated_at": THEN, **metadata}
    return OrderState(metadata=SagaMetadata(**fields))


def store(url: str = "memory://") -> InMemorySagaStore[Any]:
    return InMemorySagaStore(url, state_types={"Order": OrderState})


def test_size_has_get_all_and_clear_look_into_the_store() -> None:
    async def scenario() -> None:
        sagas = store()
        assert (sagas.size, sagas.get_all(), sagas.has("Order", "b")) == (0, [], False)
        await sagas.insert("Order", "cb", order("b"))
        await sagas.insert("Order", "ca", order("a"))
        await sagas.insert("Other", "cb", order("b"))
        assert sagas.size == 3
        assert [sagas.has(*key) for key in (("Order", "b"), ("Order", "cb"), ("order", "b"), ("Other", "a"))] == [
            True,
            False,
            False,
            False,
        ]
        assert sagas.get_all("Order") == [
            SagaRecord("Order", "cb", order("b")),
            SagaRecord("Order", "ca", order("a")),
        ]
        assert [(record.saga_name, type(record.state)) for record in sagas.get_all()] == [
            ("Order", OrderState),
            ("Order", OrderState),
            ("Other", UntypedSagaState),
        ]
        await sagas.delete("Order", "b")
        assert (sagas.size, sagas.has("Order", "b")) == (2, False)
        sagas.clear()
        assert (sagas.size, sagas.get_all()) == (0, [])
        assert await sagas.get_by_correlation_id("Order", "ca") is None
        await sagas.insert("Order", "ca", order("a"))
        assert sagas.size == 1

    asyncio.run(scenario())


def test_states_are_copies_never_the_live_object() -> None:
    async def scenario() -> None:
        sagas = store()
        given = order("a")
        await sagas.insert("Order", "c", given)
        given.items.append("changed after the insert")
        read = await sagas.get_by_id("Order", "a")
        read.items.append("changed after the read")
        (listed,) = sagas.get_all()
        listed.state.items.append("changed after get_all")
        (found,) = (await sagas.find(SagaFilter())).items
        for state in (found.state, await sagas.get_by_correlation_id("Order", "c")):
            assert state == order("a")

    asyncio.run(scenario())


def test_a_failed_write_changes_neither_index() -> None:
    async def scenario() -> None:
        sagas = store()
        await sagas.insert("Order", "c", order("a"))
        for correlation_id, saga_id, conflict in (
            ("c", "b", "correlation_id"),
            ("d", "a", "saga_id"),
            ("c", "a", "saga_id"),
        ):
            with pytest.raises(DuplicateSagaError) as caught:
                await sagas.insert("Order", correlation_id, order(saga_id))
            assert caught.value.conflict == conflict
        assert sagas.get_all() == [SagaRecord("Order", "c", order("a"))]
        assert await sagas.get_by_correlation_id("Order", "d") is None
        assert not sagas.has("Order", "b")

    asyncio.run(scenario())


def test_a_place_without_a_name_is_the_stores_own_and_a_named_one_is_shared() -> None:
    async def scenario() -> None:
        one, two = store("memory://shared"), store("memory://shared")
        others = [store("memory://Shared"), store("memory://shared/x"), store(), store()]
        await one.insert("Order", "c", order("a"))
        assert await two.get_by_correlation_id("Order", "c") == order("a")
        assert [other.size for other in others] == [0] * 4
        await two.delete("Order", "a")
        assert one.size == 0
        by_url = open_store("Memory://shared")
        assert isinstance(by_url, InMemorySagaStore)
        await by_url.insert("Order", "c", order("a"))
        assert one.size == 1

    asyncio.run(scenario())


def test_a_named_place_outlives_a_closed_store_and_ends_with_its_last_store() -> None:
    async def scenario() -> None:
        one, two = store("memory://lifetime"), store("memory://lifetime")
        await one.insert("Order", "c", order("a"))
        await one.close()
        del one
        gc.collect()
        assert await two.get_by_id("Order", "a") == order("a")
        del two
        gc.collect()
        assert store("memory://lifetime").size == 0

    asyncio.run(scenario())


def test_pages_after_a_write_show_it() -> None:
    async def scenario() -> None:
        sagas = store()
        await sagas.insert("Order", "c1", order("1"))
        assert len((await sagas.find(SagaFilter())).items) == 1
        await sagas.insert("Order", "c2", order("2"))
        stale = order("1", version=1, updated_at=THEN.replace(year=2025))
        assert [r.correlation_id for r in (await sagas.find(SagaFilter(order="stalest"))).items] == ["c1", "c2"]
        await sagas.update("Order", stale, 0)
        assert [r.correlation_id for r in (await sagas.find(SagaFilter(order="stalest"))).items] == ["c2", "c1"]
        await sagas.delete("Order", "2")
        assert [r.correlation_id for r in (await sagas.find(SagaFilter())).items] == ["c1"]

    asyncio.run(scenario())


def test_repr_shows_the_place() -> None:
    assert repr(store("memory://orders")) == "InMemorySagaStore('memory://orders')"
    assert repr(store()) == "InMemorySagaStore('memory://')"


@pytest.mark.parametrize("url", ["", "memory", "memory:", "memory:/x", "redis://x", "MEMORY://", None, 5])
def test_another_url_is_refused(url: Any) -> None:
    with pytest.raises(InvalidSagaError, match="memory:// or memory://name"):
        InMemorySagaStore(url)


def test_ping_answers_without_warnings() -> None:
    assert asyncio.run(store().ping()).warnings == ()

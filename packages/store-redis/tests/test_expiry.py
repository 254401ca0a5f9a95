"""Completed sagas that expire: state, pointer and index together, and no ghosts in find, count and purge."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from redis_helpers import NAME, following, key, members, state, store_on
from saga_bus.store import InvalidSagaError, SagaFilter, SagaMetadata, SagaState

SOON = timedelta(milliseconds=150)


async def expired(admin, prefix, saga_id):
    """Wait until a saga has expired."""
    deadline = time.monotonic() + 10
    while admin.exists(key(prefix, f"s:{saga_id}")):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def end(store, *ids):
    for saga_id in ids:
        saga = state(saga_id)
        await store.insert(NAME, f"order-{saga_id}", saga)
        await store.update(NAME, following(saga, is_completed=True, outbox=({"m": 1},)), 0)


def test_state_and_pointer_have_the_same_end_and_lose_it_together(url, prefix, admin):
    async def run():
        async with store_on(url, prefix, completed_ttl=timedelta(hours=1)) as store:
            await store.create_schema()
            await end(store, "a")
            ends = {admin.pexpiretime(key(prefix, suffix)) for suffix in ("s:a", "c:order-a")}
            assert len(ends) == 1
            assert 3_590_000 < ends.pop() - time.time() * 1000 <= 3_601_000
            saga = await store.get_by_id(NAME, "a")
            await store.update(NAME, following(saga), 1)  # counts from the last update on
            later = {admin.pexpiretime(key(prefix, suffix)) for suffix in ("s:a", "c:order-a")}
            assert len(later) == 1
            assert [letter for letter, _ in members(admin, prefix)] == ["c", "f", "o", "x"]
            saga = await store.get_by_id(NAME, "a")
            await store.update(NAME, following(saga, is_completed=False), 2)
            assert {admin.pexpiretime(key(prefix, suffix)) for suffix in ("s:a", "c:order-a")} == {-1}
            assert "x" not in {letter for letter, _ in members(admin, prefix)}
            await store.insert(NAME, "order-b", SagaState(metadata=state("b").metadata.next(is_completed=True)))
            assert admin.pttl(key(prefix, "s:b")) > 0
            assert admin.pttl(key(prefix, "c:order-b")) > 0
        async with store_on(url, prefix) as keeper:  # one without a time to live keeps what it writes
            saga = await keeper.get_by_id(NAME, "b")
            await keeper.update(NAME, following(saga), 1)
            assert {admin.pexpiretime(key(prefix, suffix)) for suffix in ("s:b", "c:order-b")} == {-1}

    asyncio.run(run())


@pytest.mark.parametrize("look", ["find", "find all", "count", "count one by one", "purge", "insert"])
def test_whoever_looks_first_finds_no_ghost_and_heals_the_index(url, prefix, admin, look):
    async def run():
        async with store_on(url, prefix, completed_ttl=SOON) as store:
            await store.create_schema()
            await store.insert(NAME, "order-live", state("live"))
            await asyncio.gather(*(end(store, f"gone-{number}") for number in range(30)))
            await expired(admin, prefix, "gone-29")
            for number in range(30):
                await expired(admin, prefix, f"gone-{number}")
            ghosts = len(members(admin, prefix)) - 2
            assert ghosts > 0
            everybody = SagaFilter(saga_name=NAME)
            if look == "find":
                page = await store.find(everybody, limit=10)
                assert ([record.state.metadata.saga_id for record in page.items], page.cursor) == (["live"], None)
            elif look == "find all":
                assert len((await store.find(SagaFilter(order="stalest"), limit=10)).items) == 1
            elif look == "count":
                assert await store.count(everybody) == 1
                assert await store.count(SagaFilter(outbox_pending=True)) == 0
            elif look == "count one by one":
                assert await store.count(SagaFilter(saga_name=NAME, archived=False)) == 1
            elif look == "purge":
                assert await store.delete_completed_before(NAME, datetime.now(UTC) + timedelta(days=1)) == 0
            else:
                for number in range(3):  # each write takes some away
                    await store.insert(NAME, f"order-{number}", state(f"new-{number}"))
                    await store.delete(NAME, f"new-{number}")
            assert members(admin, prefix) == [("n", "live"), ("r", "live")]

    asyncio.run(run())


def test_an_expired_id_that_is_used_again_stays_in_the_index(url, prefix, admin):
    async def run():
        async with store_on(url, prefix, completed_ttl=SOON) as store:
            await store.create_schema()
            saga = state("a")
            await store.insert(NAME, "order-1", saga)
            ended = following(saga, is_completed=True)
            await store.update(NAME, ended, 0)
            await expired(admin, prefix, "a")
            async with store_on(url, prefix) as other:  # which heals nothing when it writes
                await other.insert(NAME, "order-2", ended)  # the very same moments
            found = await store.find(SagaFilter(saga_name=NAME))
            assert [record.correlation_id for record in found.items] == ["order-2"]
            assert await store.count(SagaFilter(saga_name=NAME, completed=True)) == 1
            assert members(admin, prefix) == [("c", "a"), ("f", "a")]
            assert await store.get_by_correlation_id(NAME, "order-1") is None

    asyncio.run(run())


def test_sagas_that_were_evicted_are_no_ghosts_in_find_and_purge(url, prefix, admin):
    async def run():
        async with store_on(url, prefix) as store:
            await store.create_schema()
            old = datetime(2020, 1, 1, tzinfo=UTC)
            for number in range(700):  # more than one walk of the script
                metadata = SagaMetadata(
                    saga_id=f"id-{number:03}", version=0, created_at=old, updated_at=old, is_completed=True
                )
                await store.insert(NAME, f"order-{number}", SagaState(metadata=metadata))
            for number in range(700):
                if number not in (3, 650):
                    admin.delete(key(prefix, f"s:id-{number:03}"))
            page = await store.find(SagaFilter(saga_name=NAME, order="stalest"), limit=1)
            assert [record.state.metadata.saga_id for record in page.items] == ["id-003"]
            rest = await store.find(SagaFilter(saga_name=NAME, order="stalest"), limit=1, cursor=page.cursor)
            assert ([record.state.metadata.saga_id for record in rest.items], rest.cursor) == (["id-650"], None)
            assert await store.delete_completed_before(NAME, datetime.now(UTC), batch_size=1) == 2
            newest = await store.find(SagaFilter(saga_name=NAME))
            assert newest.items == ()
            assert members(admin, prefix) == []

    asyncio.run(run())


@pytest.mark.parametrize(
    "ttl", [timedelta(), timedelta(microseconds=1), timedelta(days=-1), 60, timedelta(days=40_000)]
)
def test_refuses_what_is_no_time_to_live(ttl):
    with pytest.raises(InvalidSagaError):
        store_on("redis://localhost", "p", completed_ttl=ttl)

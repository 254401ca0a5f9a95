"""What leaves together, and that each caller gets an outcome of its own."""

from __future__ import annotations

import asyncio

import pytest

from mongodb_helpers import SAGA, OrderState, client_of, follow, heard_store, store_on
from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
    SagaFilter,
    SagaMetadata,
    SagaNotFoundError,
    SagaStoreError,
    StateTooLargeError,
)
from saga_bus.store_mongodb._documents import MAX_STATE_BYTES

BURST = 40


def test_a_lone_caller_takes_one_plain_command(url):
    async def run():
        async with heard_store(url) as (heard, store):
            state = OrderState()
            await store.insert(SAGA, "order-1", state)
            await store.get_by_id(SAGA, state.metadata.saga_id)
            await store.get_by_correlation_id(SAGA, "order-1")
            await store.update(SAGA, follow(state), 0)
            assert not heard.commands[-1]["updates"][0]["upsert"]
            await store.delete(SAGA, state.metadata.saga_id, 1)
            assert heard.names() == ["insert", "find", "find", "update", "delete"]

    asyncio.run(run())


def test_a_burst_leaves_in_two_commands_the_first_of_them_for_the_first_caller(url):
    async def run():
        async with heard_store(url) as (heard, store):
            states = [OrderState() for _ in range(BURST)]
            await asyncio.gather(*(store.insert(SAGA, f"order-{n}", state) for n, state in enumerate(states)))
            assert heard.names() == ["insert"] * 2
            newer = [follow(state, str(number)) for number, state in enumerate(states)]
            await asyncio.gather(*(store.update(SAGA, state, 0) for state in newer))
            assert heard.names() == ["update"] * 2
            assert await asyncio.gather(*(store.get_by_id(SAGA, state.metadata.saga_id) for state in states)) == newer
            assert heard.names() == ["find"] * 2
            found = await asyncio.gather(*(store.get_by_correlation_id(SAGA, f"order-{n}") for n in range(BURST)))
            assert heard.names() == ["find"] * 2
            assert found == newer

    asyncio.run(run())


def test_a_full_group_of_reads_is_one_round_trip(url):
    async def run():
        async with heard_store(url) as (heard, store):
            states = [OrderState() for _ in range(1 + 128)]
            await asyncio.gather(*(store.insert(SAGA, f"order-{n}", state) for n, state in enumerate(states)))
            heard.names()
            reads = [store.get_by_id(SAGA, state.metadata.saga_id) for state in states]
            assert all(await asyncio.gather(*reads))
            assert heard.names() == ["find"] * 2  # and no getMore for what is beyond the 101 of a first batch

    asyncio.run(run())


def test_reads_of_several_names_and_of_unknown_keys(url):
    async def run():
        async with store_on(url) as store:
            store.register("Other/Saga", OrderState)
            one, two = OrderState(note="one"), OrderState(note="two")
            await store.insert(SAGA, "order-1", one)
            await store.insert("Other/Saga", "order-1", two)
            found = await asyncio.gather(
                *(
                    get(name, key)
                    for name in (SAGA, "Other/Saga", "Other")
                    for get, key in (
                        (store.get_by_correlation_id, "order-1"),
                        (store.get_by_correlation_id, "order-2"),
                        (store.get_by_id, one.metadata.saga_id),
                        (store.get_by_id, one.metadata.saga_id),
                    )
                )
            )
            notes = [state and state.note for state in found]
            assert notes == ["one", None, "one", "one", "two", None, None, None, None, None, None, None]

    asyncio.run(run())


def test_each_update_of_a_group_has_its_own_outcome(url):
    async def run():
        async with heard_store(url) as (heard, store):
            states = [OrderState() for _ in range(9)]
            for number, state in enumerate(states):
                await store.insert(SAGA, f"order-{number}", state)
            for state in states[6:]:
                await store.update(SAGA, follow(state), 0)
            missing = [OrderState() for _ in range(3)]
            heard.names()
            outcomes = await asyncio.gather(
                *(store.update(SAGA, follow(state, "new"), 0) for state in (*states, *missing)), return_exceptions=True
            )
            assert heard.names() == ["update", "update", "find"]
            assert outcomes[:6] == [None] * 6
            for outcome in outcomes[6:9]:
                assert type(outcome) is ConcurrencyError
                assert (outcome.expected_version, outcome.actual_version) == (0, 1)
            assert [type(outcome) for outcome in outcomes[9:]] == [SagaNotFoundError] * 3
            notes = {record.correlation_id: record.state.note for record in (await store.find(SagaFilter())).items}
            assert notes == {f"order-{number}": "new" if number < 6 else "" for number in range(9)}

    asyncio.run(run())


def test_a_refused_update_of_a_group_inserts_nothing(url):
    async def run():
        async with store_on(url) as store:
            lost = [OrderState() for _ in range(BURST)]
            outcomes = await asyncio.gather(
                *(store.update(SAGA, follow(state), 0) for state in lost), return_exceptions=True
            )
            assert {type(outcome) for outcome in outcomes} == {SagaNotFoundError}
            async with client_of(url) as client:
                sagas = client.get_default_database()[store._names[1]]
                assert await sagas.count_documents({}) == 0

    asyncio.run(run())


def test_each_insert_of_a_group_has_its_own_outcome(url):
    async def run():
        async with heard_store(url) as (heard, store):
            taken = OrderState(note="taken")
            await store.insert(SAGA, "taken", taken)
            same_id = OrderState(metadata=SagaMetadata.fresh(taken.metadata.saga_id))
            writes = [("order-1", OrderState()), ("taken", OrderState()), ("order-2", same_id), ("taken", same_id)]
            writes += [("order-3", OrderState()), ("order-3", OrderState())]
            heard.names()
            outcomes = await asyncio.gather(*(store.insert(SAGA, *write) for write in writes), return_exceptions=True)
            conflicts = [getattr(outcome, "conflict", None) for outcome in outcomes]
            assert conflicts[:4] == [None, "correlation_id", "saga_id", "saga_id"]
            assert sorted(map(str, conflicts[4:])) == ["None", "correlation_id"]
            assert all(outcome is None or type(outcome) is DuplicateSagaError for outcome in outcomes)
            assert (await store.get_by_correlation_id(SAGA, "taken")).note == "taken"
            assert await store.count(SagaFilter()) == 3

    asyncio.run(run())


def test_a_state_that_is_too_large_fails_alone_and_is_never_sent(url):
    async def run():
        async with heard_store(url) as (heard, store):
            small = [OrderState() for _ in range(5)]
            large = OrderState(data={"numbers": [1] * 1_500_000})
            outcomes = await asyncio.gather(
                *(store.insert(SAGA, f"order-{n}", state) for n, state in enumerate((*small, large))),
                return_exceptions=True,
            )
            assert outcomes[:5] == [None] * 5
            assert type(outcomes[5]) is StateTooLargeError
            assert sum(len(command["documents"]) for command in heard.commands if command["name"] == "insert") == 5
            await store.update(SAGA, follow(small[0]), 0)
            too_large = OrderState(metadata=follow(small[1]).metadata, data=large.data)
            with pytest.raises(StateTooLargeError):
                await store.update(SAGA, too_large, 0)

    asyncio.run(run())


def test_a_state_of_just_the_limit_is_stored(url):
    async def run():
        async with store_on(url) as store:
            state = OrderState()
            with pytest.raises(StateTooLargeError) as caught:
                await store.insert(SAGA, "order-1", OrderState(metadata=state.metadata, note="x" * MAX_STATE_BYTES))
            over = caught.value.size - MAX_STATE_BYTES
            fits = OrderState(metadata=state.metadata, note="x" * (MAX_STATE_BYTES - over))
            await store.insert(SAGA, "c" * 256, fits)
            newer = OrderState(metadata=fits.metadata.next(), note=fits.note[:-100])
            await store.update(SAGA, newer, 0)
            assert (await store.get_by_correlation_id(SAGA, "c" * 256)).note == newer.note

    asyncio.run(run())


def test_a_unique_index_of_the_users_is_no_duplicate_saga(url):
    async def run():
        async with store_on(url) as store, client_of(url) as client:
            sagas = client.get_default_database()[store._names[1]]
            await sagas.create_index("state.note", unique=True, partialFilterExpression={"state.note": {"$gt": ""}})
            states = [OrderState(note=str(number)) for number in range(4)]
            for number, state in enumerate(states):
                await store.insert(SAGA, f"order-{number}", state)
            with pytest.raises(SagaStoreError, match="index of the user's") as caught:
                await store.insert(SAGA, "order-9", OrderState(note="1"))
            assert type(caught.value) is SagaStoreError
            outcomes = await asyncio.gather(
                store.update(SAGA, follow(states[0], "1"), 0),
                store.update(SAGA, follow(states[2], "two"), 0),
                store.insert(SAGA, "order-8", OrderState(note="1")),
                store.insert(SAGA, "order-7", OrderState(note="seven")),
                return_exceptions=True,
            )
            assert [type(outcome) for outcome in outcomes] == [SagaStoreError, type(None)] * 2

    asyncio.run(run())

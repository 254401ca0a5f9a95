"""What goes over the wire: how many requests, and of what kind."""

import asyncio
from datetime import timedelta

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

from saga_bus.store import ConcurrencyError, DuplicateSagaError, SagaFilter, SagaNotFoundError, StoreUnavailableError
from saga_bus.store_dynamodb._keys import SLOTS

DAY = timedelta(days=1)
ANSWERED = {"ResponseMetadata": {"RequestId": "1"}}


def test_each_operation_takes_its_round_trips_and_no_more(place, run, recorder):
    async def check():
        async with place.opened() as store:
            recorded = recorder(store)
            (state,) = await place.insert(store, "a")
            assert recorded.names == ["put_item", "transact_write_items"]  # the first of its name announces the name
            recorded.clear()
            (other,) = await place.insert(store, "b")
            assert recorded.names == ["transact_write_items"]
            recorded.clear()
            assert await store.get_by_id(place.name, "a") == state
            assert recorded.names == ["get_item"]
            recorded.clear()
            assert await store.get_by_correlation_id(place.name, "order-b") == other
            assert recorded.names == ["get_item", "get_item"]
            recorded.clear()
            assert await store.get_by_correlation_id(place.name, "order-c") is None
            assert recorded.names == ["get_item"]
            recorded.clear()
            await store.update(place.name, place.follow(state), 0)
            assert recorded.names == ["update_item"]
            recorded.clear()
            await store.delete(place.name, "a", expected_version=1)
            assert recorded.names == ["get_item", "transact_write_items"]
            recorded.clear()
            await store.delete(place.name, "a")
            assert recorded.names == ["get_item"]

    run(check())


def test_a_lone_caller_waits_for_a_thread_once(place, run, recorder, monkeypatch):
    async def check():
        async with place.opened() as store:
            (state,) = await place.insert(store, "a")
            visits = []
            run_in_thread = store._driver._threads.run
            monkeypatch.setattr(store._driver._threads, "run", lambda work: visits.append(1) or run_in_thread(work))
            recorded = recorder(store)
            for call in (
                lambda: store.get_by_id(place.name, "a"),
                lambda: store.get_by_correlation_id(place.name, "order-a"),
                lambda: store.update(place.name, place.follow(state), 0),
                lambda: store.insert(place.name, "order-b", place.state("b")),
            ):
                visits.clear()
                await call()
                assert len(visits) == 1
            assert recorded.names == ["get_item", "get_item", "get_item", "update_item", "transact_write_items"]

    run(check())


def test_a_refused_update_knows_the_version_without_another_read(place, run, recorder):
    async def check():
        async with place.opened() as store:
            (state,) = await place.insert(store, "a")
            await store.update(place.name, place.follow(state), 0)
            recorded = recorder(store)
            with pytest.raises(ConcurrencyError) as caught:
                await store.update(place.name, place.follow(state), 0)
            assert (caught.value.expected_version, caught.value.actual_version) == (0, 1)
            with pytest.raises(SagaNotFoundError):
                await store.update(place.name, place.state("missing", version=1), 0)
            with pytest.raises(DuplicateSagaError) as duplicate:
                await store.insert(place.name, "order-a", place.state("new"))
            assert duplicate.value.conflict == "correlation_id"
            assert recorded.names == ["update_item", "update_item", "transact_write_items"]

    run(check())


def test_every_read_by_key_is_consistent(place, run, recorder):
    async def check():
        async with place.opened() as store:
            await place.insert(store, *(f"id-{number}" for number in range(5)))
            recorded = recorder(store)
            await asyncio.gather(
                *(store.get_by_id(place.name, f"id-{number}") for number in range(5)),
                *(store.get_by_correlation_id(place.name, f"order-id-{number}") for number in range(5)),
            )
            await store.get_by_id(place.name, "id-0")
            await store.find(SagaFilter())
            reads = 0
            for name, request in recorded.requests:
                if name == "get_item":
                    reads += 1
                    assert request["ConsistentRead"]
                elif name == "batch_get_item":
                    reads += 1
                    assert all(wanted["ConsistentRead"] for wanted in request["RequestItems"].values())
                else:
                    assert name == "query"
            assert reads >= 3

    run(check())


def test_concurrent_gets_go_together_and_keep_their_own_answers(place, run, recorder):
    async def check():
        async with place.opened() as store:
            states = await place.insert(store, *(f"id-{number}" for number in range(120)))
            recorded = recorder(store)
            keys = [number % 130 for number in range(260)]  # some twice in a group, some not there
            found = await asyncio.gather(*(store.get_by_id(place.name, f"id-{number}") for number in keys))
            assert found == [states[number] if number < 120 else None for number in keys]
            assert found[0] is not found[130]
            assert set(recorded.names) <= {"get_item", "batch_get_item"}
            assert len(recorded.names) <= 5
            for name, request in recorded.requests:
                if name == "batch_get_item":
                    asked = [key["pk"]["S"] for key in request["RequestItems"][place.table]["Keys"]]
                    assert len(asked) == len(set(asked)) <= 100

    run(check())


def test_concurrent_gets_by_correlation_id_go_together_and_keep_their_own_answers(place, run, recorder):
    async def check():
        async with place.opened() as store:
            states = await place.insert(store, *(f"id-{number}" for number in range(30)))
            await store.insert("Other", "order-id-3", place.state("id-3"))
            recorded = recorder(store)
            numbers = [number % 33 for number in range(99)]
            *found, other, by_id = await asyncio.gather(
                *(store.get_by_correlation_id(place.name, f"order-id-{number}") for number in numbers),
                store.get_by_correlation_id("Other", "order-id-3"),
                store.get_by_id(place.name, "id-7"),
            )
            assert found == [states[number] if number < 30 else None for number in numbers]
            assert other.metadata.saga_id == "id-3"
            assert other.data == {"note": ""}  # of another type, so not the saga of the same ids under the other name
            assert by_id == states[7]
            assert len(recorded.names) <= 2 + 2 + 1  # the first caller's two, the group's two, and the one by its id

    run(check())


def test_keys_that_were_left_out_are_asked_for_again(place, run, recorder):
    def only_two(method, request):
        wanted = request["RequestItems"][place.table]
        first = method(RequestItems={place.table: {**wanted, "Keys": wanted["Keys"][:2]}})
        left = {**wanted, "Keys": wanted["Keys"][2:]}
        return {**first, "UnprocessedKeys": {place.table: left} if left["Keys"] else {}}

    def nothing(method, request):
        return {"Responses": {}, "UnprocessedKeys": request["RequestItems"], **ANSWERED}

    async def check():
        async with place.opened(attempts=3) as store:
            states = await place.insert(store, *(f"id-{number}" for number in range(7)))
            recorded = recorder(store)
            recorded.instead["batch_get_item"] = [only_two, nothing, nothing, only_two]
            keys = [f"id-{number}" for number in range(7)]
            async with asyncio.timeout(30):
                assert await asyncio.gather(*(store.get_by_id(place.name, key) for key in keys)) == states
                recorded.instead["batch_get_item"] = [nothing] * 3
                outcomes = await asyncio.gather(
                    *(store.get_by_id(place.name, key) for key in keys), return_exceptions=True
                )
            assert {type(outcome) for outcome in outcomes[1:]} == {StoreUnavailableError}

    run(check())


def test_a_group_of_which_the_service_refuses_all_is_no_concern_of_later_ones(place, run, recorder):
    def denied(method, request):
        raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "BatchGetItem")

    async def check():
        async with place.opened() as store:
            states = await place.insert(store, "a", "b", "c")
            recorded = recorder(store)
            recorded.instead["batch_get_item"] = [denied]
            # Each of them is asked for by itself then, and one that is refused fails alone.
            found = await asyncio.gather(*(store.get_by_id(place.name, key) for key in "abc"))
            assert found == states

    run(check())


def test_sagas_are_spread_over_partitions_of_table_and_indexes(place, run):
    async def check():
        async with place.opened() as store:
            await asyncio.gather(*(place.insert(store, f"id-{number}") for number in range(100)))

    run(check())
    states = {key: item for key, item in place.items().items() if key.startswith("S#")}
    assert len(states) == 100  # the partition key of the table is the saga's own
    slots = [item["slot"]["S"] for item in states.values()]
    assert len(set(slots)) == SLOTS
    assert max(slots.count(slot) for slot in slots) < 40
    assert all(slot.endswith(f"#{place.name}") for slot in slots)


def test_keys_that_would_be_one_text_when_joined_are_two(place, run):
    async def check():
        async with place.opened() as store:
            await store.insert("a#1", "c", place.state("b"))
            await store.insert("a", "1#c", place.state("1#b"))
            await store.insert("2#a", "c", place.state("b"))
            assert (await store.get_by_id("a", "1#b")).data == {"note": ""}
            assert await store.get_by_id("a#1", "1#b") is None
            assert (await store.get_by_correlation_id("a", "1#c")).metadata.saga_id == "1#b"
            assert await store.get_by_correlation_id("a#1", "1#c") is None
            page = await store.find(SagaFilter())
            assert sorted(record.saga_name for record in page.items) == ["2#a", "a", "a#1"]

    run(check())


def test_concurrent_updates_go_together_and_keep_their_own_outcomes(place, run, recorder):
    async def check():
        async with place.opened() as store:
            states = await place.insert(store, *(f"id-{number}" for number in range(40)))
            stale = [number for number in range(40) if number % 10 == 7]
            for number in stale:
                await store.update(place.name, place.follow(states[number], "first"), 0)
            recorded = recorder(store)
            updates = [place.follow(state, "second") for state in states] + [place.state("missing", version=1)]
            outcomes = await asyncio.gather(
                *(store.update(place.name, state, 0) for state in updates), return_exceptions=True
            )
            for number, outcome in enumerate(outcomes[:40]):
                found = await store.get_by_id(place.name, f"id-{number}")
                if number in stale:
                    assert type(outcome) is ConcurrencyError
                    assert outcome.actual_version == 1
                    assert found.note == "first"
                else:
                    assert outcome is None
                    assert found == updates[number]
            assert type(outcomes[40]) is SagaNotFoundError
            assert recorded.names.count("batch_execute_statement") == 2
            # The refused ones are asked about one by one, which tells the version that is there.
            assert recorded.names.count("update_item") <= 6

    run(check())


def test_a_group_of_updates_does_to_the_item_what_one_alone_does(place, run):
    async def check():
        async with place.opened() as store:
            waiting = [
                place.follow(state, timeout=DAY, outbox=({"id": "m"},)) for state in await place.insert(store, *"abcd")
            ]
            for state in waiting:
                await store.update(place.name, state, 0)
            quiet = [place.follow(state, "\N{CRAB} '\" ?", timeout=None, outbox=()) for state in waiting]
            await store.update(place.name, quiet[0], 1)
            await asyncio.gather(*(store.update(place.name, state, 1) for state in quiet[1:]))
            alone, *others = (item for key, item in place.items().items() if key.startswith("S#"))
            for other in others:
                assert set(other) == set(alone)
                assert {name: tuple(value) for name, value in other.items()} == {
                    name: tuple(value) for name, value in alone.items()
                }
            await asyncio.gather(
                *(
                    store.update(place.name, place.follow(state, timeout=DAY, outbox=({"id": "m"},)), 2)
                    for state in quiet
                )
            )
            assert await store.count(SagaFilter(outbox_pending=True)) == 4

    run(check())


@pytest.mark.parametrize("applied", [True, False])
def test_a_group_of_updates_whose_answer_was_lost(place, run, recorder, applied):
    def lost(method, request):
        if applied:
            method(**request)
        raise ConnectionClosedError(endpoint_url="http://x")

    async def check():
        async with place.opened() as store:
            states = await place.insert(store, *(f"id-{number}" for number in range(5)))
            recorded = recorder(store)
            recorded.instead["batch_execute_statement"] = [lost]
            await asyncio.gather(*(store.update(place.name, place.follow(state), 0) for state in states))
            assert recorded.names.count("batch_execute_statement") == 1
            for state in states:
                assert (await store.get_by_id(place.name, state.metadata.saga_id)).metadata.version == 1

    run(check())


def test_who_may_not_group_updates_makes_them_alone(place, run, recorder):
    def denied(method, request):
        raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "BatchExecuteStatement")

    async def check():
        async with place.opened() as store:
            states = await place.insert(store, *(f"id-{number}" for number in range(5)))
            recorded = recorder(store)
            recorded.instead["batch_execute_statement"] = [denied]
            for _ in range(2):
                states = [place.follow(state) for state in states]
                version = states[0].metadata.version
                await asyncio.gather(*(store.update(place.name, state, version - 1) for state in states))
            assert recorded.names.count("batch_execute_statement") == 1
            assert recorded.names.count("update_item") >= 8

    run(check())


def test_a_throttled_statement_of_a_group_is_made_alone(place, run, recorder):
    def throttled(method, request):
        answer = method(Statements=request["Statements"][1:])
        error = {"Error": {"Code": "ThrottlingError", "Message": "slow down"}}
        return {**answer, "Responses": [error, *answer["Responses"]]}

    async def check():
        async with place.opened() as store:
            states = await place.insert(store, *(f"id-{number}" for number in range(5)))
            recorded = recorder(store)
            recorded.instead["batch_execute_statement"] = [throttled]
            await asyncio.gather(*(store.update(place.name, place.follow(state), 0) for state in states))
            assert recorded.names.count("update_item") == 2  # the first caller's, and the throttled one

    run(check())

"""Completed sagas that expire: gone at once for everybody, both items together, never a running one."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

from saga_bus.store import DuplicateSagaError, InvalidSagaError, SagaFilter, SagaNotFoundError
from saga_bus.store_dynamodb import DynamoDBSagaStore

DAY = timedelta(days=1)


def expiries(place):
    return {key: int(item["expires"]["N"]) for key, item in place.items().items() if "expires" in item}


def keys(place, saga_id="a"):
    length = len(place.name)
    return f"S#{length}#{place.name}#{saga_id}", f"C#{length}#{place.name}#order-{saga_id}"


def expire(place, *saga_ids):
    """Let the time of sagas be over; the service deletes them when it comes to it, within days."""
    for saga_id in saga_ids:
        for key in keys(place, saga_id):
            place.change(key, expires={"N": str(int(time.time()) - 1)})


async def completed(place, store, *saga_ids):
    states = [place.follow(state, is_completed=True) for state in await place.insert(store, *saga_ids)]
    for state in states:
        await store.update(place.name, state, 0)
    return states


def test_both_items_get_and_lose_their_time_together(place, run, recorder):
    async def check():
        async with place.opened(completed_ttl=DAY) as store:
            recorded = recorder(store)
            (state,) = await place.insert(store, "a")
            running = place.follow(state)
            recorded.clear()
            await store.update(place.name, running, 0)
            assert recorded.names == ["update_item"]
            assert not expiries(place)

            done = place.follow(running, is_completed=True)
            await store.update(place.name, done, 1)
            assert recorded.names == ["update_item", "get_item", "transact_write_items"]
            found = expiries(place)
            assert set(found) == set(keys(place))
            assert len(set(found.values())) == 1
            assert abs(found[keys(place)[0]] - time.time() - DAY.total_seconds()) < 60

            recorded.clear()
            reopened = place.follow(done, is_completed=False)
            await store.update(place.name, reopened, 2)
            assert recorded.names == ["update_item", "transact_write_items"]
            assert not expiries(place)
            assert await store.get_by_correlation_id(place.name, "order-a") == reopened

            born_done = place.follow(place.state("b"), is_completed=True)
            await store.insert(place.name, "order-b", born_done)
            assert set(expiries(place)) == set(keys(place, "b"))

    run(check())


def test_a_store_without_it_reopens_what_another_one_lets_expire(place, run):
    async def check():
        async with place.opened(completed_ttl=DAY) as store, place.store() as other:
            (done,) = await completed(place, store, "a")
            archived = place.follow(done, archived_at=datetime.now(UTC))
            before = expiries(place)
            await other.update(place.name, archived, 1)
            assert expiries(place) == before  # it was promised, and this store promises nothing else
            await other.update(place.name, place.follow(archived, is_completed=False), 2)
            assert not expiries(place)

    run(check())


def test_what_has_expired_is_gone_for_every_operation(place, run):
    async def check():
        async with place.opened(completed_ttl=DAY) as store:
            a, _, c = await completed(place, store, "a", "b", "c")
            expire(place, "a", "b")
            assert await store.get_by_id(place.name, "a") is None
            assert await store.get_by_correlation_id(place.name, "order-a") is None
            for is_completed in (True, False):
                with pytest.raises(SagaNotFoundError):
                    await store.update(place.name, place.follow(a, is_completed=is_completed), 1)
            with pytest.raises(SagaNotFoundError):
                await store.delete(place.name, "a", expected_version=1)
            await store.delete(place.name, "a")
            for where in (
                SagaFilter(),
                SagaFilter(completed=True),
                SagaFilter(saga_name=place.name, order="stalest"),
                SagaFilter(updated_after=datetime(2000, 1, 1, tzinfo=UTC)),
            ):
                assert [record.state for record in (await store.find(where)).items] == [c]
                assert await store.count(where) == 1
            later = datetime.now(UTC) + DAY
            assert await store.delete_completed_before(place.name, later, dry_run=True) == 1
            assert await store.delete_completed_before(place.name, later) == 1
            # Both keys are free, for one saga or for two.
            await store.insert(place.name, "order-b", place.state("a", "again"))
            await store.insert(place.name, "order-a", place.state("b", "again"))
            assert (await store.get_by_correlation_id(place.name, "order-a")).metadata.saga_id == "b"
            assert not expiries(place)

    run(check())


def test_an_insert_over_what_has_expired_is_made_twice_and_any_other_one_once(place, run, recorder):
    async def check():
        async with place.opened(completed_ttl=DAY) as store:
            await completed(place, store, "a", "b", "c")
            expire(place, "a", "b")
            recorded = recorder(store)
            await store.insert(place.name, "order-new", place.state("a", "again"))  # the id's item is in the way
            await store.insert(place.name, "order-b", place.state("new"))  # the correlation id's
            assert recorded.names == ["transact_write_items"] * 4
            tokens = [request["ClientRequestToken"] for _, request in recorded.requests]
            assert len(set(tokens)) == 4  # one token with two requests would be refused
            recorded.clear()
            for saga_id, correlation_id, conflict in (
                ("a", "order-c", "saga_id"),
                ("d", "order-c", "correlation_id"),
                ("c", "order-d", "saga_id"),
            ):
                with pytest.raises(DuplicateSagaError) as caught:
                    await store.insert(place.name, correlation_id, place.state(saga_id))
                assert caught.value.conflict == conflict
            assert recorded.names == ["transact_write_items"] * 3
            recorded.clear()
            # What has expired in one place does not open the other one.
            for key in keys(place, "b"):
                place.change(key, expires={"N": str(int(time.time()) - 1)})
            with pytest.raises(DuplicateSagaError) as caught:
                await store.insert(place.name, "order-c", place.state("b"))
            assert caught.value.conflict == "correlation_id"
            assert recorded.names == ["transact_write_items"] * 2
            assert (await store.get_by_correlation_id(place.name, "order-c")).metadata.saga_id == "c"
            assert (await store.get_by_correlation_id(place.name, "order-b")) is None

    run(check())


def test_what_expires_while_an_insert_is_refused_because_of_it_is_a_duplicate_still(place, run, recorder):
    def refused(method, request):  # by the service's clock it was there still; by ours it has expired since
        expired = {"expires": {"N": str(int(time.time()) - 1)}, "writer": {"S": "somebody's"}}
        reasons = [{"Code": "ConditionalCheckFailed", "Item": expired}, {"Code": "None"}]
        error = {"Error": {"Code": "TransactionCanceledException", "Message": "m"}, "CancellationReasons": reasons}
        raise ClientError(error, "TransactWriteItems")

    async def check():
        async with place.opened(completed_ttl=DAY) as store:
            await place.insert(store, "a")
            recorded = recorder(store)
            recorded.instead["transact_write_items"] = [refused, refused]
            with pytest.raises(DuplicateSagaError):  # rather than the impression that it was inserted
                await place.insert(store, "b")
            assert recorded.names == ["transact_write_items"] * 2

    run(check())


def test_a_pending_outbox_of_an_expired_saga_is_gone_too(place, run):
    async def check():
        async with place.opened(completed_ttl=DAY) as store:
            (state,) = await place.insert(store, "a")
            done = place.follow(state, is_completed=True, outbox=({"id": "m"},))
            await store.update(place.name, done, 0)
            where = SagaFilter(saga_name=place.name, outbox_pending=True)
            assert await store.count(where) == len((await store.find(where)).items) == 1
            expire(place, "a")
            assert await store.count(where) == len((await store.find(where)).items) == 0

    run(check())


def test_a_correlation_item_that_was_deleted_early_comes_back_when_reopened(place, run):
    async def check():
        async with place.opened(completed_ttl=DAY) as store:
            (done,) = await completed(place, store, "a")
            with place.client() as client:  # by a clock that is ahead of this machine's
                client.delete_item(TableName=place.table, Key={"pk": {"S": keys(place)[1]}})
            reopened = place.follow(done, is_completed=False)
            await store.update(place.name, reopened, 1)
            assert await store.get_by_correlation_id(place.name, "order-a") == reopened
            with pytest.raises(DuplicateSagaError):
                await store.insert(place.name, "order-a", place.state("b"))

    run(check())


def test_a_state_item_that_was_deleted_first_leaves_its_keys_free(place, run):
    async def check():
        async with place.opened(completed_ttl=DAY) as store:
            await completed(place, store, "a")
            expire(place, "a")
            with place.client() as client:
                client.delete_item(TableName=place.table, Key={"pk": {"S": keys(place)[0]}})
            assert await store.get_by_correlation_id(place.name, "order-a") is None
            (again,) = await place.insert(store, "a")
            assert await store.get_by_correlation_id(place.name, "order-a") == again

    run(check())


def test_the_answer_to_a_completing_update_is_lost(place, run, recorder):
    def lost(method, request):
        method(**request)
        raise ConnectionClosedError(endpoint_url="http://x")

    async def check():
        async with place.opened(completed_ttl=DAY) as store:
            (state,) = await place.insert(store, "a")
            recorded = recorder(store)
            recorded.instead["transact_write_items"] = [lost]
            done = place.follow(state, is_completed=True)
            await store.update(place.name, done, 0)
            recorded.instead["transact_write_items"] = [lost]
            await store.update(place.name, place.follow(done, is_completed=False), 1)
            assert not expiries(place)

    run(check())


def test_it_is_declared_and_checked():
    def store(**options):
        return DynamoDBSagaStore("dynamodb://eu-west-1/sagas", **options)

    assert store().capabilities.completed_ttl is None
    assert store(completed_ttl=DAY).capabilities.completed_ttl == DAY
    assert DynamoDBSagaStore("dynamodb://r/sagas?completed_ttl=90").capabilities.completed_ttl == timedelta(seconds=90)
    assert DynamoDBSagaStore.capabilities.completed_ttl is None
    for bad in (timedelta(), -DAY, 3600, "1d", timedelta(days=40_000)):
        with pytest.raises(InvalidSagaError, match="completed_ttl"):
            store(completed_ttl=bad)

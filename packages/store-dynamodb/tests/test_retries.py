"""Requests made again: never twice done, never taken for somebody else's."""

import asyncio

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError, ReadTimeoutError

from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
    OutcomeUnknownError,
    SagaStoreError,
    StoreUnavailableError,
)


def raising(error):
    def fail(method, request):
        raise error

    return fail


def lost(method, request):
    """The request is done, and its answer never comes."""
    method(**request)
    raise ConnectionClosedError(endpoint_url="http://x")


def refused(code, **more):
    return ClientError({"Error": {"Code": code, "Message": "m"}, **more}, "Operation")


def cancelled(*codes):
    return refused("TransactionCanceledException", CancellationReasons=[{"Code": code} for code in codes])


BUSY = [
    refused("ThrottlingException"),
    refused("ProvisionedThroughputExceededException"),
    refused("RequestLimitExceeded"),
    refused("TransactionConflictException"),
    refused("TransactionInProgressException"),
    cancelled("None", "TransactionConflict"),
    cancelled("ThrottlingError", "None"),
    cancelled("ProvisionedThroughputExceeded", "TransactionConflict"),
    EndpointConnectionError(endpoint_url="http://x"),
]


@pytest.mark.parametrize("error", BUSY, ids=str)
def test_what_passes_is_tried_again_and_given_up_as_retryable(place, run, recorder, error):
    async def check():
        async with place.opened(attempts=3) as store:
            recorded = recorder(store)
            recorded.instead["transact_write_items"] = [raising(error)] * 2
            await place.insert(store, "a")
            assert recorded.names.count("transact_write_items") == 3
            recorded.instead["update_item"] = [raising(error)] * 3
            with pytest.raises(StoreUnavailableError) as caught:
                await store.update(place.name, place.state("a", version=1), 0)
            assert type(caught.value) is StoreUnavailableError
            assert caught.value.__cause__ is error
            assert (await store.get_by_id(place.name, "a")).metadata.version == 0

    run(check())


@pytest.mark.parametrize(
    "error",
    [
        ReadTimeoutError(endpoint_url="http://x"),
        refused("InternalServerError", ResponseMetadata={"HTTPStatusCode": 500}),
        refused("Whatever", ResponseMetadata={"HTTPStatusCode": 503}),
    ],
    ids=str,
)
def test_what_may_have_been_done_is_unknown_to_the_end(place, run, recorder, error):
    async def check():
        async with place.opened(attempts=2) as store:
            recorded = recorder(store)
            await place.insert(store, "a")
            # That the last try was throttled says nothing of the first one.
            recorded.instead["update_item"] = [raising(error), raising(refused("ThrottlingException"))]
            with pytest.raises(OutcomeUnknownError):
                await store.update(place.name, place.state("a", version=1), 0)
            recorded.instead["update_item"] = [raising(error), raising(refused("AccessDeniedException"))]
            with pytest.raises(OutcomeUnknownError):
                await store.update(place.name, place.state("a", version=1), 0)
            recorded.instead["get_item"] = [raising(error)] * 2
            with pytest.raises(StoreUnavailableError) as caught:
                await store.get_by_id(place.name, "a")
            assert type(caught.value) is StoreUnavailableError

    run(check())


def test_a_transaction_that_is_made_again_is_the_same_one(place, run, recorder):
    async def check():
        async with place.opened() as store:
            recorded = recorder(store)
            recorded.instead["transact_write_items"] = [lost, raising(refused("TransactionInProgressException"))]
            await place.insert(store, "a")
            tries = [request for name, request in recorded.requests if name == "transact_write_items"]
            assert len(tries) == 3
            assert tries[0] == tries[1] == tries[2]
            assert len({request["ClientRequestToken"] for request in tries}) == 1
            recorded.clear()
            # Another call is another transaction, or inserting the same again would seem to succeed.
            with pytest.raises(DuplicateSagaError):
                await place.insert(store, "a")
            assert recorded.requests[-1][1]["ClientRequestToken"] != tries[0]["ClientRequestToken"]

    run(check())


def test_an_insert_is_known_again_when_the_service_has_forgotten_its_token(place, run, recorder):
    def forgotten(method, request):
        return method(**{**request, "ClientRequestToken": "another-one"})

    async def check():
        async with place.opened() as store:
            recorded = recorder(store)
            recorded.instead["transact_write_items"] = [lost, forgotten]
            (state,) = await place.insert(store, "a")
            assert recorded.names.count("transact_write_items") == 2
            assert await store.get_by_id(place.name, "a") == state

    run(check())


def test_inserting_again_after_a_delete_is_no_replay(place, run):
    async def check():
        async with place.opened() as store:
            state = place.state("a")
            for _ in range(3):
                await store.insert(place.name, "order-1", state)
                assert await store.get_by_correlation_id(place.name, "order-1") == state
                await store.delete(place.name, "a")
                assert await store.get_by_id(place.name, "a") is None

    run(check())


def test_an_update_whose_answer_was_lost_is_known_again(place, run, recorder):
    async def check():
        async with place.opened() as store:
            (state,) = await place.insert(store, "a")
            recorded = recorder(store)
            recorded.instead["update_item"] = [lost]
            await store.update(place.name, place.follow(state, "mine"), 0)
            assert recorded.names == ["update_item", "update_item"]
            found = await store.get_by_id(place.name, "a")
            assert (found.note, found.metadata.version) == ("mine", 1)
            with pytest.raises(ConcurrencyError):  # a second call is another update, even with the same content
                await store.update(place.name, place.follow(state, "mine"), 0)

    run(check())


def test_an_update_that_somebody_overtook(place, run, recorder):
    async def check():
        async with place.opened() as store, place.store() as other:
            (state,) = await place.insert(store, "a")
            recorded = recorder(store)
            loop = asyncio.get_running_loop()

            def elsewhere(*states):
                for one in states:
                    update = other.update(place.name, one, one.metadata.version - 1)
                    asyncio.run_coroutine_threadsafe(update, loop).result(30)

            def overtaken(method, request):  # it never arrived, and somebody else wrote that version
                elsewhere(place.follow(state, "theirs"))
                raise ConnectionClosedError(endpoint_url="http://x")

            recorded.instead["update_item"] = [overtaken]
            with pytest.raises(ConcurrencyError) as caught:
                await store.update(place.name, place.follow(state, "mine"), 0)
            assert caught.value.actual_version == 1

            mine = place.follow(await store.get_by_id(place.name, "a"), "mine")

            def built_upon(method, request):  # it was applied, and somebody else has gone on from there
                method(**request)
                elsewhere(place.follow(mine, "theirs"))
                raise ConnectionClosedError(endpoint_url="http://x")

            recorded.instead["update_item"] = [built_upon]
            with pytest.raises(OutcomeUnknownError):
                await store.update(place.name, mine, 1)
            assert (await store.get_by_id(place.name, "a")).note == "theirs"

    run(check())


def test_a_given_client_that_tries_again_by_itself_may_hide_a_lost_try(place, run, recorder):
    unsent = EndpointConnectionError(endpoint_url="http://x")

    def throttled(retries):
        return refused("ThrottlingException", ResponseMetadata={"RetryAttempts": retries})

    async def outcome(retries, error):
        client = boto3.client(
            "dynamodb",
            region_name="eu-west-1",
            endpoint_url=place.endpoint,
            aws_access_key_id="local",
            aws_secret_access_key="local",
            config=Config(retries=retries),
        )
        async with place.opened(client=client, attempts=1) as store:
            recorder(store).instead["update_item"] = [raising(error)]
            with pytest.raises(StoreUnavailableError) as caught:
                await store.update(place.name, place.state("a", version=1), 0)
        client.close()
        return type(caught.value)

    async def check():
        for retries in (None, {"total_max_attempts": 3}, {"max_attempts": 2, "mode": "standard"}):
            assert await outcome(retries, unsent) is OutcomeUnknownError
            assert await outcome(retries, throttled(1)) is OutcomeUnknownError
            assert await outcome(retries, throttled(0)) is StoreUnavailableError
        for error in (unsent, throttled(0)):
            assert await outcome({"total_max_attempts": 1}, error) is StoreUnavailableError

    run(check())


def test_a_delete_whose_answer_was_lost(place, run, recorder):
    async def check():
        async with place.opened() as store:
            await place.insert(store, "a")
            recorded = recorder(store)
            recorded.instead["transact_write_items"] = [lost]
            await store.delete(place.name, "a", expected_version=0)
            assert not [key for key in place.items() if not key.startswith("N#")]

    run(check())


def test_a_delete_of_a_saga_that_changes_meanwhile(place, run, recorder):
    async def check():
        async with place.opened() as store, place.store() as other:
            await place.insert(store, "a")
            recorded = recorder(store)
            loop = asyncio.get_running_loop()

            async def another_life():
                await other.delete(place.name, "a")
                await other.insert(place.name, "another", place.state("a"))

            def between(method, request):
                asyncio.run_coroutine_threadsafe(another_life(), loop).result(30)
                return method(**request)

            recorded.instead["transact_write_items"] = [between]
            await store.delete(place.name, "a")
            assert not [key for key in place.items() if not key.startswith("N#")]  # nothing half deleted

    run(check())


@pytest.mark.parametrize("failing", [0, 1])
def test_a_look_up_by_correlation_id_that_fails_half_way_is_made_again(place, run, recorder, failing):
    async def check():
        async with place.opened(attempts=2) as store:
            (state,) = await place.insert(store, "a")
            recorded = recorder(store)
            once = [None, None]
            once[failing] = raising(refused("ThrottlingException"))
            recorded.instead["get_item"] = list(once)
            assert await store.get_by_correlation_id(place.name, "order-a") == state
            assert recorded.names == ["get_item"] * (failing + 3)
            recorded.instead["get_item"] = [*once, *once]
            with pytest.raises(StoreUnavailableError):
                await store.get_by_correlation_id(place.name, "order-a")

    run(check())


def test_a_saga_that_gets_another_correlation_id_between_the_two_reads(place, run, recorder):
    async def check():
        async with place.opened() as store, place.store() as other:
            await place.insert(store, "a")
            loop = asyncio.get_running_loop()

            async def another_life():
                await other.delete(place.name, "a")
                await other.insert(place.name, "another", place.state("a"))

            def afterwards(method, request):
                asyncio.run_coroutine_threadsafe(another_life(), loop).result(30)
                return method(**request)

            recorder(store).instead["get_item"] = [None, afterwards]
            assert await store.get_by_correlation_id(place.name, "order-a") is None
            assert (await store.get_by_correlation_id(place.name, "another")).metadata.saga_id == "a"

    run(check())


def test_no_secret_and_no_driver_error_in_what_is_raised(place, run, recorder):
    async def check():
        secret = "v3ry-s3cret"
        async with place.opened(url=place.url.replace("://", f"://key:{secret}@", 1)) as store:
            recorded = recorder(store)
            recorded.instead["get_item"] = [raising(refused("AccessDeniedException"))]
            with pytest.raises(SagaStoreError) as caught:
                await store.get_by_id(place.name, "a")
            assert not caught.value.retryable
            assert secret not in f"{caught.value!r} {caught.value} {store!r}"

    run(check())

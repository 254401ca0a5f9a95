"""Every error of the tree, from a real server where one can be made to raise it."""

from __future__ import annotations

import asyncio

import pytest
from bson.errors import InvalidBSON
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConfigurationError,
    DocumentTooLarge,
    DuplicateKeyError,
    ExecutionTimeout,
    InvalidOperation,
    NetworkTimeout,
    NotPrimaryError,
    OperationFailure,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteConcernError,
    WTimeoutError,
)

from mongodb_helpers import SAGA, OrderState, client_of, collect_sockets, follow, new_collection, store_on
from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
    InvalidSagaError,
    OutcomeUnknownError,
    SagaFilter,
    SagaNotFoundError,
    SagaStoreError,
    SchemaError,
    StateDecodeError,
    StateEncodeError,
    StoreClosedError,
    StoreUnavailableError,
)
from saga_bus.store_mongodb import MongoSagaStore, create_schema
from saga_bus.store_mongodb._calls import Calls
from saga_bus.store_mongodb._errors import translated


def raised(kind, work):
    """The error of exactly this type that some work ends with."""
    with pytest.raises(kind) as caught:
        asyncio.run(work)
    assert type(caught.value) is kind
    return caught.value


async def use(url, **options):
    async with MongoSagaStore(url, **options) as store:
        await store.get_by_id(SAGA, "x")


def test_nobody_listens():
    url = "mongodb://bob:s3cret@127.0.0.1:1/shop?serverSelectionTimeoutMS=200"
    error = raised(StoreUnavailableError, use(url))
    collect_sockets()
    assert error.retryable
    assert isinstance(error.__cause__, ServerSelectionTimeoutError)
    assert "s3cret" not in f"{error!r} {error} {error.__cause__!r}"


def test_the_wrong_password_is_not_shown(guarded):
    error = raised(SagaStoreError, use(guarded.url_of("owner", "wr0ng-s3cret")))
    assert "the user or the password" in str(error)
    assert not error.retryable
    assert "wr0ng-s3cret" not in f"{error!r} {error} {error.__cause__!r}"


def test_the_right_password_is_taken_and_never_shown(guarded):
    async def run():
        async with store_on(guarded.url_of("owner", guarded.password)) as store:
            await store.insert(SAGA, "order-1", OrderState())
            assert guarded.password not in f"{store!r} {store}"
            with pytest.raises(DuplicateSagaError) as caught:
                await store.insert(SAGA, "order-1", OrderState())
            assert guarded.password not in f"{caught.value!r} {caught.value}"

    asyncio.run(run())


def test_no_password_at_all(guarded):
    assert "lacks a right" in str(raised(SagaStoreError, use(guarded.server.url)))


def test_a_user_without_rights(guarded):
    async def run():
        async with store_on(guarded.url_of("owner", guarded.password)) as store:
            state = OrderState()
            await store.insert(SAGA, "order-1", state)
            reader = guarded.url_of("reader", guarded.password)
            async with MongoSagaStore(reader, collection=store._names[1], state_types={SAGA: OrderState}) as other:
                assert await other.get_by_correlation_id(SAGA, "order-1") is not None
                for write in (
                    lambda: other.insert(SAGA, "order-2", OrderState()),
                    lambda: other.update(SAGA, follow(state), 0),
                    lambda: other.delete(SAGA, state.metadata.saga_id),
                    lambda: other.delete_completed_before(SAGA, state.metadata.created_at.replace(year=9000)),
                    other.create_schema,
                ):
                    if write is not other.create_schema:
                        outcomes = await asyncio.gather(write(), write(), return_exceptions=True)
                        if outcomes == [0, 0]:  # there was nothing to delete
                            continue
                    else:
                        outcomes = await asyncio.gather(write(), return_exceptions=True)
                    for outcome in outcomes:
                        assert type(outcome) is SagaStoreError
                        assert "lacks a right" in str(outcome)

    asyncio.run(run())


def test_the_schema_is_missing(url):
    error = raised(SchemaError, use(url, collection=new_collection()))
    assert "create_schema()" in str(error)


def test_an_index_is_missing_that_a_page_needs(url):
    async def run():
        async with store_on(url) as store, client_of(url) as client:
            await client.get_default_database()[store._names[1]].drop_index("saga_newest")
            await store.find(SagaFilter())

    assert "create_schema()" in str(raised(SchemaError, run()))


def test_conflicts_keep_what_was_found(url):
    async def run():
        async with store_on(url) as store:
            state = OrderState()
            await store.insert(SAGA, "order-1", state)
            for correlation_id, taken, conflict in (
                ("order-2", state, "saga_id"),
                ("order-1", state, "saga_id"),
                ("order-1", OrderState(), "correlation_id"),
            ):
                with pytest.raises(DuplicateSagaError) as duplicate:
                    await store.insert(SAGA, correlation_id, taken)
                assert duplicate.value.conflict == conflict
                assert isinstance(duplicate.value.__cause__, DuplicateKeyError)
            await store.update(SAGA, follow(state), 0)
            with pytest.raises(ConcurrencyError) as conflict:
                await store.update(SAGA, follow(state), 0)
            assert (conflict.value.expected_version, conflict.value.actual_version) == (0, 1)
            with pytest.raises(ConcurrencyError):
                await store.delete(SAGA, state.metadata.saga_id, 0)
            with pytest.raises(SagaNotFoundError):
                await store.update(SAGA, follow(OrderState()), 0)
            with pytest.raises(SagaNotFoundError):
                await store.delete(SAGA, "x", 0)

    asyncio.run(run())


def test_a_given_client_that_is_closed(url):
    async def run():
        collection = new_collection()
        async with client_of(url) as client:
            await create_schema(client, collection=collection)
            store = MongoSagaStore(client=client, collection=collection)
            await store.drop_schema()
        with pytest.raises(SagaStoreError, match="after close") as caught:
            await store.get_by_id(SAGA, "x")
        assert type(caught.value) is SagaStoreError
        await store.close()
        with pytest.raises(StoreClosedError):
            await store.get_by_id(SAGA, "x")

    asyncio.run(run())


def test_a_document_that_no_store_wrote(url):
    async def run():
        async with store_on(url) as store, client_of(url) as client:
            sagas = client.get_default_database()[store._names[1]]
            state = OrderState()
            await store.insert(SAGA, "order-1", state)
            for broken in (7, {"note": 1}, {"metadata": 1}):
                await sagas.update_one({}, {"$set": {"state": broken}})
                with pytest.raises(StateDecodeError):
                    await store.get_by_id(SAGA, state.metadata.saga_id)
                outcomes = await asyncio.gather(
                    *(store.get_by_correlation_id(SAGA, key) for key in ("order-1", "x")), return_exceptions=True
                )
                assert [type(outcome) for outcome in outcomes] == [StateDecodeError, type(None)]

    asyncio.run(run())


def failure(code, labels=(), kind=OperationFailure):
    return kind("said", code, {"errmsg": "said", "code": code, "errorLabels": list(labels)})


def labelled(error, *labels):
    for label in labels:
        error._add_error_label(label)
    return error


MEANINGS = [
    # (the driver's error, what it means for a read or in a transaction, what it means for a write)
    (AutoReconnect("connection closed"), StoreUnavailableError, OutcomeUnknownError),
    (NetworkTimeout("timed out"), StoreUnavailableError, OutcomeUnknownError),
    (NotPrimaryError("not primary", {"code": 10107}), StoreUnavailableError, OutcomeUnknownError),
    (WaitQueueTimeoutError("no connection"), StoreUnavailableError, OutcomeUnknownError),
    (ConnectionResetError("reset"), StoreUnavailableError, OutcomeUnknownError),
    (TimeoutError(), StoreUnavailableError, OutcomeUnknownError),
    (labelled(AutoReconnect("closed"), "NoWritesPerformed"), StoreUnavailableError, StoreUnavailableError),
    (labelled(AutoReconnect("closed"), "TransientTransactionError"), StoreUnavailableError, StoreUnavailableError),
    (ServerSelectionTimeoutError("nobody"), StoreUnavailableError, StoreUnavailableError),
    (failure(112), StoreUnavailableError, StoreUnavailableError),
    (failure(112, ["TransientTransactionError"]), StoreUnavailableError, StoreUnavailableError),
    (failure(251, ["TransientTransactionError"]), StoreUnavailableError, StoreUnavailableError),
    (failure(462, ["SystemOverloadedError", "RetryableError"]), StoreUnavailableError, StoreUnavailableError),
    (failure(91, ["RetryableWriteError"]), StoreUnavailableError, OutcomeUnknownError),
    (failure(11602), StoreUnavailableError, OutcomeUnknownError),
    (failure(50, kind=ExecutionTimeout), StoreUnavailableError, OutcomeUnknownError),
    (failure(262), StoreUnavailableError, OutcomeUnknownError),
    (failure(24), StoreUnavailableError, StoreUnavailableError),
    (failure(13), SagaStoreError, SagaStoreError),
    (failure(18), SagaStoreError, SagaStoreError),
    (failure(20), SagaStoreError, SagaStoreError),
    (failure(26), SchemaError, SchemaError),
    (failure(86), SchemaError, SchemaError),
    (failure(121), SagaStoreError, SagaStoreError),
    (failure(15), StateEncodeError, StateEncodeError),
    (failure(99999), SagaStoreError, SagaStoreError),
    (WriteConcernError("waiting", 64), OutcomeUnknownError, OutcomeUnknownError),
    (WTimeoutError("waiting", 64), OutcomeUnknownError, OutcomeUnknownError),
    (
        BulkWriteError({"writeErrors": [], "writeConcernErrors": [{"code": 64, "errmsg": "waiting"}]}),
        OutcomeUnknownError,
        OutcomeUnknownError,
    ),
    (DocumentTooLarge("large"), StateEncodeError, StateEncodeError),
    (InvalidOperation("Cannot use AsyncMongoClient after close"), SagaStoreError, SagaStoreError),
    (InvalidOperation("Cannot use ended session"), InvalidSagaError, InvalidSagaError),
    (ConfigurationError("no such host"), SagaStoreError, SagaStoreError),
    (InvalidBSON("broken"), StateDecodeError, StateDecodeError),
]


@pytest.mark.parametrize(("error", "reading", "writing"), MEANINGS, ids=lambda value: repr(value)[:60])
def test_the_table(error, reading, writing):
    assert type(translated(error, writing=False)) is reading
    assert type(translated(error, writing=True)) is writing


def test_ours_is_raised_from_the_drivers_and_others_pass():
    for cause, kind in (
        (AutoReconnect("connection closed"), OutcomeUnknownError),
        (ConnectionResetError("reset"), OutcomeUnknownError),
        (InvalidBSON("broken"), StateDecodeError),
    ):
        with pytest.raises(kind) as caught, Calls()(writing=True):
            raise cause
        assert caught.value.__cause__ is cause
    with pytest.raises(asyncio.CancelledError), Calls()(writing=True):
        raise asyncio.CancelledError
    with pytest.raises(ZeroDivisionError), Calls()(writing=True):
        raise ZeroDivisionError


def test_no_error_repeats_the_state():
    found = {"code": 121, "errmsg": "Document failed validation", "op": {"state": {"note": "pr1vate"}}}
    error = translated(BulkWriteError({"writeErrors": [found], "writeConcernErrors": []}), writing=True)
    assert "pr1vate" not in f"{error} {error!r}"

"""The table of errors, each shape as the service or botocore makes it; the real ones where a server here makes them."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import boto3
import botocore.exceptions as boto
import pytest
from botocore.stub import Stubber

from saga_bus.store import (
    InvalidSagaError,
    OutcomeUnknownError,
    SagaFilter,
    SagaStoreError,
    SchemaError,
    StateTooLargeError,
    StoreUnavailableError,
)
from saga_bus.store_dynamodb import DynamoDBSagaStore
from saga_bus.store_dynamodb._errors import Fate, fate_of, translated

URL = "http://127.0.0.1:8000"


def answered(code, message="m", status=400):
    """The error that botocore makes of the service's answer."""
    client = boto3.client(
        "dynamodb", region_name="eu-west-1", aws_access_key_id="a", aws_secret_access_key="b", endpoint_url=URL
    )
    with Stubber(client) as stub:
        stub.add_client_error("get_item", code, message, http_status_code=status)
        with pytest.raises(boto.ClientError) as caught:
            client.get_item(TableName="sagas", Key={"pk": {"S": "x"}})
    client.close()
    return caught.value


@pytest.mark.parametrize(
    ("error", "fate", "expected"),
    [
        (answered("ProvisionedThroughputExceededException"), Fate.BUSY, StoreUnavailableError),
        (answered("ThrottlingException"), Fate.BUSY, StoreUnavailableError),
        (answered("RequestLimitExceeded"), Fate.BUSY, StoreUnavailableError),
        (answered("TransactionConflictException"), Fate.BUSY, StoreUnavailableError),
        (answered("TransactionInProgressException"), Fate.BUSY, StoreUnavailableError),
        (answered("InternalServerError", status=500), Fate.LOST, StoreUnavailableError),
        (answered("SomethingNew", status=503), Fate.LOST, StoreUnavailableError),
        (answered("ConditionalCheckFailedException"), Fate.REFUSED, SagaStoreError),
        (answered("IdempotentParameterMismatchException"), Fate.HOPELESS, SagaStoreError),
        (answered("ResourceNotFoundException"), Fate.HOPELESS, SchemaError),
        (
            answered("ValidationException", "The table does not have the specified index: by_update"),
            Fate.HOPELESS,
            SchemaError,
        ),
        (
            answered("ValidationException", "The provided key element does not match the schema"),
            Fate.HOPELESS,
            SchemaError,
        ),
        (answered("ValidationException", "Item size has exceeded"), Fate.HOPELESS, SagaStoreError),
        (answered("AccessDeniedException", status=400), Fate.HOPELESS, SagaStoreError),
        (answered("UnrecognizedClientException"), Fate.HOPELESS, SagaStoreError),
        (answered("ExpiredTokenException"), Fate.HOPELESS, SagaStoreError),
        (answered("InvalidSignatureException"), Fate.HOPELESS, SagaStoreError),
        (boto.EndpointConnectionError(endpoint_url=URL), Fate.UNSENT, StoreUnavailableError),
        (boto.ConnectTimeoutError(endpoint_url=URL), Fate.UNSENT, StoreUnavailableError),
        (boto.ProxyConnectionError(proxy_url=URL), Fate.UNSENT, StoreUnavailableError),
        (boto.SSLError(endpoint_url=URL, error="EOF occurred"), Fate.UNSENT, StoreUnavailableError),
        (boto.SSLError(endpoint_url=URL, error="[SSL: CERTIFICATE_VERIFY_FAILED]"), Fate.HOPELESS, SagaStoreError),
        (boto.ConnectionClosedError(endpoint_url=URL), Fate.LOST, StoreUnavailableError),
        (boto.ReadTimeoutError(endpoint_url=URL), Fate.LOST, StoreUnavailableError),
        (boto.HTTPClientError(error="x"), Fate.LOST, StoreUnavailableError),
        (boto.NoCredentialsError(), Fate.HOPELESS, SagaStoreError),
        (boto.NoRegionError(), Fate.HOPELESS, InvalidSagaError),
    ],
    ids=lambda value: str(value)[:60],
)
def test_the_table(error, fate, expected):
    assert fate_of(error) is fate
    made = translated(error, "sagas")
    assert type(made) is expected
    assert "sagas" in str(made)
    assert type(translated(error, "sagas", uncertain=True)) is OutcomeUnknownError


def test_a_missing_table_says_what_to_run(place, run):
    async def check():
        async with place.store() as store:
            for call in (
                store.get_by_id(place.name, "a"),
                store.find(SagaFilter()),
                store.count(SagaFilter(saga_name=place.name)),
                store.insert(place.name, "order-1", place.state("a")),
                asyncio.gather(*(store.get_by_id(place.name, key) for key in "abc")),
                store.ping(),
            ):
                with pytest.raises(SchemaError, match="create_schema"):
                    await call

    run(check())


@pytest.mark.parametrize(
    "keys",
    [
        [("id", "S", "HASH")],
        [("pk", "S", "HASH"), ("sk", "S", "RANGE")],
        [("pk", "N", "HASH")],
        [("pk", "S", "HASH")],  # the right key, and no index
    ],
    ids=str,
)
def test_somebody_elses_table_is_a_schema_error(place, run, keys):
    with place.client() as client:
        client.create_table(
            TableName=place.table,
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": name, "KeyType": kind} for name, _, kind in keys],
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": of} for name, of, _ in keys],
        )

    async def check():
        async with place.store() as store:
            with pytest.raises(SchemaError):
                await store.check_schema()
            with pytest.raises(SchemaError):
                await store.find(SagaFilter(saga_name=place.name))
            if keys != [("pk", "S", "HASH")]:
                with pytest.raises(SchemaError):
                    await store.create_schema()
                for call in (
                    store.get_by_id(place.name, "a"),
                    store.insert(place.name, "order-1", place.state("a")),
                    store.update(place.name, place.state("a", version=1), 0),
                ):
                    with pytest.raises(SchemaError):
                        await call

    run(check())


class NoDynamoDB(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b"<html>It works!</html>"
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("status", [200, 404, 502])
def test_an_endpoint_that_is_no_dynamodb(run, status, place):
    with HTTPServer(("127.0.0.1", 0), NoDynamoDB) as server:
        server.status = status
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:

            async def check():
                url = f"dynamodb://eu-west-1/sagas?endpoint=http://127.0.0.1:{server.server_port}&attempts=1"
                async with DynamoDBSagaStore(url) as store:
                    with pytest.raises(SagaStoreError) as caught:
                        await store.get_by_id(place.name, "a")
                    assert caught.value.retryable is (status == 502)
                    with pytest.raises(SagaStoreError) as caught:
                        await store.update(place.name, place.state("a", version=1), 0)
                    assert isinstance(caught.value, OutcomeUnknownError) is (status == 502)

            run(check())
        finally:
            server.shutdown()
            thread.join()


def test_no_credentials_and_no_region(run, monkeypatch, tmp_path, place):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))

    async def check():
        async with DynamoDBSagaStore("dynamodb://eu-west-1/sagas?endpoint=http://dynamodb.invalid:1") as store:
            with pytest.raises(SagaStoreError, match="credentials") as caught:
                await store.get_by_id(place.name, "a")
            assert not caught.value.retryable
        store = DynamoDBSagaStore("dynamodb:///sagas")
        for _ in range(2):
            with pytest.raises(InvalidSagaError, match="region"):
                await store.get_by_id(place.name, "a")
        await store.close()

    run(check())


def test_the_largest_state_fits_with_the_longest_keys(place, run, recorder):
    crab = "\N{CRAB}"

    async def check():
        async with place.opened() as store:
            state = place.state(crab * 128)
            from_moment = state.metadata.created_at
            metadata = state.metadata.next(timeout_expires_at=from_moment, outbox=({"id": "m"},))
            limit = store.capabilities.max_state_bytes
            spare = limit - len(store._codec.encode(place.State(metadata=metadata, note="")))
            await store.insert(crab * 128, crab * 256, state)
            full = place.State(metadata=metadata, note="x" * spare)
            await store.update(crab * 128, full, 0)
            found = await store.get_by_correlation_id(crab * 128, crab * 256)
            assert found.data == {"note": full.note}
            assert len((await store.find(SagaFilter(outbox_pending=True))).items) == 1
            await store.delete(crab * 128, state.metadata.saga_id)
            await store.insert(crab * 128, crab * 256, full)
            recorded = recorder(store)
            for call in (
                store.insert("other", "order-1", place.State(metadata=metadata, note=full.note + "x")),
                store.update(crab * 128, place.State(metadata=metadata, note=full.note + "x"), 0),
            ):
                with pytest.raises(StateTooLargeError) as caught:
                    await call
                assert (caught.value.size, caught.value.limit) == (limit + 1, limit)
            assert recorded.names == []

    run(check())

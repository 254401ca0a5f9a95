"""URLs and arguments."""

import pickle
from datetime import timedelta

import boto3
import pytest

from saga_bus.store import InvalidSagaError, open_store
from saga_bus.store_dynamodb import DynamoDBSagaStore
from saga_bus.store_dynamodb._location import is_loopback, parse_location


def test_a_url_is_read():
    location = parse_location(
        "dynamodb://AKIA:s%2Fcret@eu-west-1/saga.instances-1?endpoint=http://127.0.0.1:8000&threads=4"
        "&attempts=2&connect_timeout=1&read_timeout=2.5&completed_ttl=3600"
    )
    assert (location.region, location.access_key, location.secret_key) == ("eu-west-1", "AKIA", "s/cret")
    assert location.options == {
        "table": "saga.instances-1",
        "endpoint": "http://127.0.0.1:8000",
        "threads": 4,
        "attempts": 2,
        "connect_timeout": 1.0,
        "read_timeout": 2.5,
        "completed_ttl": timedelta(hours=1),
    }
    assert "s/cret" not in repr(location)
    assert parse_location("dynamodb:///sagas").region is None
    assert parse_location("dynamodb://us-gov-west-1").options == {}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "dynamo://r/t",
        "dynamodb:/r/t",
        "dynamodb://r/sagas?thread=4",
        "dynamodb://r/sagas?threads=four",
        "dynamodb://r/sagas?threads=4&threads=5",
        "dynamodb://r/sagas?table=x",
        "dynamodb://r/sagas#x",
        "dynamodb://r:80/sagas",
        "dynamodb://key@r/sagas",
        "dynamodb://[r/sagas",
        "dynamodb://r/ab",
        "dynamodb://r/sagas/more",
        "dynamodb://r/s%C3%A4gas",
        "dynamodb://r/sagas?endpoint=127.0.0.1:8000",
        "dynamodb://r/sagas?endpoint=http://user:password@h:1",
        "dynamodb://r/sagas?completed_ttl=0",
        "dynamodb://r/sagas?completed_ttl=nan",
        "dynamodb://r/sagas?read_timeout=nan",
        "dynamodb://r/sagas?threads=0",
        "dynamodb://r/sagas?attempts=101",
        5,
    ],
)
def test_a_bad_url_is_refused(url):
    with pytest.raises(InvalidSagaError):
        DynamoDBSagaStore(url)


def test_no_error_and_no_repr_shows_a_secret():
    for url in ("dynamodb://key:s3cret@r:80/t", "dynamodb://key:s3cret@r/ab", "dynamodb://key:s3cret@[r/t"):
        with pytest.raises(InvalidSagaError) as caught:
            DynamoDBSagaStore(url)
        assert "s3cret" not in f"{caught.value!r} {caught.value} {caught.value.__cause__!r}"
    store = DynamoDBSagaStore("dynamodb://key:s3cret@eu-west-1/sagas?endpoint=http://h:1")
    assert repr(store) == "DynamoDBSagaStore('dynamodb://eu-west-1 at http://h:1', table='sagas')"


def test_exactly_one_of_url_client_and_session():
    session = boto3.Session(aws_access_key_id="a", aws_secret_access_key="b", region_name="eu-west-1")
    client = session.client("dynamodb", endpoint_url="http://127.0.0.1:1")
    other = session.client("sts", endpoint_url="http://127.0.0.1:1")
    for arguments in (
        {},
        {"database": "dynamodb://r/sagas", "client": client},
        {"client": client, "session": session},
        {"client": client, "endpoint": "http://h:1"},
        {"client": other},
        {"client": session},
    ):
        with pytest.raises(InvalidSagaError):
            DynamoDBSagaStore(**arguments)
    assert "session" in repr(DynamoDBSagaStore(session=session, endpoint="http://h:1"))
    assert "client" in repr(DynamoDBSagaStore(client=client))
    client.close()
    other.close()


def test_the_registry_opens_it():
    store = open_store("dynamodb://eu-west-1/sagas?endpoint=http://127.0.0.1:8000", threads=2)
    assert isinstance(store, DynamoDBSagaStore)


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost:1", True),
        ("http://[::1]:1", True),
        ("https://dynamodb.eu-west-1.amazonaws.com", False),
        ("http://10.0.0.1:1", False),
    ],
)
def test_loopback(endpoint, expected):
    assert is_loopback(endpoint) is expected


def test_errors_survive_pickling():
    with pytest.raises(InvalidSagaError) as caught:
        DynamoDBSagaStore("dynamodb://r/ab")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

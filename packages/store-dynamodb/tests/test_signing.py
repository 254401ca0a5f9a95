"""Signatures: those that botocore makes."""

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials

from saga_bus.store_dynamodb._signing import FrugalSigV4Auth

BODY = b'{"TableName": "saga_instances"}'
SOMEBODY = ReadOnlyCredentials("AKID", "s3cret", None)
WITH_TOKEN = ReadOnlyCredentials("AKID", "s3cret", "a/session+token==")
SOMEBODY_ELSE = ReadOnlyCredentials("AKID", "an0ther", None)


def signed(kind, credentials, region="eu-west-1", **request):
    headers = {"X-Amz-Target": "DynamoDB_20120810.GetItem", "Content-Type": "application/x-amz-json-1.0"}
    usual = {"url": "http://127.0.0.1:8000/", "data": BODY, "headers": headers}
    made = AWSRequest(method="POST", **{**usual, **request})
    made.context["payload_signing_enabled"] = True
    kind(credentials, "dynamodb", region).add_auth(made)
    return dict(made.headers)


@pytest.mark.parametrize(
    ("credentials", "request_"),
    [
        (SOMEBODY, {}),
        (WITH_TOKEN, {}),
        (SOMEBODY_ELSE, {}),
        (SOMEBODY, {"region": "us-east-1"}),
        (SOMEBODY, {"url": "https://dynamodb.eu-west-1.amazonaws.com/"}),
        (SOMEBODY, {"data": b""}),
        (SOMEBODY, {"headers": {"X-Amz-Target": "DynamoDB_20120810.Query", "X-Odd": " two  blanks "}}),
    ],
)
def test_a_request_is_signed_as_botocore_signs_it(credentials, request_):
    while True:
        ours = signed(FrugalSigV4Auth, credentials, **request_)
        theirs = signed(SigV4Auth, credentials, **request_)
        if ours["X-Amz-Date"] == theirs["X-Amz-Date"]:  # else a second has passed between them
            break
    assert ours == theirs
    assert ours["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKID/")


@pytest.mark.parametrize("credentials", [SOMEBODY, SOMEBODY_ELSE])
@pytest.mark.parametrize("region", ["eu-west-1", "us-east-1"])
@pytest.mark.parametrize("moment", ["20250131T235959Z", "20250201T000000Z"])
def test_a_key_is_kept_for_its_day_its_region_and_its_secret(credentials, region, moment):
    request = AWSRequest(method="POST", url="http://127.0.0.1:8000/", data=BODY)
    request.context["timestamp"] = moment
    ours, theirs = (
        kind(credentials, "dynamodb", region).signature("text", request) for kind in (FrugalSigV4Auth, SigV4Auth)
    )
    assert ours == theirs


def test_the_headers_are_collected_once(monkeypatch):
    calls, headers_to_sign = [], SigV4Auth.headers_to_sign
    monkeypatch.setattr(SigV4Auth, "headers_to_sign", lambda *given: calls.append(1) or headers_to_sign(*given))
    signed(SigV4Auth, SOMEBODY)
    theirs = len(calls)
    calls.clear()
    signed(FrugalSigV4Auth, SOMEBODY)
    assert len(calls) == 1 < theirs


def test_the_stores_own_client_signs_this_way_and_a_given_one_does_not(place, run, monkeypatch):
    calls = []
    signature = FrugalSigV4Auth.signature
    monkeypatch.setattr(
        FrugalSigV4Auth, "signature", lambda *given: calls.append(given[0].credentials) or signature(*given)
    )

    async def check():
        async with place.opened() as store:
            await place.insert(store, "a")
            calls.clear()
            assert await store.get_by_correlation_id(place.name, "order-a") is not None
            assert len(calls) == 2
        given = boto3.client(
            "dynamodb",
            region_name="eu-west-1",
            endpoint_url=place.endpoint,
            aws_access_key_id="local",
            aws_secret_access_key="local",
            config=Config(retries={"total_max_attempts": 1}),
        )
        calls.clear()
        async with place.opened(client=given) as store:
            assert await store.get_by_id(place.name, "a") is not None
        given.close()
        assert calls == []

    run(check())

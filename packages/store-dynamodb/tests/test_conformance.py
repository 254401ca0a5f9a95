"""The kit: whole as most people use the store; what differs with a given client, a session and a time to live."""

from __future__ import annotations

from datetime import timedelta

import boto3
import pytest
from botocore.config import Config

from providers.dynamodb import endpoint_of, url_of
from saga_bus.store.conformance import SagaStoreConformance, run_conformance
from saga_bus.store_dynamodb import DynamoDBSagaStore

SECRET = "s3cret-kit-key"


class TestByUrl(SagaStoreConformance):
    """With the keys in the URL, which must be shown nowhere."""

    secrets = (SECRET,)

    @pytest.fixture(autouse=True)
    def with_url(self, url):
        self.endpoint = endpoint_of(url)

    def open_store(self, namespace):
        return DynamoDBSagaStore(url_of(self.endpoint, namespace).replace("://", f"://kit:{SECRET}@", 1))


class StoreWithClient(DynamoDBSagaStore):
    """Closes its given client, which the store itself must leave open."""

    def __init__(self, endpoint, **options) -> None:
        self.given = boto3.client(
            "dynamodb",
            region_name="eu-west-1",
            endpoint_url=endpoint,
            aws_access_key_id="kit",
            aws_secret_access_key=SECRET,
            config=Config(max_pool_connections=16),
        )
        super().__init__(client=self.given, **options)

    async def close(self):
        await super().close()
        if self.given is not None:
            given, self.given = self.given, None
            given.list_tables(Limit=1)
            given.close()


def judge(open_store, *groups):
    async def run():
        return await run_conformance(open_store, only=groups)

    return run()


def test_with_a_given_client_and_its_own_retries(url, run):
    endpoint = endpoint_of(url)
    groups = ("insert", "update", "lifecycle")
    report = run(judge(lambda namespace: StoreWithClient(endpoint, table=namespace), *groups))
    assert report.ok, report.verdict()


def test_with_a_given_session_and_a_time_to_live(url, run):
    session = boto3.Session(aws_access_key_id="kit", aws_secret_access_key=SECRET, region_name="eu-west-1")

    def open_store(namespace):
        return DynamoDBSagaStore(
            session=session, endpoint=endpoint_of(url), table=namespace, completed_ttl=timedelta(seconds=2)
        )

    groups = ("completed_ttl", "update", "retention")
    report = run(judge(open_store, *groups))
    assert report.ok, report.verdict()
    assert "completed_ttl" in report.declared

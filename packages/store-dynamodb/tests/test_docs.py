"""The documentation: its examples run, and its table, its rights and its costs are those of the code."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from saga_bus.store import SagaFilter, SagaMetadata
from saga_bus.store_dynamodb import table_definition

PACKAGE = Path(__file__).parent.parent
PAGE = PACKAGE.parent.parent / "docs" / "stores" / "dynamodb.md"
WRITTEN_URL = "dynamodb://eu-west-1/saga_instances"
DAY = timedelta(days=1)

# What the methods of the client need, by AWS's service authorization reference; a transaction needs what its parts do.
RIGHTS = {
    "batch_execute_statement": {"PartiQLUpdate"},
    "batch_get_item": {"BatchGetItem"},
    "create_table": {"CreateTable"},
    "delete_table": {"DeleteTable"},
    "describe_continuous_backups": {"DescribeContinuousBackups"},
    "describe_table": {"DescribeTable"},
    "describe_time_to_live": {"DescribeTimeToLive"},
    "get_item": {"GetItem"},
    "put_item": {"PutItem"},
    "query": {"Query"},
    "update_item": {"UpdateItem"},
    "update_table": {"UpdateTable"},
    "update_time_to_live": {"UpdateTimeToLive"},
}


@pytest.fixture
def page():
    if not PAGE.is_file():
        pytest.skip("the documentation is not here: this is the package alone")
    return PAGE.read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_the_examples_run(page, place, tmp_path):
    program = tmp_path / "program.py"
    text = "\n".join(blocks(page, "py")).replace(WRITTEN_URL, place.url)
    text += (
        f"\nclient = boto3.client('dynamodb', region_name='eu-west-1', endpoint_url={place.endpoint!r}, "
        "aws_access_key_id='local', aws_secret_access_key='local', config=Config(retries={'total_max_attempts': 1}))\n"
        "make_client\nasyncio.run(with_a_client(client))\nclient.close()\n"
    )
    program.write_text(text.replace('table="saga_instances"', f'table="{place.table}"'), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_cloudformation_makes_the_same_table(page):
    template, _, _ = blocks(page, "json")
    ((name, table),) = json.loads(template)["Resources"].items()
    assert (name, table["Type"]) == ("SagaInstances", "AWS::DynamoDB::Table")
    properties = table["Properties"]
    assert properties.pop("TimeToLiveSpecification") == {"AttributeName": "expires", "Enabled": True}
    assert properties.pop("DeletionProtectionEnabled") is True
    assert properties.pop("PointInTimeRecoverySpecification") == {"PointInTimeRecoveryEnabled": True}
    assert properties == table_definition()


def test_terraform_makes_the_same_table(page):
    _, written, _ = blocks(page, "json")
    table = json.loads(written)["resource"]["aws_dynamodb_table"]["saga_instances"]
    made = {
        "TableName": table["name"],
        "BillingMode": table["billing_mode"],
        "AttributeDefinitions": [
            {"AttributeName": one["name"], "AttributeType": one["type"]} for one in table["attribute"]
        ],
        "KeySchema": [{"AttributeName": table["hash_key"], "KeyType": "HASH"}],
        "GlobalSecondaryIndexes": [
            {
                "IndexName": index["name"],
                "KeySchema": [
                    {"AttributeName": index["hash_key"], "KeyType": "HASH"},
                    {"AttributeName": index["range_key"], "KeyType": "RANGE"},
                ],
                "Projection": {
                    "ProjectionType": index["projection_type"],
                    **({"NonKeyAttributes": index["non_key_attributes"]} if "non_key_attributes" in index else {}),
                },
            }
            for index in table["global_secondary_index"]
        ],
    }
    assert made == table_definition()
    assert table["ttl"] == {"attribute_name": "expires", "enabled": True}


def test_the_rights_are_those_that_the_store_uses_and_no_more(page, place, run, recorder):
    _, _, policy = blocks(page, "json")
    workers, deployment = (
        {action.removeprefix("dynamodb:") for action in statement["Action"]}
        for statement in json.loads(policy)["Statement"]
    )
    used = {"workers": set(), "deployment": {"UpdateTable"}}  # which only an older table needs; see test_schema.py

    async def check():
        async with place.store(completed_ttl=DAY) as store:
            recorded = recorder(store)
            await store.create_schema()
            used["deployment"] |= needed(recorded)
            recorded.clear()
            await store.check_schema()
            states = await place.insert(store, *(f"id-{number}" for number in range(5)))
            states = [place.follow(state) for state in states]
            await store.update(place.name, states[0], 0)
            await asyncio.gather(*(store.update(place.name, state, 0) for state in states[1:]))
            await asyncio.gather(*(store.get_by_id(place.name, state.metadata.saga_id) for state in states))
            done = place.follow(states[0], is_completed=True)
            await store.update(place.name, done, 1)
            await store.update(place.name, place.follow(done, is_completed=False), 2)
            await store.find(SagaFilter())
            await store.count(SagaFilter())
            await store.delete(place.name, "id-1")
            await store.delete_completed_before(place.name, datetime.now(UTC) + DAY)
            await store.ping()
            used["workers"] |= needed(recorded)
            recorded.clear()
            await store.drop_schema()
            used["deployment"] |= needed(recorded)

    run(check())
    assert used == {"workers": workers, "deployment": deployment}


def needed(recorded):
    rights = set()
    for name, request in recorded.requests:
        if name == "transact_write_items":
            rights |= {f"{next(iter(action))}Item" for action in request["TransactItems"]}
        else:
            rights |= RIGHTS[name]
    return rights


class Meter:
    """What requests cost, as the service counts it."""

    def __init__(self, recorded) -> None:
        self._make = recorded.make
        recorded.make = self.make
        self.table = self.indexes = 0.0

    def make(self, name, method, request):
        answer = self._make(name, method, {**request, "ReturnConsumedCapacity": "INDEXES"})
        consumed = answer.get("ConsumedCapacity", [])
        for one in consumed if isinstance(consumed, list) else [consumed]:
            self.table += one.get("Table", {}).get("CapacityUnits", 0)
            self.indexes += sum(index["CapacityUnits"] for index in one.get("GlobalSecondaryIndexes", {}).values())
        return answer

    async def cost(self, call):
        self.table = self.indexes = 0.0
        await call
        return self.table, self.indexes


def test_what_requests_cost(page, place, run, recorder):
    rows = {}
    for operation, table, indexes in re.findall(r"^\| ([^|]+) \| ([^|]*) \| ?([^|]*) ?\|$", page, re.MULTILINE):
        numbers = [re.fullmatch(r"(\d+) [RW]", cell.strip()) for cell in (table, indexes)]
        if numbers[0]:
            rows[operation] = tuple(float(number[1]) if number else 0.0 for number in numbers)

    def sized(store, metadata):
        empty = place.State(metadata=metadata)
        return place.State(metadata=metadata, note="x" * (1000 - len(store._codec.encode(empty))))

    async def check():
        async with place.opened() as store:
            metadata = SagaMetadata.fresh()
            await store.insert(place.name, "order-4711-0815", sized(store, metadata))
            meter = Meter(recorder(store))
            assert await meter.cost(store.get_by_id(place.name, metadata.saga_id)) == rows["`get_by_id`"]
            by_correlation = store.get_by_correlation_id(place.name, "order-4711-0815")
            assert await meter.cost(by_correlation) == rows["`get_by_correlation_id`"]
            changes_it = "`update` that changes a timeout, or keeps an outbox pending"
            waits = "`update` that sets or clears a timeout, or fills or empties the outbox"
            ends = "`update` that completes or reopens"
            for changes, row in (
                ({}, "`update`"),
                ({"timeout": DAY}, waits),
                ({"timeout": 2 * DAY}, changes_it),
                ({"timeout": None}, waits),
                ({"outbox": ({"id": "m"},)}, waits),
                ({}, changes_it),
                ({"outbox": ()}, waits),
                ({"is_completed": True}, ends),
                ({"is_completed": False}, ends),
            ):
                metadata = metadata.next(**changes)
                update = store.update(place.name, sized(store, metadata), metadata.version - 1)
                assert await meter.cost(update) == rows[row], changes

    run(check())

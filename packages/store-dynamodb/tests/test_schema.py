"""The table: made, compared, completed and dropped."""

import asyncio

import pytest

from saga_bus.store import SagaFilter, SchemaError
from saga_bus.store_dynamodb import check_schema, create_schema, drop_schema, table_definition


def described(place):
    with place.client() as client:
        return client.describe_table(TableName=place.table)["Table"]


def in_order(definition):
    """What of a table's description is its definition, with lists in one order."""
    return {
        "AttributeDefinitions": sorted(definition["AttributeDefinitions"], key=str),
        "KeySchema": definition["KeySchema"],
        "GlobalSecondaryIndexes": sorted(
            (
                {
                    "IndexName": index["IndexName"],
                    "KeySchema": index["KeySchema"],
                    "ProjectionType": index["Projection"]["ProjectionType"],
                    "NonKeyAttributes": sorted(index["Projection"].get("NonKeyAttributes", [])),
                }
                for index in definition["GlobalSecondaryIndexes"]
            ),
            key=str,
        ),
    }


def test_what_is_made_is_the_definition(place, run):
    run(create_schema(place.url))
    made = described(place)
    assert in_order(made) == in_order(table_definition(place.table))
    assert made["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    with place.client() as client:
        ttl = client.describe_time_to_live(TableName=place.table)["TimeToLiveDescription"]
    assert ttl == {"TimeToLiveStatus": "ENABLED", "AttributeName": "expires"}
    run(check_schema(place.url))
    run(drop_schema(place.url))
    run(drop_schema(place.url))
    with pytest.raises(SchemaError, match="run create_schema"):
        run(check_schema(place.url))


def test_a_client_serves_as_well_as_a_url(place, run):
    with place.client() as client:
        run(create_schema(client, table=place.table))
        run(check_schema(client, table=place.table))
        run(drop_schema(client, table=place.table))
        assert place.table not in client.list_tables()["TableNames"]


@pytest.mark.parametrize("missing", ["by_creation", "by_update", "by_timeout", "by_outbox"])
def test_an_index_that_is_missing_is_made(place, run, missing):
    definition = table_definition(place.table)
    definition["GlobalSecondaryIndexes"] = [
        index for index in definition["GlobalSecondaryIndexes"] if index["IndexName"] != missing
    ]
    used = {key["AttributeName"] for index in definition["GlobalSecondaryIndexes"] for key in index["KeySchema"]}
    definition["AttributeDefinitions"] = [
        one for one in definition["AttributeDefinitions"] if one["AttributeName"] in used | {"pk"}
    ]
    with place.client() as client:
        client.create_table(**definition)

    async def check():
        async with place.store() as store:
            await place.insert(store, "a")
            with pytest.raises(SchemaError, match=f"lacks {missing}: run create_schema"):
                await store.check_schema()
            await store.create_schema()
            await store.check_schema()
            assert await store.count(SagaFilter()) == await store.count(SagaFilter(order="stalest")) == 1

    run(check())
    assert in_order(described(place)) == in_order(table_definition(place.table))


@pytest.mark.parametrize(
    "change",
    [
        {"Projection": {"ProjectionType": "KEYS_ONLY"}},
        {"Projection": {"ProjectionType": "INCLUDE", "NonKeyAttributes": ["archived", "completed"]}},
        {
            "KeySchema": [
                {"AttributeName": "slot", "KeyType": "HASH"},
                {"AttributeName": "created", "KeyType": "RANGE"},
            ]
        },
    ],
    ids=str,
)
def test_another_index_of_the_same_name_is_refused(place, run, change):
    definition = table_definition(place.table)
    assert definition["GlobalSecondaryIndexes"][1]["IndexName"] == "by_update"
    definition["GlobalSecondaryIndexes"][1] |= change
    used = {key["AttributeName"] for index in definition["GlobalSecondaryIndexes"] for key in index["KeySchema"]}
    definition["AttributeDefinitions"] = [
        one for one in definition["AttributeDefinitions"] if one["AttributeName"] in used | {"pk"}
    ]
    with place.client() as client:
        client.create_table(**definition)
    for work in (create_schema, check_schema):
        with pytest.raises(SchemaError, match="by_update"):
            run(work(place.url))


def test_more_than_is_needed_is_no_harm(place, run):
    definition = table_definition(place.table)
    definition["GlobalSecondaryIndexes"][0]["Projection"] = {"ProjectionType": "ALL"}
    definition["AttributeDefinitions"].append({"AttributeName": "customer", "AttributeType": "S"})
    definition["GlobalSecondaryIndexes"].append(
        {
            "IndexName": "of_mine",
            "KeySchema": [{"AttributeName": "customer", "KeyType": "HASH"}],
            "Projection": {"ProjectionType": "ALL"},
        }
    )
    with place.client() as client:
        client.create_table(**definition)
    run(create_schema(place.url))
    run(check_schema(place.url))


def test_the_time_to_live_is_needed_where_it_is_used(place, run):
    with place.client() as client:
        client.create_table(**table_definition(place.table))
    run(check_schema(place.url))
    with pytest.raises(SchemaError, match="no time to live"):
        run(check_schema(f"{place.url}&completed_ttl=60"))
    with place.client() as client:
        client.update_time_to_live(
            TableName=place.table, TimeToLiveSpecification={"Enabled": True, "AttributeName": "other"}
        )
    with pytest.raises(SchemaError, match="'other'"):
        run(create_schema(place.url))


def test_many_at_once(place, run):
    async def check():
        await asyncio.gather(*(create_schema(place.url) for _ in range(5)))
        await check_schema(place.url)
        await asyncio.gather(*(drop_schema(place.url) for _ in range(5)))

    run(check())


def test_names_are_announced_again_after_a_drop(place, run):
    async def check():
        async with place.opened() as store:
            await place.insert(store, "a")
            await store.drop_schema()
            await store.create_schema()
            await place.insert(store, "b")
            assert await store.count(SagaFilter()) == 1

    run(check())


def test_ping_warns_of_what_is_at_risk(place, run, recorder):
    answered = {"ResponseMetadata": {"RequestId": "1"}}
    backups = {"PointInTimeRecoveryDescription": {"PointInTimeRecoveryStatus": "DISABLED"}}

    async def check():
        async with place.opened() as store:
            assert (await store.ping()).warnings == (
                "deletion protection is off: one request deletes the table with all sagas",
            )
            with place.client() as client:
                client.update_table(TableName=place.table, DeletionProtectionEnabled=True)
            assert (await store.ping()).warnings == ()
            recorded = recorder(store)
            # DynamoDB Local has no recovery and builds indexes at once, so these shapes are the service's.
            recorded.instead["describe_continuous_backups"] = [
                lambda method, request: {"ContinuousBackupsDescription": backups, **answered}
            ]
            table = described(place)
            table["GlobalSecondaryIndexes"][0]["IndexStatus"] = "CREATING"
            del table["BillingModeSummary"]
            recorded.instead["describe_table"] = [lambda method, request: {"Table": table, **answered}]
            warnings = (await store.ping()).warnings
            assert [text.split(":")[0].split(" is ")[-1] for text in warnings] == ["CREATING", "provisioned", "off"]
            assert recorded.names.count("get_item") == 1

    run(check())


def test_ping_warns_of_a_missing_time_to_live(place, run):
    with place.client() as client:
        client.create_table(**table_definition(place.table))

    async def check():
        async with place.store(url=f"{place.url}&completed_ttl=60") as store:
            assert any("no time to live" in text for text in (await store.ping()).warnings)
        async with place.store() as store:
            assert not any("no time to live" in text for text in (await store.ping()).warnings)

    run(check())

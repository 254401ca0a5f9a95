"""The table: its definition, how it is made, compared and dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from saga_bus.store import SagaStoreError, SchemaError, StoreUnavailableError
from saga_bus.store_dynamodb._driver import Driver
from saga_bus.store_dynamodb._errors import code_of

__all__ = ["TTL_ATTRIBUTE", "check", "create", "drop", "table_definition"]

TTL_ATTRIBUTE = "expires"

# Sparse, all of them: correlation items have no slot, and the last two hold only what waits for something. An
# update of a running saga rewrites its entry in by_update, and nothing else.
_INDEXES: dict[str, tuple[str, tuple[str, ...]]] = {
    "by_creation": ("created", ("archived", "completed", "expires")),
    "by_update": ("updated", ("archived", "completed", "correlation_id", "created", "expires", "unsent")),
    "by_timeout": ("due", ()),
    "by_outbox": ("unsent", ()),
}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0  # seconds
_RACED = ("ResourceInUseException", "ResourceNotFoundException", "LimitExceededException")
_PATIENCE = 600.0  # seconds for a table or an index to become active


def table_definition(table: str = "saga_instances") -> dict[str, Any]:
    """What ``create_schema`` gives to CreateTable.

    Args:
        table: The table's name.

    Returns:
        The arguments of boto3's ``client.create_table``. The attribute for the time to live, ``expires``, is not
        among them: it is set with ``client.update_time_to_live``.
    """
    attributes = ["pk", "slot", *(sort for sort, _ in _INDEXES.values())]
    return {
        "TableName": table,
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in attributes],
        "KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}],
        "GlobalSecondaryIndexes": [
            {
                "IndexName": index,
                "KeySchema": [
                    {"AttributeName": "slot", "KeyType": "HASH"},
                    {"AttributeName": sort, "KeyType": "RANGE"},
                ],
                "Projection": {"ProjectionType": "INCLUDE", "NonKeyAttributes": list(others)}
                if others
                else {"ProjectionType": "KEYS_ONLY"},
            }
            for index, (sort, others) in _INDEXES.items()
        ],
    }


async def create(driver: Driver, table: str) -> None:
    """Create the table, or what it lacks, and wait until it can be used; safe from many processes at once.

    Raises:
        SchemaError: There is another table of this name.
    """

    async def step() -> bool:
        found = await _described(driver, table)
        if found is None:
            await _unless_raced(driver.read("create_table", **table_definition(table)))
            return False
        if not _is_active(found):
            return False
        missing = _missing_indexes(found, table)
        if not missing:
            return True
        definition = table_definition(table)
        await _unless_raced(
            driver.read(
                "update_table",
                TableName=table,
                AttributeDefinitions=definition["AttributeDefinitions"],
                GlobalSecondaryIndexUpdates=[{"Create": missing[0]}],
            )
        )
        return False

    await _until(step, f"the table {table!r} did not become active")
    if not await _has_ttl(driver, table):
        specification = {"Enabled": True, "AttributeName": TTL_ATTRIBUTE}
        try:
            await driver.read("update_time_to_live", TableName=table, TimeToLiveSpecification=specification)
        except SagaStoreError:
            if not await _has_ttl(driver, table):  # else another process was faster
                raise


async def check(driver: Driver, table: str, *, needs_ttl: bool) -> None:
    """Compare the table with its definition.

    Args:
        driver: Makes the requests.
        table: The table's name.
        needs_ttl: Whether the store lets completed sagas expire.

    Raises:
        SchemaError: It is missing, not active, another one, or lacks an index.
    """
    found = await _described(driver, table)
    if found is None:
        raise SchemaError(f"the table {table!r} is missing: run create_schema()")
    missing = _missing_indexes(found, table)
    if missing:
        names = ", ".join(index["IndexName"] for index in missing)
        raise SchemaError(f"the table {table!r} is older than this package, it lacks {names}: run create_schema()")
    if not _is_active(found):
        raise SchemaError(f"the table {table!r} or one of its indexes is not active: run create_schema(), which waits")
    if needs_ttl and not await _has_ttl(driver, table):
        raise SchemaError(
            f"the table {table!r} has no time to live on {TTL_ATTRIBUTE!r}, for completed_ttl: run create_schema()"
        )


async def drop(driver: Driver, table: str) -> None:
    """Delete the table, sagas and all, and wait until it is gone."""

    async def step() -> bool:
        found = await _described(driver, table)
        if found is None:
            return True
        if found["TableStatus"] != "DELETING":
            await _unless_raced(driver.read("delete_table", TableName=table))
        return False

    await _until(step, f"the table {table!r} was not deleted")


async def _until(step: Callable[[], Awaitable[bool]], complaint: str) -> None:
    try:
        async with asyncio.timeout(_PATIENCE):
            pause = _FIRST_PAUSE
            while not await step():
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
    except TimeoutError as error:
        raise StoreUnavailableError(f"{complaint} within {_PATIENCE:.0f} seconds") from error


async def _described(driver: Driver, table: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = (await driver.read("describe_table", TableName=table))["Table"]
    except SchemaError:
        return None
    return found


async def _unless_raced(request: Awaitable[Any]) -> None:
    """Make a request on the table, which another process may just have made."""
    try:
        await request
    except SagaStoreError as error:
        if error.__cause__ is None or code_of(error.__cause__) not in _RACED:
            raise


async def _has_ttl(driver: Driver, table: str) -> bool:
    answer = (await driver.read("describe_time_to_live", TableName=table))["TimeToLiveDescription"]
    enabled = answer["TimeToLiveStatus"] in ("ENABLED", "ENABLING")
    if enabled and answer.get("AttributeName", TTL_ATTRIBUTE) != TTL_ATTRIBUTE:
        raise SchemaError(
            f"the table {table!r} has its time to live on {answer['AttributeName']!r}, not on {TTL_ATTRIBUTE!r}"
        )
    return enabled


def _is_active(found: dict[str, Any]) -> bool:
    indexes = found.get("GlobalSecondaryIndexes", ())
    return found["TableStatus"] in ("ACTIVE", "UPDATING") and all(index["IndexStatus"] == "ACTIVE" for index in indexes)


def _missing_indexes(found: dict[str, Any], table: str) -> list[dict[str, Any]]:
    """The indexes that a table lacks.

    Raises:
        SchemaError: The table, or an index of one of our names, is another one.
    """
    definition = table_definition(table)
    types = {one["AttributeName"]: one["AttributeType"] for one in found["AttributeDefinitions"]}
    if found["KeySchema"] != definition["KeySchema"] or types["pk"] != "S":
        raise SchemaError(f"the table {table!r} was not made by create_schema(): its key is not the text 'pk' alone")
    there = {index["IndexName"]: index for index in found.get("GlobalSecondaryIndexes", ())}
    missing = []
    for index in definition["GlobalSecondaryIndexes"]:
        actual = there.get(index["IndexName"])
        if actual is None:
            missing.append(index)
        elif (
            actual["KeySchema"] != index["KeySchema"]
            or any(types[key["AttributeName"]] != "S" for key in index["KeySchema"])
            or not _projects(actual["Projection"], index["Projection"])
        ):
            raise SchemaError(
                f"the index {index['IndexName']!r} of the table {table!r} is not as create_schema() makes it: delete "
                "the index, then run create_schema()"
            )
    return missing


def _projects(actual: dict[str, Any], wanted: dict[str, Any]) -> bool:
    if actual["ProjectionType"] == "ALL":
        return True
    return set(wanted.get("NonKeyAttributes", ())) <= set(actual.get("NonKeyAttributes", ()))

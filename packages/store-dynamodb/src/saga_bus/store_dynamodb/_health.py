"""What puts the sagas of a table at risk, as far as the service tells."""

from __future__ import annotations

import asyncio
from typing import Any

from saga_bus.store import SagaStoreError
from saga_bus.store_dynamodb._driver import Driver
from saga_bus.store_dynamodb._schema import TTL_ATTRIBUTE

__all__ = ["warnings_about"]

_NOBODY = {"pk": {"S": "ping"}}  # no item has this key


async def warnings_about(driver: Driver, table: str, *, needs_ttl: bool) -> list[str]:
    """Make a consistent read, and say what puts the table at risk; what may not be asked is passed over.

    Args:
        driver: Makes the requests.
        table: The table's name.
        needs_ttl: Whether the store lets completed sagas expire.
    """
    told = await asyncio.gather(
        driver.read("get_item", TableName=table, Key=_NOBODY, ConsistentRead=True),  # its error is the answer
        _told(driver, "describe_table", table),
        _told(driver, "describe_time_to_live", table),
        _told(driver, "describe_continuous_backups", table),
    )
    _, description, ttl, backups = told
    warnings = _about_table(description["Table"]) if description else []
    recovery = backups.get("ContinuousBackupsDescription", {}).get("PointInTimeRecoveryDescription", {})
    if backups and recovery.get("PointInTimeRecoveryStatus") != "ENABLED":
        warnings.append("point-in-time recovery is off: what is deleted or overwritten by mistake cannot be had back")
    lives = ttl.get("TimeToLiveDescription", {})
    is_right = lives.get("TimeToLiveStatus") in ("ENABLED", "ENABLING") and lives.get("AttributeName") == TTL_ATTRIBUTE
    if needs_ttl and ttl and not is_right:
        warnings.append(
            f"the table has no time to live on {TTL_ATTRIBUTE!r}: expired sagas count as gone, but nobody deletes them"
        )
    return warnings


def _about_table(found: dict[str, Any]) -> list[str]:
    warnings = [
        f"the index {index['IndexName']} is {index['IndexStatus']}: what searches it may miss sagas"
        for index in found.get("GlobalSecondaryIndexes", ())
        if index["IndexStatus"] != "ACTIVE"
    ]
    if not found.get("DeletionProtectionEnabled", False):
        warnings.append("deletion protection is off: one request deletes the table with all sagas")
    if found.get("BillingModeSummary", {}).get("BillingMode", "PROVISIONED") != "PAY_PER_REQUEST":
        warnings.append("the capacity is provisioned: a burst is throttled, on an index too, and that holds up writes")
    return warnings


async def _told(driver: Driver, operation: str, table: str) -> dict[str, Any]:
    try:
        return await driver.read(operation, TableName=table)
    except SagaStoreError:
        return {}

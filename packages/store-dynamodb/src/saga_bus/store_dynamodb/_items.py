"""Items: what a saga is in the table, and the conditions under which it is written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from saga_bus.store import SagaRow
from saga_bus.store_dynamodb._keys import correlation_key, slot_of, sort_text, state_key

__all__ = [
    "ABSENT",
    "FREE",
    "SHOWN",
    "Item",
    "correlation_item",
    "document_of",
    "is_alive",
    "state_item",
    "statement_of",
    "text",
    "update_of",
    "version_of",
]

Item = Mapping[str, Any]

SHOWN = "pk, document, correlation_id, expires"  # what a reader needs of a state item
ABSENT = "attribute_not_exists(pk)"
# The service takes its time to delete what has expired; until then it counts as gone.
FREE = f"{ABSENT} OR expires <= :now"

_SET = (
    "SET version = :version, document = :document, created = :created, updated = :updated, "
    "completed = :completed, archived = :archived, writer = :writer"
)


def text(value: str) -> dict[str, str]:
    """A text as an attribute.

    Args:
        value: The text.
    """
    return {"S": value}


def state_item(row: SagaRow, correlation_id: str, writer: str, expires: int | None) -> dict[str, Any]:
    """The state item of a new saga.

    Args:
        row: The row.
        correlation_id: The correlation id.
        writer: A token of this write, by which it is known again.
        expires: When the item expires, in seconds since 1970.
    """
    item: dict[str, Any] = {
        "pk": {"S": state_key(row.saga_name, row.saga_id)},
        "slot": {"S": slot_of(row.saga_name, row.saga_id)},
        "correlation_id": {"S": correlation_id},
    }
    for name, value in _values(row, writer).items():
        item[name[1:]] = value
    return _expiring(item, expires)


def correlation_item(row: SagaRow, correlation_id: str, expires: int | None) -> dict[str, Any]:
    """The correlation item of a saga.

    Args:
        row: The row.
        correlation_id: The correlation id.
        expires: When the item expires, in seconds since 1970.
    """
    item = {"pk": {"S": correlation_key(row.saga_name, correlation_id)}, "saga_id": {"S": row.saga_id}}
    return _expiring(item, expires)


def update_of(row: SagaRow, expected_version: int, writer: str) -> dict[str, Any]:
    """Key, expressions and values that write the next version of a state item.

    Args:
        row: The row.
        expected_version: The version that must be there.
        writer: A token of this write, by which it is known again.
    """
    values = _values(row, writer)
    added = [f", {name[1:]} = {name}" for name in (":due", ":unsent") if name in values]
    removed = [name[1:] for name in (":due", ":unsent") if name not in values]
    return {
        "Key": {"pk": {"S": state_key(row.saga_name, row.saga_id)}},
        "UpdateExpression": _SET + "".join(added) + (" REMOVE " + ", ".join(removed) if removed else ""),
        "ConditionExpression": "version = :expected",
        "ExpressionAttributeValues": {**values, ":expected": {"N": str(expected_version)}},
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


def statement_of(table: str, row: SagaRow, expected_version: int, writer: str) -> dict[str, Any]:
    """The same in PartiQL, for a running saga: a statement of a BatchExecuteStatement.

    Args:
        table: The table's name.
        row: The row.
        expected_version: The version that must be there.
        writer: A token of this write, by which it is known again.
    """
    values = _values(row, writer)
    removed = [name for name in (":due", ":unsent") if name not in values]
    parts = [f'UPDATE "{table}"', *(f'SET "{name[1:]}" = ?' for name in values)]
    parts += [f'REMOVE "{name[1:]}"' for name in removed]
    parts.append('WHERE "pk" = ? AND "version" = ? AND "expires" IS MISSING')
    keys = [{"S": state_key(row.saga_name, row.saga_id)}, {"N": str(expected_version)}]
    return {"Statement": " ".join(parts), "Parameters": [*values.values(), *keys]}


def is_alive(item: Item | None, now: float | None = None) -> bool:
    """Whether an item is there and has not expired.

    Args:
        item: The item, or None.
        now: Seconds since 1970, by default the present.
    """
    if item is None:
        return False
    expires = item.get("expires")
    return expires is None or int(expires["N"]) > (time.time() if now is None else now)


def document_of(item: Item | None) -> bytes | None:
    """The document of a state item that is alive, else None.

    Args:
        item: The item, or None.
    """
    return item["document"]["S"].encode() if item is not None and is_alive(item) else None


def version_of(item: Item) -> int:
    """The version of a state item.

    Args:
        item: The item.
    """
    return int(item["version"]["N"])


def _values(row: SagaRow, writer: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        ":version": {"N": str(row.version)},
        ":document": {"S": row.document.decode()},
        ":created": {"S": sort_text(row.created_at, row.saga_id)},
        ":updated": {"S": sort_text(row.updated_at, row.saga_id)},
        ":completed": {"BOOL": row.is_completed},
        ":archived": {"BOOL": row.archived_at is not None},
        ":writer": {"S": writer},
    }
    # Two indexes are sparse: they hold only what has these attributes.
    if row.timeout_expires_at is not None and not row.is_completed:
        values[":due"] = {"S": sort_text(row.timeout_expires_at, row.saga_id)}
    if row.outbox_pending:
        values[":unsent"] = values[":updated"]
    return values


def _expiring(item: dict[str, Any], expires: int | None) -> dict[str, Any]:
    if expires is not None:
        item["expires"] = {"N": str(expires)}
    return item

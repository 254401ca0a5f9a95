"""The DynamoDB store, beside raw boto3, each on a table of its own on one server.

The server's URL is in ``SAGA_TEST_DYNAMODB_URL``; the runner starts a DynamoDB Local where it is not. That one keeps
its data in memory and answers in about a millisecond: a figure says what the client's side costs, and nothing of AWS.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import os
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import boto3  # type: ignore[import-untyped]
import msgspec

from bench.subjects import StoreSubject, Subject, Target
from bench.workload import SAGA_NAME, OrderState, correlation_id_of, saga_id_of, state_of
from providers.dynamodb import connected, endpoint_of, url_of
from saga_bus.store import SagaRow
from saga_bus.store_dynamodb import DynamoDBSagaStore
from saga_bus.store_dynamodb._items import correlation_item, state_item
from saga_bus.store_dynamodb._keys import correlation_key, slots_of, sort_text, state_key

__all__ = ["BACKEND"]

ResultT = TypeVar("ResultT")

_BATCH = 25  # items of a BatchWriteItem
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(OrderState).decode

_UPDATE = (
    "SET version = :version, document = :document, created = :created, updated = :updated, "
    "completed = :completed, archived = :archived, writer = :writer REMOVE due, unsent"
)


def _url(table: str) -> str:
    return url_of(endpoint_of(os.environ["SAGA_TEST_DYNAMODB_URL"]) or "", table)


def _table_of(directory: Path) -> str:
    return f"bench_{blake2b(str(directory).encode(), digest_size=8).hexdigest()}"


def _row(state: OrderState) -> SagaRow:
    metadata = state.metadata
    return SagaRow(
        SAGA_NAME,
        metadata.saga_id,
        metadata.version,
        _encode(state),
        metadata.is_completed,
        metadata.created_at,
        metadata.updated_at,
        metadata.archived_at,
        metadata.timeout_expires_at,
        bool(metadata.outbox),
    )


def _items(correlation_id: str, state: OrderState) -> tuple[dict[str, Any], dict[str, Any]]:
    row = _row(state)
    return state_item(row, correlation_id, uuid4().hex, None), correlation_item(row, correlation_id, None)


class _Table:
    """What all subjects share: a table of their own with the orders in it."""

    def __init__(self, directory: Path, rows: int) -> None:
        self.table = _table_of(directory)
        self.rows = rows

    async def fill(self) -> None:
        async with DynamoDBSagaStore[OrderState](_url(self.table)) as store:
            await store.drop_schema()
            await store.create_schema()
        await asyncio.to_thread(self._write_all)

    def _write_all(self) -> None:
        items = [item for number in range(self.rows) for item in _items(correlation_id_of(number), state_of(number, 0))]
        with connected(_url(self.table)) as client:
            for first in range(0, len(items), _BATCH):
                puts = [{"PutRequest": {"Item": item}} for item in items[first : first + _BATCH]]
                while puts:
                    answer = client.batch_write_item(RequestItems={self.table: puts})
                    puts = answer["UnprocessedItems"].get(self.table, [])

    async def drop(self) -> None:
        async with DynamoDBSagaStore[OrderState](_url(self.table)) as store:
            await store.drop_schema()

    async def totals(self) -> tuple[int, int]:
        return await asyncio.to_thread(self._totals)

    def _totals(self) -> tuple[int, int]:
        versions = []
        with connected(_url(self.table)) as client:
            pages = client.get_paginator("scan").paginate(TableName=self.table, ConsistentRead=True)
            for page in pages:
                versions += [int(item["version"]["N"]) for item in page["Items"] if "version" in item]
        return len(versions), sum(versions)


class DynamoDBSubject(StoreSubject, _Table):
    """The store."""

    def __init__(self, directory: Path, rows: int) -> None:
        _Table.__init__(self, directory, rows)
        StoreSubject.__init__(self, DynamoDBSagaStore(_url(self.table)))

    async def open(self) -> None:
        await self.fill()
        await StoreSubject.open(self)
        for number in {0, self.rows // 2, self.rows - 1}:
            for state in (
                await self.get_by_id(saga_id_of(number)),
                await self.get_by_correlation_id(correlation_id_of(number)),
            ):
                if state != state_of(number, 0):
                    raise LookupError(f"the store reads order {number} as {state}")

    async def close(self) -> None:
        await StoreSubject.close(self)
        await self.drop()


class ClientSubject(_Table):
    """boto3's client as its documentation shows it, called as it is: it blocks, so callers take turns."""

    async def open(self) -> None:
        await self.fill()
        self.client = boto3.client(
            "dynamodb",
            region_name="eu-west-1",
            endpoint_url=endpoint_of(_url(self.table)),
            aws_access_key_id="local",
            aws_secret_access_key="local",
        )

    async def close(self) -> None:
        self.client.close()
        await self.drop()

    async def do(self, request: Callable[[], ResultT]) -> ResultT:
        return request()

    async def insert(self, correlation_id: str, state: OrderState) -> None:
        free = "attribute_not_exists(pk)"
        puts = [
            {"Put": {"TableName": self.table, "Item": item, "ConditionExpression": free}}
            for item in _items(correlation_id, state)
        ]
        await self.do(functools.partial(self.client.transact_write_items, TransactItems=puts))

    async def get_by_id(self, saga_id: str) -> OrderState | None:
        item = await self._get(state_key(SAGA_NAME, saga_id))
        return None if item is None else _decode(item["document"]["S"])

    async def get_by_correlation_id(self, correlation_id: str) -> OrderState | None:
        item = await self._get(correlation_key(SAGA_NAME, correlation_id))
        return None if item is None else await self.get_by_id(item["saga_id"]["S"])

    async def _get(self, key: str) -> dict[str, Any] | None:
        get = functools.partial(self.client.get_item, TableName=self.table, Key={"pk": {"S": key}}, ConsistentRead=True)
        item: dict[str, Any] | None = (await self.do(get)).get("Item")
        return item

    async def update(self, state: OrderState, expected_version: int) -> None:
        metadata = state.metadata
        update = functools.partial(
            self.client.update_item,
            TableName=self.table,
            Key={"pk": {"S": state_key(SAGA_NAME, metadata.saga_id)}},
            UpdateExpression=_UPDATE,
            ConditionExpression="version = :expected",
            ExpressionAttributeValues={
                ":version": {"N": str(metadata.version)},
                ":document": {"S": _encode(state).decode()},
                ":created": {"S": sort_text(metadata.created_at, metadata.saga_id)},
                ":updated": {"S": sort_text(metadata.updated_at, metadata.saga_id)},
                ":completed": {"BOOL": metadata.is_completed},
                ":archived": {"BOOL": metadata.archived_at is not None},
                ":writer": {"S": uuid4().hex},
                ":expected": {"N": str(expected_version)},
            },
        )
        await self.do(update)

    async def find(self, cursor: Any, limit: int) -> tuple[Sequence[OrderState], Any]:
        # A partition each, merged; one more than the page tells whether there is a next one, as the store does it.
        answers = await asyncio.gather(*(self.do(self._query(slot, cursor, limit)) for slot in slots_of(SAGA_NAME)))
        entries = heapq.merge(
            *([(item["created"]["S"], item["pk"]["S"]) for item in answer["Items"]] for answer in answers),
            reverse=True,
        )
        chosen = [entry for entry, _ in zip(entries, range(limit + 1), strict=False)]
        keys = [key for _, key in chosen[:limit]]
        groups = [keys[first : first + 100] for first in range(0, len(keys), 100)]
        found: dict[str, OrderState] = {}
        for answer in await asyncio.gather(*(self.do(self._batch(group)) for group in groups)):
            found.update((item["pk"]["S"], _decode(item["document"]["S"])) for item in answer["Responses"][self.table])
        return [found[key] for key in keys], chosen[limit - 1][0] if len(chosen) > limit else None

    def _query(self, slot: str, cursor: Any, limit: int) -> Callable[[], Any]:
        values = {":slot": {"S": slot}, **({} if cursor is None else {":before": {"S": cursor}})}
        return functools.partial(
            self.client.query,
            TableName=self.table,
            IndexName="by_creation",
            KeyConditionExpression="slot = :slot" + ("" if cursor is None else " AND created < :before"),
            ExpressionAttributeValues=values,
            ProjectionExpression="pk, created",
            ScanIndexForward=False,
            Limit=limit + 1,
        )

    def _batch(self, keys: list[str]) -> Callable[[], Any]:
        wanted = {"Keys": [{"pk": {"S": key}} for key in keys], "ConsistentRead": True}
        return functools.partial(self.client.batch_get_item, RequestItems={self.table: wanted})


class ThreadsSubject(ClientSubject):
    """The same, each request in a thread of the event loop, as an asyncio program has to call what blocks."""

    async def do(self, request: Callable[[], ResultT]) -> ResultT:
        return await asyncio.to_thread(request)


_PEERS: dict[str, type[ClientSubject]] = {"boto3": ClientSubject, "boto3 in threads": ThreadsSubject}
_OPERATIONS = ("get_by_id", "get_by_correlation_id", "update", "cycle", "find", "insert")


class DynamoDBBackend:
    """Sagas in DynamoDB."""

    name = "dynamodb"
    server = "dynamodb"
    variants = ("default",)
    peers = tuple(_PEERS)
    packages = ("saga-bus-store-dynamodb", "boto3", "botocore")
    targets = (
        *(Target("ratio", 0.90, each, "default", 1, peer) for each in _OPERATIONS for peer in _PEERS),
        *(
            Target("ratio", 1.5, each, "default", 64, peer)
            for each in ("get_by_id", "get_by_correlation_id")
            for peer in _PEERS
        ),
    )

    def versions(self) -> dict[str, str]:
        return {"DynamoDB": endpoint_of(os.environ["SAGA_TEST_DYNAMODB_URL"]) or "AWS"}

    async def prepare(self, directory: Path, rows: int) -> None:  # noqa: ARG002
        """Nothing but the directory: a table cannot be copied, so each subject fills its own."""
        directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing else runs

    def subject(self, name: str, variant: str, directory: Path, rows: int) -> Subject:  # noqa: ARG002
        return DynamoDBSubject(directory, rows) if name == "store" else _PEERS[name](directory, rows)


BACKEND = DynamoDBBackend()

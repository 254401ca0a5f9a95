"""The DynamoDB store: construction, and primitives as operations on a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from saga_bus.store import (
    Activity,
    BaseSagaStore,
    FoundRow,
    InvalidSagaError,
    SagaFilter,
    SagaQuery,
    SagaRow,
    StateCodec,
    StoreCapabilities,
)
from saga_bus.store_dynamodb import _schema as schema
from saga_bus.store_dynamodb._client import Settings, make_client
from saga_bus.store_dynamodb._driver import Driver
from saga_bus.store_dynamodb._health import warnings_about
from saga_bus.store_dynamodb._location import Location, check_endpoint, check_table, parse_location
from saga_bus.store_dynamodb._queries import Queries
from saga_bus.store_dynamodb._reads import Reads
from saga_bus.store_dynamodb._writes import Writes

__all__ = ["DynamoDBSagaStore", "check_schema", "create_schema", "drop_schema"]

StateT = TypeVar("StateT")

_DEFAULT_TABLE = "saga_instances"
# An item may have 409,600 bytes; the longest keys, each of them stored several times, take less than the rest.
_MAX_STATE_BYTES = 400_000
_LONGEST_TTL = timedelta(days=36_500)
# AWS promises no bound, and speaks of one second (repost.aws/knowledge-center/dynamodb-missing-table-items-gsi). Ten
# leave room for a busy index, and a search that is still wrong then is not late.
_INDEX_LAG = timedelta(seconds=10)


class DynamoDBSagaStore(BaseSagaStore[StateT]):
    """Sagas in a table of DynamoDB, through boto3.

    boto3 blocks, so requests are made in threads of the store's own; the event loop never waits. A cancelled caller
    stops waiting; a request that was sent goes on to its end. A request that was throttled, met another transaction
    or lost its answer is made again; every write can be, without being done twice or being taken for somebody else's.

    Args:
        database: ``dynamodb://region/table?endpoint=http://host:port``. The region may be empty, the table left out;
            access key and secret may stand before the region. A URL may carry the options ``threads``,
            ``attempts``, ``connect_timeout``, ``read_timeout`` and ``completed_ttl`` (in seconds), which win over the
            arguments.
        client: Instead of a database, a boto3 client for DynamoDB, which is never closed; its own settings hold. Let
            it try requests once (``retries={"total_max_attempts": 1}``): retries of its own hide which writes may
            have been applied.
        session: Instead of a database, a boto3 session, from which the store makes its own client.
        table: The table's name.
        endpoint: The address of the service, None for the region's; not with a client.
        threads: The most requests at the same time, each in a thread, 1 to 1,000; they are started on demand.
        attempts: How often a request is tried, 1 to 100, with growing, jittered pauses.
        connect_timeout: How long connecting may take, in seconds.
        read_timeout: How long the answer to one try of a request may take, in seconds.
        completed_ttl: How long a completed saga stays after its last update; None for ever. What has expired counts
            as gone at once, and DynamoDB deletes it within a few days.
        state_types: The state type of each saga name.
        codec: Replaces the JSON codec.

    Raises:
        InvalidSagaError: A bad argument, or not exactly one of ``database``, ``client`` and ``session``.
    """

    capabilities = StoreCapabilities(
        conditional_delete=True,
        query=True,
        retention=True,
        schema=True,
        ping=True,
        processes=True,
        max_state_bytes=_MAX_STATE_BYTES,
        index_lag=_INDEX_LAG,
    )

    def __init__(
        self,
        database: str | None = None,
        *,
        client: Any = None,
        session: Any = None,
        table: str = _DEFAULT_TABLE,
        endpoint: str | None = None,
        threads: int = 16,
        attempts: int = 6,
        connect_timeout: float = 3.0,
        read_timeout: float = 5.0,
        completed_ttl: timedelta | None = None,
        state_types: Mapping[str, type] | None = None,
        codec: StateCodec | None = None,
    ) -> None:
        super().__init__(state_types=state_types, codec=codec)
        if sum(given is not None for given in (database, client, session)) != 1:
            raise InvalidSagaError("give a database, a client or a session, and not more than one of them")
        if client is not None and endpoint is not None:
            raise InvalidSagaError("a client has its endpoint already")
        location = Location(None, {}) if database is None else parse_location(database)
        options: dict[str, Any] = {
            "table": table,
            "endpoint": endpoint,
            "threads": threads,
            "attempts": attempts,
            "connect_timeout": connect_timeout,
            "read_timeout": read_timeout,
            "completed_ttl": completed_ttl,
            **location.options,
        }
        self._table = check_table(options.pop("table"))
        self._ttl = _checked_ttl(options.pop("completed_ttl"))
        if options["endpoint"] is not None:
            check_endpoint(options["endpoint"])
        self.capabilities = replace(self.capabilities, completed_ttl=self._ttl)
        settings = Settings(
            **options, region=location.region, access_key=location.access_key, secret_key=location.secret_key
        )
        if client is not None:
            _check_client(client)
            self._shown = "the given client"
        else:
            place = "the given session" if session is not None else f"dynamodb://{location.region or ''}"
            self._shown = place + (f" at {settings.endpoint}" if settings.endpoint else "")
        self._driver = Driver(
            (lambda: client) if client is not None else partial(make_client, settings, session),
            owned=client is None,
            table=self._table,
            threads=settings.threads,
            attempts=settings.attempts,
        )
        activity = Activity()
        self._reads = Reads(self._driver, self._table, settings.attempts, activity)
        self._writes = Writes(self._driver, self._table, self._reads, self._ttl, activity)
        self._queries = Queries(self._driver, self._table, self._reads, self._writes)

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({self._shown!r}, table={self._table!r})"

    # -- life --------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        await self._driver.open()

    async def _close(self) -> None:
        await self._writes.join()
        await self._reads.join()
        await self._driver.close()

    # -- primitives --------------------------------------------------------------------------------------

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        await self._writes.insert(row, correlation_id)

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        await self._writes.update(row, expected_version)

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        await self._writes.delete(saga_name, saga_id, expected_version)

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        return await self._reads.get_by_id(saga_name, saga_id)

    async def _get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        return await self._reads.get_by_correlation_id(saga_name, correlation_id)

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        return await self._queries.find(query)

    async def _count(self, where: SagaFilter) -> int:
        return await self._queries.count(where)

    async def _purge(self, saga_name: str, before: datetime, batch_size: int) -> int:
        return await self._queries.purge(saga_name, before, batch_size)

    async def _create_schema(self) -> None:
        await self._ensure_open()
        await schema.create(self._driver, self._table)

    async def _check_schema(self) -> None:
        await self._ensure_open()
        await schema.check(self._driver, self._table, needs_ttl=self._ttl is not None)

    async def _drop_schema(self) -> None:
        await self._ensure_open()
        await schema.drop(self._driver, self._table)
        self._writes.forget()

    async def _ping(self) -> Sequence[str]:
        return await warnings_about(self._driver, self._table, needs_ttl=self._ttl is not None)


async def create_schema(database: str | Any, *, table: str = _DEFAULT_TABLE) -> None:
    """Create the table where it is missing, and what it lacks; wait until it can be used.

    Args:
        database: A URL, or a boto3 client for DynamoDB.
        table: The table's name, where the URL has none.

    Raises:
        SchemaError: There is another table of this name.
    """
    async with _store_on(database, table) as store:
        await store.create_schema()


async def check_schema(database: str | Any, *, table: str = _DEFAULT_TABLE) -> None:
    """Check that the table and its indexes are there, and as this package makes them.

    Args:
        database: A URL, or a boto3 client for DynamoDB.
        table: The table's name, where the URL has none.

    Raises:
        SchemaError: It is missing, older or another one; the message says what to run.
    """
    async with _store_on(database, table) as store:
        await store.check_schema()


async def drop_schema(database: str | Any, *, table: str = _DEFAULT_TABLE) -> None:
    """Delete the table with its sagas; one that is not there is no error.

    Args:
        database: A URL, or a boto3 client for DynamoDB.
        table: The table's name, where the URL has none.
    """
    async with _store_on(database, table) as store:
        await store.drop_schema()


def _store_on(database: Any, table: str) -> DynamoDBSagaStore[Any]:
    if isinstance(database, str):
        return DynamoDBSagaStore(database, table=table, threads=2)
    return DynamoDBSagaStore(client=database, table=table, threads=2)


def _check_client(client: Any) -> None:
    model = getattr(getattr(client, "meta", None), "service_model", None)
    if getattr(model, "service_name", None) != "dynamodb":
        raise InvalidSagaError(f"client must be boto3.client('dynamodb'), not {type(client).__name__}")


def _checked_ttl(ttl: Any) -> timedelta | None:
    if ttl is not None and not (isinstance(ttl, timedelta) and timedelta() < ttl <= _LONGEST_TTL):
        raise InvalidSagaError(f"completed_ttl must be a timedelta of more than 0 and at most 100 years, not {ttl!r}")
    return ttl

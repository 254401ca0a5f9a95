"""The Redis store."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from redis.asyncio import Redis, RedisCluster

from saga_bus.store import (
    BaseSagaStore,
    FoundRow,
    InvalidSagaError,
    SagaFilter,
    SagaQuery,
    SagaRow,
    StateCodec,
    StoreCapabilities,
    StoreUnavailableError,
)
from saga_bus.store.checks import check_count
from saga_bus.store_redis import _schema as schema_work
from saga_bus.store_redis._groups import Groups
from saga_bus.store_redis._health import warnings_about
from saga_bus.store_redis._keys import Keys, check_prefix, keys_of
from saga_bus.store_redis._location import Location
from saga_bus.store_redis._queries import choose, count_sagas, find_sagas
from saga_bus.store_redis._replication import Replication
from saga_bus.store_redis._routes import ClusterRoute, Route, SingleRoute
from saga_bus.store_redis._servers import Limits

__all__ = ["RedisSagaStore", "check_schema", "create_schema", "drop_schema"]

StateT = TypeVar("StateT")

_DEFAULT_PREFIX = "saga_instances"
# A server does one thing at a time: a larger state would hold everybody up. Redis itself takes 512 MB.
_MAX_STATE_BYTES = 32 * 1024 * 1024
_MAX_TTL = timedelta(days=36_500)


class RedisSagaStore(BaseSagaStore[StateT]):
    """Sagas in Redis from version 6.2 on, or Valkey: a server, one behind Sentinels, or a Cluster.

    Each write is one script, whole or not at all. Calls that arrive while others are in flight leave together; each
    keeps its own result.

    Args:
        url: ``redis://user:password@host:port/0``, ``rediss://...`` (TLS) or ``unix:///path``, with what else
            redis-py takes in a URL; ``?cluster=true`` for a Cluster, ``?sentinel=name`` for the primary that the
            Sentinels at the hosts know by this name; several hosts with commas. The store opens connections and
            closes them.
        client: Instead of a URL, a ``redis.asyncio.Redis`` (Sentinel's ``master_for`` makes one, too) or a
            ``redis.asyncio.RedisCluster``; it is never closed by the store.
        prefix: What all keys begin with: 1 to 64 of the ASCII letters, the digits and ``_ . : / -``.
        completed_ttl: How long after its last update a completed saga expires, at least a millisecond; None for
            never. A running saga never expires.
        wait_replicas: How many replicas must have a write before it is acknowledged (WAIT); 0 asks none.
        wait_timeout: How long to wait for them, in seconds.
        connect_timeout: For making a connection, in seconds; in a Cluster, also how long a command is tried again
            while its hash slot moves.
        command_timeout: For the answer to a command, in seconds; None for ever.
        max_connections: The most connections to one server that are used at the same time.
        max_state_bytes: The largest encoded state; the server takes one of 512 MB at the most (its
            ``proto-max-bulk-len``), and does nothing else meanwhile.
        state_types: The state type of each saga name.
        codec: Replaces the JSON codec.

    Raises:
        InvalidSagaError: A bad argument, or not exactly one of a URL and a client.
    """

    capabilities = StoreCapabilities(
        conditional_delete=True,
        query=True,
        retention=True,
        schema=True,
        ping=True,
        processes=True,
        max_state_bytes=_MAX_STATE_BYTES,
    )

    def __init__(
        self,
        url: str | None = None,
        *,
        client: Any = None,
        prefix: str = _DEFAULT_PREFIX,
        completed_ttl: timedelta | None = None,
        wait_replicas: int = 0,
        wait_timeout: float = 1.0,
        connect_timeout: float = 5.0,
        command_timeout: float | None = 10.0,
        max_connections: int = 8,
        max_state_bytes: int = _MAX_STATE_BYTES,
        state_types: Mapping[str, type] | None = None,
        codec: StateCodec | None = None,
    ) -> None:
        super().__init__(state_types=state_types, codec=codec)
        if (url is None) == (client is None):
            raise InvalidSagaError("give either a URL or a client")
        if client is not None and not isinstance(client, Redis | RedisCluster):
            raise InvalidSagaError(
                f"the client must be a redis.asyncio.Redis or RedisCluster, not {type(client).__name__}"
            )
        check_count("wait_replicas", wait_replicas, least=0)
        check_count("max_connections", max_connections, least=1)
        check_count("max_state_bytes", max_state_bytes, least=1)
        _check_seconds("wait_timeout", wait_timeout)
        _check_seconds("connect_timeout", connect_timeout)
        if command_timeout is not None:
            _check_seconds("command_timeout", command_timeout)
        self._prefix = check_prefix(prefix)
        self.capabilities = replace(
            type(self).capabilities, completed_ttl=completed_ttl, max_state_bytes=max_state_bytes
        )
        self._client: Redis | RedisCluster | None = client
        self._location = None if url is None else Location(url)
        self._ttl = _milliseconds(completed_ttl)
        self._replication = Replication(wait_replicas, wait_timeout)
        if command_timeout is not None and wait_replicas:
            command_timeout += wait_timeout
        self._limits = Limits(connect_timeout, command_timeout, max_connections)
        self._route: Route
        self._groups: Groups
        self._has_schema = False
        self._looking = asyncio.Lock()

    def __repr__(self) -> str:
        place = "the given client" if self._location is None else self._location.shown
        return f"{type(self).__qualname__}({place!r}, prefix={self._prefix!r})"

    # -- life --------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        client, owned = self._client, self._client is None
        if self._location is not None:
            client = self._location.client(self._limits.connect)
        if isinstance(client, RedisCluster):
            self._route = ClusterRoute(client, self._limits, owned=owned)
        elif client is not None:
            self._route = SingleRoute(client, self._limits, owned=owned)
        self._groups = Groups(self._route, self._ttl, self._replication)

    async def _close(self) -> None:
        await self._groups.close()
        await self._route.close()

    async def _ready(self) -> None:
        """See once that the layout is there, before the first operation."""
        if self._has_schema:
            return
        async with self._looking:
            if not self._has_schema:
                await schema_work.check(self._route, self._prefix)
                self._has_schema = True

    def _keys(self, saga_name: str) -> Keys:
        return keys_of(self._prefix, saga_name)

    # -- primitives --------------------------------------------------------------------------------------

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        await self._ready()
        keys = self._keys(row.saga_name)
        if await self._groups.insert(keys, row, correlation_id):
            return
        # The first sagas of a type often come in a burst: the first of them registers it.
        async with self._looking:
            if await self._groups.insert(keys, row, correlation_id):
                return
            await schema_work.register(self._route, self._prefix, row.saga_name)
        if not await self._groups.insert(keys, row, correlation_id):
            raise StoreUnavailableError("others dropped and created the schema meanwhile")

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        await self._ready()
        await self._groups.update(self._keys(row.saga_name), row, expected_version)

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        await self._ready()
        await self._groups.delete(self._keys(saga_name), saga_name, saga_id, expected_version)

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        await self._ready()
        return await self._groups.get_by_id(self._keys(saga_name), saga_id)

    async def _get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        await self._ready()
        return await self._groups.get_by_correlation_id(self._keys(saga_name), correlation_id)

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        return await find_sagas(self._route, await self._types(query.where), query)

    async def _count(self, where: SagaFilter) -> int:
        return await count_sagas(self._route, await self._types(where), where)

    async def _purge(self, saga_name: str, before: datetime, batch_size: int) -> int:
        await self._ready()
        keys = self._keys(saga_name)
        where = SagaFilter(saga_name=saga_name, completed=True, updated_before=before)
        while candidates := await choose(self._route, keys, where, batch_size):
            if deleted := await self._groups.purge(keys, candidates):
                return deleted
        return 0

    async def _types(self, where: SagaFilter) -> list[tuple[str, Keys]]:
        if where.saga_name is None:
            return await schema_work.types(self._route, self._prefix)
        await self._ready()
        return [(where.saga_name, self._keys(where.saga_name))]

    async def _create_schema(self) -> None:
        await self._ensure_open()
        await schema_work.create(self._route, self._prefix)
        self._has_schema = True

    async def _check_schema(self) -> None:
        await self._ensure_open()
        await schema_work.check(self._route, self._prefix)

    async def _drop_schema(self) -> None:
        await self._ensure_open()
        self._has_schema = False
        await schema_work.drop(self._route, self._prefix)

    async def _ping(self) -> Sequence[str]:
        return await warnings_about(self._route, self._replication.replicas)


async def create_schema(database: Any, *, prefix: str = _DEFAULT_PREFIX) -> None:
    """Note the version of the key layout, so that stores can work under the prefix.

    Args:
        database: A URL or a client, as `RedisSagaStore` takes them.
        prefix: The prefix of the keys.

    Raises:
        SchemaError: The layout is newer than the package, or the key was not made by it.
    """
    async with _store_on(database, prefix) as store:
        await store.create_schema()


async def check_schema(database: Any, *, prefix: str = _DEFAULT_PREFIX) -> None:
    """Check that the key layout is there and of this package's version.

    Args:
        database: A URL or a client, as `RedisSagaStore` takes them.
        prefix: The prefix of the keys.

    Raises:
        SchemaError: It is missing or newer; the message says what to do.
    """
    async with _store_on(database, prefix) as store:
        await store.check_schema()


async def drop_schema(database: Any, *, prefix: str = _DEFAULT_PREFIX) -> None:
    """Delete every key of the prefix, sagas included; nothing to delete is no error.

    Args:
        database: A URL or a client, as `RedisSagaStore` takes them.
        prefix: The prefix of the keys.
    """
    async with _store_on(database, prefix) as store:
        await store.drop_schema()


def _store_on(database: Any, prefix: str) -> RedisSagaStore[Any]:
    if isinstance(database, Redis | RedisCluster):
        return RedisSagaStore(client=database, prefix=prefix)
    return RedisSagaStore(database, prefix=prefix)


def _milliseconds(ttl: timedelta | None) -> int | None:
    if ttl is None:
        return None
    if not isinstance(ttl, timedelta) or not timedelta(milliseconds=1) <= ttl <= _MAX_TTL:
        raise InvalidSagaError(f"completed_ttl must be a timedelta from a millisecond to 100 years, not {ttl!r}")
    return ttl // timedelta(milliseconds=1)


def _check_seconds(what: str, seconds: float) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise InvalidSagaError(f"{what} must be a number of seconds above 0, not {seconds!r}")

"""The Redis store, beside raw redis-py with a script and with WATCH/MULTI/EXEC, on one server.

The server's URL is in ``SAGA_TEST_REDIS_URL``; the runner starts a private server where it is not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import WatchError

from bench.subjects import StoreSubject, Subject, Target
from bench.workload import SAGA_NAME, OrderState, correlation_id_of, state_of
from providers.redis import connected
from saga_bus.store_redis import RedisSagaStore
from saga_bus.store_redis._keys import keys_of, text_of_moment

__all__ = ["BACKEND"]

_CHUNK = 1000  # sagas for each script that fills or adds up: the server does nothing else meanwhile

# What `totals` adds up, on the server: 1 KB for each of a million sagas would take longer than what is measured.
# KEYS: the index. ARGV: where to go on, how many. Returns the last member, how many there were, and their versions.
_STORE_TOTALS = """\
local base = string.sub(KEYS[1], 1, -2) .. 's:'
local last, count, versions = '', 0, 0
for _, member in ipairs(redis.call('ZRANGEBYLEX', KEYS[1], ARGV[1], '(o', 'LIMIT', 0, ARGV[2])) do
  local head = redis.call('GETRANGE', base .. string.sub(member, 20), 0, 19)
  last, count, versions = member, count + 1, versions + tonumber(string.match(head, '^(%d+)%z'))
end
return {last, count, versions}"""
# The store's rows as its page describes them. KEYS: the index. ARGV: saga id, correlation id, moment, record.
_STORE_FILL = """\
local base = string.sub(KEYS[1], 1, -2)
for _, row in ipairs(cmsgpack.unpack(ARGV[1])) do
  local id, correlation, moment, record = unpack(row)
  redis.call('SET', base .. 's:' .. id, record)
  redis.call('SET', base .. 'c:' .. correlation, id)
  redis.call('ZADD', KEYS[1], '0', 'n' .. moment .. id, '0', 'r' .. moment .. id)
end"""
# The same for the peers. KEYS: the sorted set, and what the other keys begin with.
_RAW_TOTALS = """\
local count, versions = 0, 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], ARGV[1], ARGV[1] + ARGV[2] - 1)) do
  count, versions = count + 1, versions + redis.call('HGET', KEYS[2] .. id, 'version')
end
return {count, versions}"""
_RAW_FILL = """\
for _, row in ipairs(cmsgpack.unpack(ARGV[1])) do
  local id, correlation, moment, state = unpack(row)
  redis.call('HSET', KEYS[2] .. id, 'version', '0', 'state', state)
  redis.call('SET', KEYS[3] .. correlation, id)
  redis.call('ZADD', KEYS[1], moment, id)
end"""

# The compare-and-swap of redis-py's users who know scripts: a hash of the version and the state, a key for the
# correlation id, and one sorted set to list them by.
_INSERT = """\
if redis.call('EXISTS', KEYS[1]) == 1 or redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'state', ARGV[2])
redis.call('SET', KEYS[2], ARGV[3])
redis.call('ZADD', KEYS[3], ARGV[4], ARGV[3])
return 1"""
_UPDATE = """\
if redis.call('HGET', KEYS[1], 'version') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'state', ARGV[3])
return 1"""

_encode = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode
_decode = msgspec.json.Decoder(OrderState).decode


def _url() -> str:
    return os.environ["SAGA_TEST_REDIS_URL"]


def _prefix_of(directory: Path) -> str:
    return f"bench_{blake2b(str(directory).encode(), digest_size=8).hexdigest()}"


class RedisSubject(StoreSubject):
    """The store."""

    def __init__(self, directory: Path, rows: int) -> None:
        self.prefix = _prefix_of(directory)
        self.rows = rows
        super().__init__(RedisSagaStore(_url(), prefix=self.prefix))

    async def open(self) -> None:
        await super().open()
        await self.store.create_schema()
        await self.insert(correlation_id_of(0), state_of(0, 0))  # which registers the type
        with connected(_url()) as client:
            fill = client.register_script(_STORE_FILL)
            for first in range(1, self.rows, _CHUNK):
                rows = [self.row_of(number) for number in range(first, min(first + _CHUNK, self.rows))]
                fill(keys=[self.index_key], args=[_pack(rows)])

    def row_of(self, number: int) -> tuple[str, str, str, str]:
        state, correlation_id = state_of(number, 0), correlation_id_of(number)
        moment = text_of_moment(state.metadata.created_at)
        record = f"0\0{moment}\0{moment}\0\0\0\0{correlation_id}\0{_encode(state).decode()}"
        return state.metadata.saga_id, correlation_id, moment, record

    async def close(self) -> None:
        await self.store.drop_schema()
        await super().close()

    @property
    def index_key(self) -> bytes:
        return keys_of(self.prefix, SAGA_NAME).index_key

    async def totals(self) -> tuple[int, int]:
        count = versions = 0
        bound = b"[n"
        with connected(_url()) as client:
            add_up = client.register_script(_STORE_TOTALS)
            while True:
                last, found, found_versions = add_up(keys=[self.index_key], args=[bound, _CHUNK])
                count, versions, bound = count + found, versions + found_versions, b"(" + last
                if found < _CHUNK:
                    return count, versions


class RawSubject:
    """redis-py as its documentation shows it: a client with a pool, and scripts that it registers."""

    def __init__(self, directory: Path, rows: int) -> None:
        self.prefix = _prefix_of(directory)
        self.rows = rows

    async def open(self) -> None:
        self.client: Any = Redis.from_url(_url(), max_connections=200)
        self.run_insert = self.client.register_script(_INSERT)
        self.run_update = self.client.register_script(_UPDATE)
        fill = self.client.register_script(_RAW_FILL)
        for first in range(0, self.rows, _CHUNK):
            rows = [self.row_of(number) for number in range(first, min(first + _CHUNK, self.rows))]
            await fill(keys=[self.index_key, self.state_key(""), self.pointer_key("")], args=[_pack(rows)])

    def row_of(self, number: int) -> tuple[str, str, float, str]:
        state = state_of(number, 0)
        metadata = state.metadata
        return metadata.saga_id, correlation_id_of(number), metadata.created_at.timestamp(), _encode(state).decode()

    async def close(self) -> None:
        keys: list[bytes] = []
        async for key in self.client.scan_iter(f"{self.prefix}:*", count=_CHUNK):
            keys.append(key)
            if len(keys) == _CHUNK:
                await self.client.unlink(*keys)
                keys.clear()
        if keys:
            await self.client.unlink(*keys)
        await self.client.aclose()

    def fill(self, pipeline: Any, correlation_id: str, state: OrderState) -> None:
        saga_id = state.metadata.saga_id
        pipeline.hset(self.state_key(saga_id), mapping={"version": state.metadata.version, "state": _encode(state)})
        pipeline.set(self.pointer_key(correlation_id), saga_id)
        pipeline.zadd(self.index_key, {saga_id: state.metadata.created_at.timestamp()})

    def state_key(self, saga_id: str) -> str:
        return f"{self.prefix}:state:{saga_id}"

    def pointer_key(self, correlation_id: str) -> str:
        return f"{self.prefix}:correlation:{correlation_id}"

    @property
    def index_key(self) -> str:
        return f"{self.prefix}:created"

    async def insert(self, correlation_id: str, state: OrderState) -> None:
        metadata = state.metadata
        done = await self.run_insert(
            keys=[self.state_key(metadata.saga_id), self.pointer_key(correlation_id), self.index_key],
            args=[metadata.version, _encode(state), metadata.saga_id, metadata.created_at.timestamp()],
        )
        if not done:
            raise LookupError(f"{metadata.saga_id} is taken")

    async def get_by_id(self, saga_id: str) -> OrderState | None:
        value = await self.client.hget(self.state_key(saga_id), "state")
        return None if value is None else _decode(value)

    async def get_by_correlation_id(self, correlation_id: str) -> OrderState | None:
        saga_id = await self.client.get(self.pointer_key(correlation_id))
        return None if saga_id is None else await self.get_by_id(saga_id.decode())

    async def update(self, state: OrderState, expected_version: int) -> None:
        metadata = state.metadata
        key = self.state_key(metadata.saga_id)
        if not await self.run_update(keys=[key], args=[expected_version, metadata.version, _encode(state)]):
            raise LookupError(f"{metadata.saga_id} has another version")

    async def find(self, cursor: Any, limit: int) -> tuple[Sequence[OrderState], Any]:
        # By offset: sorted sets have no pages by key and score together.
        start = cursor or 0
        ids = await self.client.zrevrange(self.index_key, start, start + limit)
        values = await self.states([saga_id.decode() for saga_id in ids[:limit]])
        return [_decode(value) for value in values], start + limit if len(ids) > limit else None

    async def states(self, ids: list[str]) -> list[bytes]:
        pipeline = self.client.pipeline(transaction=False)
        for saga_id in ids:
            pipeline.hget(self.state_key(saga_id), "state")
        values: list[bytes] = await pipeline.execute()
        return values

    async def totals(self) -> tuple[int, int]:
        count = versions = 0
        with connected(_url()) as client:
            add_up = client.register_script(_RAW_TOTALS)
            while True:
                found, found_versions = add_up(keys=[self.index_key, self.state_key("")], args=[count, _CHUNK])
                count, versions = count + found, versions + found_versions
                if found < _CHUNK:
                    return count, versions


class WatchSubject(RawSubject):
    """redis-py with optimistic locks: WATCH, read, MULTI, write, EXEC, on a connection of each caller's own."""

    async def insert(self, correlation_id: str, state: OrderState) -> None:
        saga_id = state.metadata.saga_id
        keys = [self.state_key(saga_id), self.pointer_key(correlation_id)]
        async with self.client.pipeline(transaction=True) as pipeline:
            await pipeline.watch(*keys)
            if await pipeline.exists(*keys):
                raise LookupError(f"{saga_id} is taken")
            pipeline.multi()
            self.fill(pipeline, correlation_id, state)
            await self.execute(pipeline, saga_id)

    async def update(self, state: OrderState, expected_version: int) -> None:
        metadata = state.metadata
        key = self.state_key(metadata.saga_id)
        async with self.client.pipeline(transaction=True) as pipeline:
            await pipeline.watch(key)
            if int(await pipeline.hget(key, "version")) != expected_version:
                raise LookupError(f"{metadata.saga_id} has another version")
            pipeline.multi()
            pipeline.hset(key, mapping={"version": metadata.version, "state": _encode(state)})
            await self.execute(pipeline, metadata.saga_id)

    async def execute(self, pipeline: Any, saga_id: str) -> None:
        try:
            await pipeline.execute()
        except WatchError as error:
            raise LookupError(f"{saga_id} was changed") from error


_PEERS: dict[str, type[RawSubject]] = {"redis-py": RawSubject, "redis-py WATCH": WatchSubject}
_OPERATIONS = ("get_by_id", "get_by_correlation_id", "update", "cycle", "find", "insert")
_SINGLE = ("get_by_id", "get_by_correlation_id", "update", "cycle", "insert")


class RedisBackend:
    """Sagas in Redis."""

    name = "redis"
    server = "redis"
    variants = ("default",)
    peers = tuple(_PEERS)
    packages = ("saga-bus-store-redis", "redis")
    targets = (
        *(Target("ratio", 0.90, each, "default", 1, "redis-py") for each in _SINGLE),
        Target("ratio", 2.5, "cycle", "default", 64, "redis-py"),
        Target("ratio", 3.0, "cycle", "default", 64, "redis-py WATCH"),
        *(
            Target("growth", 0.75, each, "default", callers, rows=1_000_000)
            for callers in (1, 64)
            for each in _OPERATIONS
        ),
    )

    def versions(self) -> dict[str, str]:
        with connected(_url()) as client:
            return {"Redis or Valkey": str(client.info("server")["redis_version"])}

    async def prepare(self, directory: Path, rows: int) -> None:  # noqa: ARG002
        """Nothing: a server has no copies of a prefix, so each subject stores its own rows when it opens."""
        directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing else runs

    def subject(self, name: str, variant: str, directory: Path, rows: int) -> Subject:  # noqa: ARG002
        return RedisSubject(directory, rows) if name == "store" else _PEERS[name](directory, rows)


BACKEND = RedisBackend()

"""What a write leaves in Redis, and that a failed one leaves nothing."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from providers.redis import connected
from redis_helpers import NAME, following, key, members, state, store_on
from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
    OutcomeUnknownError,
    SagaFilter,
    SagaStoreError,
    SchemaError,
    StoreUnavailableError,
)
from saga_bus.store_redis import RedisSagaStore
from saga_bus.store_redis._keys import parse_record, text_of_moment
from saga_bus.store_redis._replication import Replication
from saga_bus.store_redis._scripts import READ, WRITE


def everything(client, prefix):
    return {
        each: client.zrange(each, 0, -1) if client.type(each) == b"zset" else client.dump(each)
        for each in sorted(client.scan_iter(f"{prefix}:*"))
    }


def test_the_index_follows_a_saga_through_its_life(url, prefix, admin):
    async def run():
        async with store_on(url, prefix) as store:
            await store.create_schema()
            saga = state("a")
            await store.insert(NAME, "order-1", saga)
            assert members(admin, prefix) == [("n", "a"), ("r", "a")]
            saga = following(saga, timeout=timedelta(hours=1), outbox=({"m": 1},))
            await store.update(NAME, saga, 0)
            assert members(admin, prefix) == [("d", "a"), ("n", "a"), ("o", "a"), ("r", "a")]
            for version in (1, 2, 3):
                saga = following(saga)
                await store.update(NAME, saga, version)
                assert members(admin, prefix) == [("d", "a"), ("n", "a"), ("o", "a"), ("r", "a")]
            saga = following(saga, is_completed=True, outbox=())
            await store.update(NAME, saga, 4)
            assert members(admin, prefix) == [("c", "a"), ("f", "a")]
            saga = following(saga, is_completed=False, timeout=None)
            await store.update(NAME, saga, 5)
            assert members(admin, prefix) == [("n", "a"), ("r", "a")]
            await store.delete(NAME, "a")
            assert everything(admin, prefix).keys() == {f"{prefix}:schema".encode(), key(prefix, "i").encode()}
            assert members(admin, prefix) == []

    asyncio.run(run())


@pytest.mark.parametrize("alone", [True, False])
def test_a_usual_write_leaves_what_any_other_would(url, prefix, admin, alone):
    """What the script does first, and what it leaves to its slower part, as it does for a long correlation id."""

    async def run():
        async with store_on(url, prefix) as store:
            await store.create_schema()

            async def write(calls):
                if alone:
                    for call in calls:
                        await call
                else:
                    await asyncio.gather(*calls)

            moment = datetime.now(UTC)
            sagas = [following(state(saga_id), now=moment) for saga_id in ("a", "b", "c")]
            correlation_ids = ["short", "l" * 200, "due"]
            sagas[2] = following(sagas[2], timeout=timedelta(hours=1), now=moment)
            await write(store.insert(NAME, *each) for each in zip(correlation_ids, sagas, strict=True))
            first = members(admin, prefix)
            for second in range(1, 4):
                later = moment + timedelta(seconds=second)
                expected = [saga.metadata.version for saga in sagas]
                sagas = [following(saga, now=later) for saga in sagas]
                await write(store.update(NAME, *each) for each in zip(sagas, expected, strict=True))
                assert members(admin, prefix) == first
                usual, other, due = (parse_record(admin.get(key(prefix, f"s:{saga_id}"))) for saga_id in "abc")
                for saga, record in zip(sagas, (usual, other, due), strict=True):
                    assert record.created_at.decode() == text_of_moment(saga.metadata.created_at)
                    assert record.updated_at.decode() == text_of_moment(later)
                assert (usual.version, usual.due_at, usual.expiry, usual.flags) == (
                    *(other.version, other.due_at, other.expiry, other.flags),
                )
                assert due.due_at
                assert [each.correlation_id.decode() for each in (usual, other, due)] == correlation_ids
            assert [letter for letter, _ in first] == ["d", "n", "n", "n", "r", "r", "r"]
            found = (await store.find(SagaFilter(updated_after=moment, order="stalest"))).items
            assert [record.state for record in found] == sagas

    asyncio.run(run())


def test_what_is_usual_of_the_new_state_but_not_of_the_old_one(url, prefix, admin):
    """An update is a usual one where the saga that is there was what it will be, too."""

    async def run():
        async with store_on(url, prefix, completed_ttl=timedelta(hours=1)) as store:
            await store.create_schema()
            olds = {
                "timeout": {"timeout": timedelta(hours=1)},
                "outbox": {"outbox": ({"m": 1},)},
                "archived": {"archived_at": datetime.now(UTC)},
                "completed": {"is_completed": True},
            }
            news = {
                "timeout": {"timeout": None},
                "outbox": {"outbox": ()},
                "archived": {"archived_at": None},
                "completed": {"is_completed": False},
            }
            for name, changes in olds.items():
                saga = following(state(name), **changes)
                await store.insert(NAME, f"order-{name}", saga)
                await store.update(NAME, following(saga, **news[name]), 1)
                record = parse_record(admin.get(key(prefix, f"s:{name}")))
                assert (record.due_at, record.flags, record.expiry) == (b"", b"", b"")
                assert admin.pttl(key(prefix, f"s:{name}")) == admin.pttl(key(prefix, f"c:order-{name}")) == -1
            assert {letter for letter, _ in members(admin, prefix)} == {"n", "r"}
            assert await store.count(SagaFilter(saga_name=NAME, completed=False)) == len(olds)

    asyncio.run(run())


WRITES = {
    "insert": {"exists", "zadd", "set"},
    "update": {"getrange", "zadd", "zrem", "set"},
    "complete": {"getrange", "exists", "zadd", "zrem", "pexpireat", "set"},
    "reopen": {"getrange", "exists", "zadd", "zrem", "persist", "set"},
    "delete": {"getrange", "exists", "zrem", "get", "del"},
}


@pytest.mark.parametrize("denied", sorted(set.union(*WRITES.values())))
def test_a_write_that_a_right_forbids_changes_nothing(url, prefix, admin, denied):
    """A script is not undone when a command in the middle of it is refused; ours undoes what it did itself."""

    async def run():
        async with store_on(url, prefix, completed_ttl=timedelta(hours=1)) as store:
            await store.create_schema()
            running, ending, deleted = state("running"), state("ending"), state("deleted")
            ended = following(state("ended"), is_completed=True)
            for number, saga in enumerate((running, ending, deleted, ended)):
                await store.insert(NAME, f"order-{number}", saga)
        user = f"user_{prefix}"
        admin.execute_command("ACL", "SETUSER", user, "on", ">pass", f"~{prefix}*", "+@all", f"-{denied}")
        try:
            address = url.replace("redis://", f"redis://{user}:pass@")
            async with store_on(address, prefix, completed_ttl=timedelta(hours=1)) as store:
                writes = {
                    "insert": lambda: store.insert(NAME, "order-new", state("new")),
                    "update": lambda: store.update(NAME, following(running), 0),
                    "complete": lambda: store.update(NAME, following(ending, is_completed=True), 0),
                    "reopen": lambda: store.update(NAME, following(ended, is_completed=False), 1),
                    "delete": lambda: store.delete(NAME, "deleted", 0),
                }
                for name, write in writes.items():
                    before = everything(admin, prefix)
                    if denied in WRITES[name]:
                        with pytest.raises(SagaStoreError, match="lacks a right") as caught:
                            await write()
                        assert not caught.value.retryable
                        assert everything(admin, prefix) == before
                    else:
                        await write()
                        assert everything(admin, prefix) != before
        finally:
            admin.execute_command("ACL", "DELUSER", user)

    asyncio.run(run())


@pytest.mark.parametrize("usual", [True, False])
def test_a_refused_neighbour_in_a_group_spoils_no_other(url, prefix, admin, usual):
    async def run():
        async with store_on(url, prefix) as store:
            await store.create_schema()
            sagas = {saga_id: state(saga_id) for saga_id in "abcd"}
            for saga_id, saga in sagas.items():
                await store.insert(NAME, f"order-{saga_id}", saga)
            admin.delete(key(prefix, "s:b"))
            admin.lpush(key(prefix, "s:b"), "not of the store")
            # What gives a saga another created_at is no usual write.
            news = [following(saga) if usual else state(saga_id, 1) for saga_id, saga in sagas.items()]
            outcomes = await asyncio.gather(*(store.update(NAME, new, 0) for new in news), return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [type(None), SchemaError, type(None), type(None)]
            assert [(await store.get_by_id(NAME, saga_id)).metadata.version for saga_id in "acd"] == [1, 1, 1]

    asyncio.run(run())


class Watched:
    """What a server is asked, and what its scripts do; use it with ``with``."""

    def __init__(self, url):
        self._client = connected(url)

    def __enter__(self):
        self._monitor = self._client.__enter__().monitor().__enter__()
        return self

    def __exit__(self, *error):
        self._monitor.__exit__(*error)
        self._client.__exit__(*error)

    def seen(self, server):
        """The names of the commands since the last time: those of clients, and those of scripts."""
        mark = uuid4().hex
        server.ask("ECHO", mark)
        sent, scripted = [], []
        while (command := self._monitor.next_command())["command"] != f"ECHO {mark}":
            names = scripted if command["client_type"] == "lua" else sent
            names.append(command["command"].partition(" ")[0])
        return [name for name in sent if name != "CLIENT"], scripted  # what redis-py says of itself


def test_each_write_and_each_look_up_is_one_round_trip(server, prefix):
    async def run():
        async with store_on(server.url, prefix, completed_ttl=timedelta(hours=1)) as store:
            await store.create_schema()
            await store.insert(NAME, "order-0", state("0"))
            await store.get_by_correlation_id(NAME, "order-0")
            running = state("a")
            waiting = following(running, timeout=timedelta(hours=1), outbox=({"m": 1},))
            ended = following(waiting, is_completed=True)
            calls = [
                ("EVALSHA", lambda: store.insert(NAME, "order-1", running)),
                ("EVALSHA", lambda: store.update(NAME, waiting, 0)),
                ("EVALSHA", lambda: store.update(NAME, ended, 1)),
                ("EVALSHA", lambda: store.update(NAME, following(ended, is_completed=False), 2)),
                ("GET", lambda: store.get_by_id(NAME, "a")),
                ("GET", lambda: store.get_by_id(NAME, "nothing")),
                ("EVALSHA", lambda: store.get_by_correlation_id(NAME, "order-1")),
                ("EVALSHA", lambda: store.get_by_correlation_id(NAME, "nothing")),
                ("EVALSHA", lambda: store.delete(NAME, "a", 3)),
            ]
            with Watched(server.url) as watched:
                for command, call in calls:
                    watched.seen(server)
                    await call()
                    assert watched.seen(server)[0] == [command]
                for write in (
                    lambda number: store.insert(NAME, f"c{number}", state(f"i{number}")),
                    lambda number: store.update(NAME, state(f"i{number}", 1), 0),
                    lambda number: store.get_by_id(NAME, f"i{number}"),
                    lambda number: store.get_by_correlation_id(NAME, f"c{number}"),
                ):
                    await asyncio.gather(*(write(number) for number in range(15)))
                    assert len(watched.seen(server)[0]) == 2  # the first caller is alone, the others are a group
                    await asyncio.gather(*(write(number) for number in range(15, 45)))
                    assert len(watched.seen(server)[0]) == 3  # or two halves

    asyncio.run(run())


def test_a_usual_write_takes_few_commands_alone_and_in_a_group(server, prefix):
    """What makes the store quick: a lone update was a quarter slower than redis-py without it."""

    async def run():
        async with store_on(server.url, prefix, completed_ttl=timedelta(hours=1)) as store:
            await store.create_schema()
            await store.insert(NAME, "order-0", state("0"))
            sagas = [following(state(f"id-{number}"), timeout=timedelta(hours=1)) for number in range(5)]
            later = [following(saga) for saga in sagas]
            insert, update = ["ZSCORE", "EXISTS", "ZADD", "SET", "SET"], ["GETRANGE", "ZADD", "ZREM", "SET"]
            with Watched(server.url) as watched:
                lone = state("lone")
                await store.insert(NAME, "lone", lone)
                assert watched.seen(server)[1] == insert
                await store.update(NAME, following(lone), 0)
                assert watched.seen(server)[1] == update
                await asyncio.gather(*(store.insert(NAME, f"c{n}", state(f"new-{n}")) for n in range(5)))
                assert watched.seen(server)[1] == insert * 5
                for number, saga in enumerate(sagas):
                    await store.insert(NAME, f"order-{number + 1}", saga)
                watched.seen(server)
                await asyncio.gather(*(store.update(NAME, saga, 1) for saga in later))
                assert watched.seen(server)[1] == update * 5

    asyncio.run(run())


def test_scripts_come_back_after_a_flush(url, prefix, admin):
    async def run():
        async with store_on(url, prefix) as store:
            await store.create_schema()
            await store.insert(NAME, "order-1", state("a"))
            for version in range(3):
                admin.script_flush()
                await store.update(NAME, state("a", version + 1), version)
                assert (await store.get_by_correlation_id(NAME, "order-1")).metadata.version == version + 1
                assert await store.count(SagaFilter()) == 1
            assert admin.script_exists(WRITE.digest.decode(), READ.digest.decode()) == [True, True]

    asyncio.run(run())


@pytest.mark.parametrize(("seconds", "milliseconds"), [(1.0, b"1000"), (0.0501, b"51"), (1e-9, b"1")])
def test_waits_for_replicas_no_longer_than_asked_and_never_for_ever(seconds, milliseconds):
    assert Replication(2, seconds).commands() == [[b"WAIT", b"2", milliseconds]]  # 0 would be for ever


def test_waits_for_replicas_and_says_when_there_are_too_few(url, prefix):
    async def run():
        async with store_on(url, prefix, wait_replicas=1, wait_timeout=0.05) as store:
            await store.create_schema()
            with pytest.raises(OutcomeUnknownError, match="0 of 1 replicas"):
                await store.insert(NAME, "order-1", state("a"))
            outcomes = await asyncio.gather(
                store.update(NAME, state("a", 1), 0),
                store.update(NAME, state("a", 8), 7),
                return_exceptions=True,
            )
            # What was not written waits for nobody.
            assert [type(outcome) for outcome in outcomes] == [OutcomeUnknownError, ConcurrencyError]
            assert (await store.get_by_id(NAME, "a")).metadata.version == 1

    asyncio.run(run())


def test_a_full_server_refuses_writes_whole(server, prefix):
    async def run():
        async with store_on(server.url, prefix) as store:
            await store.create_schema()
            await store.insert(NAME, "order-1", state("a"))
            server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
            server.ask("CONFIG", "SET", "maxmemory", "1")
            with connected(server.url) as client:
                before = everything(client, prefix)
                for write in (store.insert(NAME, "order-2", state("b")), store.update(NAME, state("a", 1), 0)):
                    with pytest.raises(StoreUnavailableError, match="out of memory") as caught:
                        await write
                    assert type(caught.value) is StoreUnavailableError
                outcomes = await asyncio.gather(
                    *(store.insert(NAME, f"order-{number}", state(f"new-{number}")) for number in range(4)),
                    return_exceptions=True,
                )
                assert [type(outcome) for outcome in outcomes] == [StoreUnavailableError] * 4
                assert everything(client, prefix) == before
            assert await store.get_by_id(NAME, "a") is not None
            await store.delete(NAME, "a")
            server.ask("CONFIG", "SET", "maxmemory", "0")
            await store.insert(NAME, "order-1", state("a"))

    asyncio.run(run())


def test_a_pointer_without_its_saga_is_free_and_a_saga_without_its_pointer_is_whole_again(url, prefix, admin):
    """As an eviction leaves them."""

    async def run():
        async with store_on(url, prefix, completed_ttl=timedelta(hours=1)) as store:
            await store.create_schema()
            await store.insert(NAME, "order-1", state("a"))
            admin.delete(key(prefix, "s:a"))
            assert await store.get_by_correlation_id(NAME, "order-1") is None
            await store.insert(NAME, "order-1", state("b"))
            assert (await store.get_by_correlation_id(NAME, "order-1")).metadata.saga_id == "b"
            admin.delete(key(prefix, "c:order-1"))
            ended = following(state("b"), is_completed=True)
            await store.update(NAME, ended, 0)
            assert (await store.get_by_correlation_id(NAME, "order-1")).metadata.version == 1
            assert admin.pttl(key(prefix, "c:order-1")) > 0
            admin.delete(key(prefix, "c:order-1"))
            await store.delete(NAME, "b", 1)
            assert await store.get_by_id(NAME, "b") is None
            await store.insert(NAME, "order-1", state("c"))
            await store.insert(NAME, "order-2", state("d"))
            admin.set(key(prefix, "c:order-1"), "d")  # another saga's by now
            assert await store.get_by_correlation_id(NAME, "order-1") is None
            with pytest.raises(DuplicateSagaError):
                await store.insert(NAME, "order-2", state("e"))

    asyncio.run(run())


def test_a_burst_of_first_calls_uses_few_connections(server, prefix):
    async def run():
        async with RedisSagaStore(server.url, prefix=prefix, max_connections=3) as store:
            await store.create_schema()
        async with RedisSagaStore(server.url, prefix=prefix, max_connections=3) as store:
            with connected(server.url) as client:
                await asyncio.gather(
                    *(store.insert(f"Saga{n % 7}", f"order-{n}", state(f"id-{n}")) for n in range(300)),
                    *(store.count(SagaFilter()) for _ in range(20)),
                )
                assert len(client.client_list()) <= 4
            assert await store.count(SagaFilter()) == 300

    asyncio.run(run())


def test_pending_outboxes_are_found_stalest_first_without_looking_at_other_sagas(server, prefix):
    """As the bus looks for them."""

    async def run():
        async with store_on(server.url, prefix) as store:
            await store.create_schema()
            await asyncio.gather(*(store.insert(NAME, f"c{n}", state(f"quiet-{n}")) for n in range(300)))
            for number in (2, 0, 1):
                saga = state(f"busy-{number}")
                await store.insert(NAME, f"busy-{number}", saga)
                saga = following(saga, outbox=({"m": 1},))
                await store.update(NAME, saga, 0)
                await store.update(NAME, following(saga), 1)  # which still has it
            where = SagaFilter(saga_name=NAME, outbox_pending=True, updated_before=datetime.now(UTC), order="stalest")
            with connected(server.url) as client:
                client.config_resetstat()
                page = await store.find(where, limit=2)
                done = client.info("commandstats")
                assert "cmdstat_getrange" not in done  # the index says it all: no saga is looked at and then read
                assert 2 <= done["cmdstat_get"]["calls"] <= 3
            assert [record.correlation_id for record in page.items] == ["busy-2", "busy-0"]
            rest = await store.find(where, limit=2, cursor=page.cursor)
            assert ([record.correlation_id for record in rest.items], rest.cursor) == (["busy-1"], None)
            assert await store.count(where) == 3
            newest = await store.find(SagaFilter(saga_name=NAME, outbox_pending=True))
            assert [record.correlation_id for record in newest.items] == ["busy-1", "busy-0", "busy-2"]

    asyncio.run(run())

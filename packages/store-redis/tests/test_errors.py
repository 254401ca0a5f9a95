"""The one table of errors, and real ones of a server: busy, loading, a replica, wrong passwords, no rights."""

import asyncio
import threading
import time

import pytest
from redis import exceptions
from redis.asyncio import Redis

from providers.redis import connected, private_redis
from redis_helpers import NAME, state, store_on
from saga_bus.store import (
    OutcomeUnknownError,
    SagaFilter,
    SagaStoreError,
    SchemaError,
    StateTooLargeError,
    StoreClosedError,
    StoreUnavailableError,
)
from saga_bus.store_redis import RedisSagaStore
from saga_bus.store_redis._errors import code_of, error_of_reply, translated
from saga_bus.store_redis._servers import _ARGUMENTS

REFUSED = [
    (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), StoreUnavailableError),
    (exceptions.ReadOnlyError("You can't write against a read only replica."), StoreUnavailableError),
    (exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), StoreUnavailableError),
    (exceptions.ResponseError("BUSY Redis is busy running a script."), StoreUnavailableError),
    (exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"), StoreUnavailableError),
    (exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."), StoreUnavailableError),
    (exceptions.ResponseError("UNBLOCKED force unblock from blocking operation"), StoreUnavailableError),
    (exceptions.ClusterDownError("The cluster is down"), StoreUnavailableError),
    (exceptions.MasterDownError("Link with MASTER is down"), StoreUnavailableError),
    (exceptions.SlotNotCoveredError("Slot 1 not covered"), StoreUnavailableError),
    (exceptions.TryAgainError("Multiple keys request during rehashing of slot"), StoreUnavailableError),
    (exceptions.AskError("1 127.0.0.1:7000"), StoreUnavailableError),
    (exceptions.MovedError("1 127.0.0.1:7000"), StoreUnavailableError),
    (exceptions.ResponseError("Script attempted to access a non local key in a cluster node"), StoreUnavailableError),
    (exceptions.ConnectionError("max number of clients reached"), StoreUnavailableError),
    (exceptions.MaxConnectionsError("Too many connections"), StoreUnavailableError),
    (exceptions.AuthenticationError("invalid username-password pair or user is disabled."), SagaStoreError),
    (exceptions.AuthenticationError("Authentication required."), SagaStoreError),
    (exceptions.NoPermissionError("this user has no permissions to run the 'evalsha' command"), SagaStoreError),
    (exceptions.ResponseError("The user executing the script can't run this command or subcommand"), SagaStoreError),
    (exceptions.ClusterCrossSlotError("Keys in request don't hash to the same slot"), SagaStoreError),
    (exceptions.ResponseError("WRONGTYPE Operation against a key"), SchemaError),
    (exceptions.ResponseError("unknown command"), SagaStoreError),
]


@pytest.mark.parametrize(("error", "kind"), REFUSED, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("sent", [False, True])
def test_what_the_server_refused_was_not_applied(error, kind, sent):
    ours = translated(error, sent=sent)
    assert type(ours) is kind
    assert ours.retryable == (kind is StoreUnavailableError)


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ConnectionError("Connection closed by server."),
        exceptions.TimeoutError("Timeout reading from socket"),
        ConnectionResetError("reset"),
        TimeoutError(),
        OSError("gone"),
        exceptions.InvalidResponse("Protocol Error"),
    ],
)
def test_a_lost_connection_is_an_unknown_outcome_once_a_write_was_sent(error):
    assert type(translated(error, sent=True)) is OutcomeUnknownError
    assert type(translated(error, sent=False)) is StoreUnavailableError


def test_a_connection_of_sentinels_that_met_a_replica():
    error = exceptions.ConnectionError("The previous master is now a slave")
    error.__context__ = exceptions.ReadOnlyError("You can't write against a read only replica.")
    assert type(translated(error, sent=True)) is StoreUnavailableError


def test_texts_of_scripts_mean_what_replies_mean():
    assert code_of("-OOM command not allowed") == code_of("OOM command not allowed") == "OOM"
    assert type(error_of_reply("READONLY You can't write against a read only replica.")) is StoreUnavailableError
    assert code_of("no code at all") == ""


def test_a_busy_server(server, prefix):
    async def run():
        async with store_on(server.url, prefix) as store:
            await store.create_schema()
            await store.insert(NAME, "order-1", state("a"))
            server.ask("CONFIG", "SET", "busy-reply-threshold", "1")

            def spin():
                with connected(server.url) as client, pytest.raises(exceptions.ResponseError):
                    client.eval("while true do end", 0)

            spinner = threading.Thread(target=spin)
            spinner.start()
            try:
                while True:
                    try:
                        server.ask("PING")
                    except exceptions.ResponseError:
                        break
                    await asyncio.sleep(0.01)
                for call in (
                    store.insert(NAME, "order-2", state("b")),
                    store.update(NAME, state("a", 1), 0),
                    store.get_by_id(NAME, "a"),
                    store.get_by_correlation_id(NAME, "order-1"),
                    store.count(SagaFilter()),
                ):
                    with pytest.raises(StoreUnavailableError, match="busy") as caught:
                        await call
                    assert type(caught.value) is StoreUnavailableError
            finally:
                server.ask("SCRIPT", "KILL")
                spinner.join()
            assert (await store.get_by_id(NAME, "a")).metadata.version == 0

    asyncio.run(run())


def test_a_server_that_loads_its_data(prefix):
    with private_redis(("--appendonly", "yes")) as loading:

        async def fill():
            async with store_on(loading.url, prefix) as store:
                await store.create_schema()
                await asyncio.gather(*(store.insert(NAME, f"c{n}", state(f"i{n}")) for n in range(3000)))

        asyncio.run(fill())
        loading.kill()
        loading.launch("--key-load-delay", "500")  # it listens to us after every 1,024 commands

        async def run():
            async with store_on(loading.url, prefix) as store:
                while True:
                    with pytest.raises(StoreUnavailableError) as caught:
                        await store.get_by_id(NAME, "i1")
                    if "loading" in str(caught.value):
                        break
                    await asyncio.sleep(0.01)  # it does not listen yet
                with pytest.raises(StoreUnavailableError, match="loading") as caught:
                    await store.insert(NAME, "new", state("new"))
                assert type(caught.value) is StoreUnavailableError

        asyncio.run(run())
        loading.kill()


def test_a_replica_takes_no_writes(server, prefix):
    async def run():
        async with store_on(server.url, prefix) as store:
            await store.create_schema()
            await store.insert(NAME, "order-1", state("a"))
            server.ask("REPLICAOF", "127.0.0.1", "1")
            try:
                for writes in (1, 3):
                    outcomes = await asyncio.gather(
                        *(store.insert(NAME, f"c{n}", state(f"i{n}")) for n in range(writes)),
                        *(store.update(NAME, state("a", 1), 0) for _ in range(writes)),
                        store.delete(NAME, "a"),
                        return_exceptions=True,
                    )
                    assert {type(outcome) for outcome in outcomes} == {StoreUnavailableError}
                    assert all("replica" in str(outcome) for outcome in outcomes)
            finally:
                server.ask("REPLICAOF", "NO", "ONE")
            assert (await store.get_by_id(NAME, "a")).metadata.version == 0
            await store.update(NAME, state("a", 1), 0)

    asyncio.run(run())


def test_wrong_passwords_and_missing_rights_tell_no_secret(server, prefix):
    async def run():
        server.ask("ACL", "SETUSER", "weak", "on", ">r1ght-s3cret", "~elsewhere*", "+@all")
        server.ask("ACL", "SETUSER", "mute", "on", ">r1ght-s3cret", "~*", "+@all", "-evalsha", "-eval")
        async with store_on(server.url, prefix) as store:
            await store.create_schema()
        for user, password, says in (
            ("weak", "wr0ng-s3cret", "refused the user or the password"),
            ("nobody", "wr0ng-s3cret", "refused the user or the password"),
            ("weak", "r1ght-s3cret", "lacks a right"),
            ("mute", "r1ght-s3cret", "lacks a right"),
        ):
            async with store_on(server.url.replace("redis://", f"redis://{user}:{password}@"), prefix) as store:
                for _ in range(2):
                    with pytest.raises(SagaStoreError, match=says) as caught:
                        await store.insert(NAME, "order-1", state("a"))
                    assert not caught.value.retryable
                    assert "s3cret" not in f"{caught.value!r} {caught.value} {caught.value.__cause__!r} {store!r}"
        server.ask("CONFIG", "SET", "requirepass", "r1ght-s3cret")
        try:
            async with store_on(server.url, prefix) as store:
                with pytest.raises(SagaStoreError, match="password") as caught:
                    await store.insert(NAME, "order-1", state("a"))
                assert not caught.value.retryable
        finally:
            with connected(server.url.replace("redis://", "redis://:r1ght-s3cret@")) as client:
                client.config_set("requirepass", "")

    asyncio.run(run())


def test_too_few_replicas_is_unavailable_and_nothing_is_written(server, prefix):
    async def run():
        async with store_on(server.url, prefix) as store:
            await store.create_schema()
            server.ask("CONFIG", "SET", "min-replicas-to-write", "1")
            try:
                with pytest.raises(StoreUnavailableError, match="replicas") as caught:
                    await store.insert(NAME, "order-1", state("a"))
                assert type(caught.value) is StoreUnavailableError
            finally:
                server.ask("CONFIG", "SET", "min-replicas-to-write", "0")
            assert await store.get_by_id(NAME, "a") is None

    asyncio.run(run())


def test_a_state_that_is_too_large_is_refused_before_it_is_sent(prefix):
    async def run():
        store = RedisSagaStore("redis://127.0.0.1:1", prefix=prefix, max_state_bytes=100)
        with pytest.raises(StateTooLargeError) as caught:
            await store.insert(NAME, "order-1", state("a"))
        assert (caught.value.limit, caught.value.size > 100) == (100, True)
        await store.close()
        with pytest.raises(StoreClosedError):
            await store.get_by_id(NAME, "a")

    asyncio.run(run())


def test_a_given_pool_that_is_used_up(server, prefix):
    async def run():
        client = Redis.from_url(server.url, max_connections=1)
        store = RedisSagaStore(client=client, prefix=prefix)
        await store.create_schema()
        held = await client.connection_pool.get_connection(*_ARGUMENTS)
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            await store.get_by_id(NAME, "a")
        assert time.monotonic() - started < 5
        await client.connection_pool.release(held)
        assert await store.get_by_id(NAME, "a") is None
        await store.close()
        await client.aclose()

    asyncio.run(run())

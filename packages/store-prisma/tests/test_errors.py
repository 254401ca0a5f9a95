"""What goes wrong in the client, its engine or the database, each really made to happen."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from saga_bus.store import (
    DuplicateSagaError,
    InvalidSagaError,
    OutcomeUnknownError,
    SagaFilter,
    SagaState,
    SagaStoreError,
    SchemaError,
    StoreUnavailableError,
    UntypedSagaState,
)
from saga_bus.store_prisma import PrismaSagaStore, create_schema, drop_schema
from saga_bus.store_prisma._errors import taken_key, translated

NAME = "OrderSaga"


@asynccontextmanager
async def tabled(client, model="saga0"):
    """A store on a table that is there for the test."""
    await create_schema(client, model=model)
    try:
        yield PrismaSagaStore(prisma=client, model=model)
    finally:
        await drop_schema(client, model=model)


def fresh():
    return UntypedSagaState()


async def error_of(call, kind):
    with pytest.raises(kind) as caught:
        await call
    assert type(caught.value) is kind, caught.value
    assert caught.value.__cause__ is not None
    return caught.value


# -- the client --------------------------------------------------------------------------------------------


def test_a_client_that_is_not_connected(on_sqlite):
    async def main():
        client = on_sqlite.new()
        store = PrismaSagaStore(prisma=client, model="saga0")
        for call in (
            store.get_by_id(NAME, "1"),
            store.insert(NAME, "1", fresh()),
            store.find(SagaFilter()),
            store.create_schema(),
            store.ping(),
        ):
            with pytest.raises(StoreUnavailableError, match=r"not connected.*async with"):
                await call
        assert not client.is_connected()
        async with store:  # it is of use all the same, once somebody connects it
            await store.create_schema()
            await store.insert(NAME, "1", fresh())
        assert not client.is_connected()

    asyncio.run(main())


def test_a_client_that_its_owner_disconnects(on_sqlite):
    async def main():
        async with on_sqlite.connected() as client:
            store = PrismaSagaStore(prisma=client, model="saga0")
            await store.create_schema()
            await client.disconnect()
            error = await error_of(store.get_by_id(NAME, "1"), StoreUnavailableError)
            assert "not connected" in str(error)
            await error_of(store.insert(NAME, "1", fresh()), StoreUnavailableError)
            await client.connect()
            await store.insert(NAME, "1", fresh())

    asyncio.run(main())


def test_the_store_leaves_a_client_connected_that_was_connected(on_sqlite):
    async def main():
        async with on_sqlite.connected() as client:
            async with PrismaSagaStore(prisma=client, model="saga0") as store:
                await store.create_schema()
            assert client.is_connected()

    asyncio.run(main())


def test_an_engine_that_cannot_start(on_sqlite, monkeypatch, tmp_path):
    monkeypatch.setenv("PRISMA_QUERY_ENGINE_BINARY", str(tmp_path / "missing"))

    async def main():
        async with PrismaSagaStore(prisma=on_sqlite.new(), model="saga0"):
            pass

    with pytest.raises(SagaStoreError, match="prisma py fetch") as caught:
        asyncio.run(main())
    assert not caught.value.retryable


def test_a_client_without_the_model(on_sqlite):
    with pytest.raises(SchemaError, match=r"no model 'sagainstance'.*prisma generate"):
        PrismaSagaStore(prisma=on_sqlite.new())
    with pytest.raises(SchemaError, match="no model 'connect'"):
        PrismaSagaStore(prisma=on_sqlite.new(), model="connect")


def test_what_is_no_client(on_sqlite):
    class Synchronous:
        def is_connected(self):
            return True

        is_transaction = connect = disconnect = query_raw = execute_raw = tx = is_connected

    for given, said in (
        (object(), "not object"),
        (on_sqlite.package.Prisma, "not Prisma"),
        (Synchronous(), 'interface = "asyncio"'),
    ):
        with pytest.raises(InvalidSagaError, match=said):
            PrismaSagaStore(prisma=given, model="saga0")
    for arguments in ({}, {"url": "prisma://", "prisma": on_sqlite.new()}):
        with pytest.raises(InvalidSagaError, match="either"):
            PrismaSagaStore(**arguments)


def test_bind_wants_a_transaction(on_sqlite):
    store = PrismaSagaStore(prisma=on_sqlite.new(), model="saga0")
    with pytest.raises(InvalidSagaError, match="tx"):
        store.bind(on_sqlite.new())
    with pytest.raises(InvalidSagaError, match="bind's argument"):
        store.bind(object())


NOT_GENERATED = """
import asyncio, prisma
from saga_bus.store import SchemaError, open_store

async def main():
    try:
        async with open_store("prisma://"):
            raise SystemExit("opened")
    except SchemaError as error:
        assert "prisma generate" in str(error), error

asyncio.run(main())
"""


def test_a_client_that_is_not_generated():
    """The distribution `prisma` as it is installed is no client yet."""
    done = subprocess.run([sys.executable, "-c", NOT_GENERATED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- the engine --------------------------------------------------------------------------------------------


def test_an_engine_that_was_killed(on_sqlite):
    async def main():
        async with on_sqlite.connected() as client:
            store = PrismaSagaStore(prisma=client, model="saga0")
            await store.create_schema()
            process = client._engine.process
            process.kill()
            process.wait()
            for call in (store.get_by_id(NAME, "1"), store.insert(NAME, "1", fresh())):
                error = await error_of(call, StoreUnavailableError)
                assert "the query engine is gone" in str(error)
            await client.disconnect()
            await client.connect()
            await store.insert(NAME, "1", fresh())

    asyncio.run(main())


def test_an_engine_that_is_killed_during_a_write(on_private_postgres, private_postgres):
    """The write waits for a lock in the database, so it was sent for sure."""

    async def main():
        async with (
            on_private_postgres.connected() as client,
            on_private_postgres.connected() as other,
            tabled(other),
        ):
            store = PrismaSagaStore(prisma=client, model="saga0")
            state = fresh()
            await store.insert(NAME, "1", state)
            async with other.tx() as holder:
                await holder.execute_raw('SELECT 1 FROM "Saga 0 é" FOR UPDATE')
                state.metadata = state.metadata.next()
                write = asyncio.create_task(store.update(NAME, state, 0))
                await waiting(other, 1)
                client._engine.process.kill()
                error = await error_of(write, OutcomeUnknownError)
                assert error.retryable

    asyncio.run(main())


async def outcome(call):
    return (await asyncio.gather(call, return_exceptions=True))[0]


async def waiting(client, number):
    """Wait until some statements are in the hands of the server."""
    sql = "SELECT count(*)::int AS n FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
    async with asyncio.timeout(30):
        while (await client.query_raw(sql))[0]["n"] < number:
            pass  # each look is a round trip


# -- the database ------------------------------------------------------------------------------------------


def test_a_database_that_is_down(on_private_postgres, private_postgres):
    async def main():
        async with on_private_postgres.connected() as client, tabled(client) as store:
            await store.insert(NAME, "1", fresh())
            private_postgres.kill()
            try:
                await error_of(store.get_by_correlation_id(NAME, "1"), StoreUnavailableError)
                for call in (store.insert(NAME, "2", fresh()), store.ping(), store.find(SagaFilter())):
                    with pytest.raises(StoreUnavailableError):
                        await call
            finally:
                private_postgres.start()
            async with asyncio.timeout(30):
                while True:  # the pool may have more than one connection that it takes for a good one
                    try:
                        assert await store.get_by_correlation_id(NAME, "1") is not None
                    except StoreUnavailableError:
                        continue
                    break

    asyncio.run(main())


def test_a_database_that_dies_during_a_write(on_private_postgres, private_postgres):
    async def main():
        async with on_private_postgres.connected() as client, on_private_postgres.connected() as other:
            await create_schema(other, model="saga1")
            store = PrismaSagaStore(prisma=client, model="saga1")
            state = fresh()
            await store.insert(NAME, "1", state)
            manager = other.tx()
            holder = await manager.start()
            await holder.execute_raw('SELECT 1 FROM "Saga 1 é" FOR UPDATE')
            state.metadata = state.metadata.next()
            write = asyncio.create_task(store.update(NAME, state, 0))
            await waiting(other, 1)
            private_postgres.kill()
            try:
                await error_of(write, OutcomeUnknownError)
            finally:
                private_postgres.start()
        async with on_private_postgres.connected() as client:
            await drop_schema(client, model="saga1")

    asyncio.run(main())


def test_a_pool_without_a_free_connection(on_postgres):
    async def main():
        narrow = f"{on_postgres.url}?connection_limit=1&pool_timeout=1"
        async with on_postgres.connected() as other, tabled(other), on_postgres.connected(narrow) as client:
            store = PrismaSagaStore(prisma=client, model="saga0")
            async with client.tx(timeout=timedelta(seconds=30)):
                for call in (store.get_by_id(NAME, "1"), store.insert(NAME, "1", fresh())):
                    error = await error_of(call, StoreUnavailableError)
                    assert "pool" in str(error)
                with pytest.raises(StoreUnavailableError, match="in time"):
                    await PrismaSagaStore(prisma=client, model="saga1").create_schema()
            await store.insert(NAME, "1", fresh())

    asyncio.run(main())


def test_a_transaction_that_expired(on_postgres, on_sqlite):
    async def main(clients):
        async with clients.connected() as client, tabled(client) as store:
            manager = client.tx(timeout=timedelta(milliseconds=200))
            bound = store.bind(await manager.start())
            await bound.insert(NAME, "1", fresh())
            async with asyncio.timeout(30):
                while not isinstance(error := await outcome(bound.get_by_correlation_id(NAME, "1")), Exception):
                    pass
            assert type(error) is StoreUnavailableError
            assert "expired" in str(error)
            error = await error_of(bound.insert(NAME, "2", fresh()), StoreUnavailableError)
            assert "expired" in str(error)
            assert await store.count(SagaFilter()) == 0

    asyncio.run(main(on_postgres))
    asyncio.run(main(on_sqlite))


def test_a_transaction_that_has_ended(on_sqlite):
    async def main():
        async with on_sqlite.connected() as client, tabled(client) as store:
            async with client.tx() as transaction:
                bound = store.bind(transaction)
                await bound.insert(NAME, "1", fresh())
            with pytest.raises(StoreUnavailableError, match="has ended"):
                await bound.get_by_correlation_id(NAME, "1")
            assert await store.get_by_correlation_id(NAME, "1") is not None

    asyncio.run(main())


def test_a_write_conflict(on_private_postgres):
    """A serialization failure is for the caller of the transaction to begin again."""

    async def main():
        async with on_private_postgres.connected() as client, tabled(client) as store:
            state = fresh()
            await store.insert(NAME, "1", state)
            manager = client.tx()
            transaction = await manager.start()
            await transaction.execute_raw("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            bound = store.bind(transaction)
            found = await bound.get_by_correlation_id(NAME, "1")
            state.metadata = found.metadata = found.metadata.next()
            await store.update(NAME, state, 0)
            error = await error_of(bound.update(NAME, found, 0), StoreUnavailableError)
            assert "conflict" in str(error)
            await manager.rollback()

    asyncio.run(main())


def test_a_role_without_rights(on_private_postgres):
    async def main():
        async with on_private_postgres.connected() as client, tabled(client):
            await client.execute_raw("CREATE ROLE reader LOGIN PASSWORD 's3cret-word'")
            try:
                url = on_private_postgres.url.replace("postgres@", "reader:s3cret-word@")
                async with on_private_postgres.connected(url) as weak:
                    store = PrismaSagaStore(prisma=weak, model="saga0")
                    with pytest.raises(SagaStoreError, match="lacks a right") as caught:
                        await store.insert(NAME, "1", fresh())
                    assert not caught.value.retryable
                    assert "s3cret" not in f"{caught.value!r} {caught.value.__cause__!r} {store!r}"
            finally:
                await client.execute_raw("DROP ROLE reader")

    asyncio.run(main())


# -- duplicates and conflicts ------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["on_sqlite", "on_postgres"])
def test_which_key_is_taken(request, place):
    clients = request.getfixturevalue(place)

    async def main():
        async with clients.connected() as client, tabled(client) as store:
            state = fresh()
            await store.insert(NAME, "1", state)
            for correlation_id, again, conflict in (("2", state, "saga_id"), ("1", fresh(), "correlation_id")):
                with pytest.raises(DuplicateSagaError) as caught:
                    await store.insert(NAME, correlation_id, again)
                assert caught.value.conflict == conflict

    asyncio.run(main())


def test_a_unique_key_of_the_users_own(on_sqlite):
    """It is no saga that is there twice, and it does not pass for one."""

    async def main():
        async with on_sqlite.connected() as client, tabled(client) as store:
            await client.execute_raw('CREATE UNIQUE INDEX own ON "Saga 0 é" (is_completed)')
            await store.insert(NAME, "1", fresh())
            error = await error_of(store.insert(NAME, "2", fresh()), SagaStoreError)
            assert "none of the store's" in str(error)
            assert not error.retryable

    asyncio.run(main())


def failed(name, text="", code=None, **meta):
    """An error as a generated client raises it, from its own copy of the classes."""
    base = type("DataError", (Exception,), {})
    error = type(name, (base,), {})(text) if code else type(name, (Exception,), {})(text)
    error.code, error.meta = code, meta
    return error


@pytest.mark.parametrize(
    ("error", "read", "written"),
    [
        (failed("DataError", code="P1001"), StoreUnavailableError, StoreUnavailableError),
        (failed("DataError", code="P1017"), StoreUnavailableError, OutcomeUnknownError),
        (
            failed("DataError", "Operations timed out after `N/A`", code="P1008"),
            StoreUnavailableError,
            StoreUnavailableError,
        ),
        (failed("DataError", "Socket timeout", code="P1008"), StoreUnavailableError, OutcomeUnknownError),
        (failed("DataError", code="P2024"), StoreUnavailableError, StoreUnavailableError),
        (failed("DataError", code="P2034"), StoreUnavailableError, StoreUnavailableError),
        (failed("DataError", code="P2037"), StoreUnavailableError, StoreUnavailableError),
        (failed("TableNotFoundError", code="P2021"), SchemaError, SchemaError),
        (failed("DataError", code="P2022"), SchemaError, SchemaError),
        (failed("DataError", code="P1000"), SagaStoreError, SagaStoreError),
        (failed("DataError", code="P4711"), SagaStoreError, SagaStoreError),
        (
            failed("DataError", 'PostgresError { code: "57P01", ...', code="x"),
            StoreUnavailableError,
            OutcomeUnknownError,
        ),
        (
            failed("DataError", 'PostgresError { code: "53300", ...', code="x"),
            StoreUnavailableError,
            StoreUnavailableError,
        ),
        (failed("DataError", "MysqlError { code: 1205, ...", code="x"), StoreUnavailableError, StoreUnavailableError),
        (failed("TransactionExpiredError"), StoreUnavailableError, StoreUnavailableError),
        (failed("TransactionError"), StoreUnavailableError, StoreUnavailableError),
        (failed("ConnectError"), StoreUnavailableError, StoreUnavailableError),
        (failed("PoolTimeout"), StoreUnavailableError, StoreUnavailableError),
        (failed("TransportError"), StoreUnavailableError, OutcomeUnknownError),
        (failed("EngineRequestError", "500: ?"), StoreUnavailableError, OutcomeUnknownError),
        (ValueError("no JSON"), StoreUnavailableError, OutcomeUnknownError),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'code', '')}" if isinstance(value, Exception) else "",
)
def test_the_meaning_of_errors_that_cannot_be_provoked_here(error, read, written):
    assert type(translated(error, writing=False)) is read
    assert type(translated(error, writing=True)) is written


def test_the_key_that_each_database_names():
    for target, key in (
        (["saga_name", "saga_id"], "saga_id"),
        (["saga_name", "correlation_id"], "correlation_id"),
        ("saga_instances_correlation_key", "correlation_id"),
        ("PRIMARY", None),
        (["UNIQUE constraint failed"], None),
        (None, None),
    ):
        assert taken_key(failed("UniqueViolationError", code="P2002", target=target)) == key


def test_an_error_of_the_users_type_is_not_swallowed(on_sqlite):
    """A delete that fails says so (absent is no failure)."""

    async def main():
        async with on_sqlite.connected() as client:
            store = PrismaSagaStore(prisma=client, model="saga0")
            with pytest.raises(SchemaError, match="create_schema"):
                await store.delete(NAME, "1")
            await store.create_schema()
            await store.delete(NAME, "1")

    asyncio.run(main())


class OrderState(SagaState, kw_only=True):
    note: str = ""


def test_a_cancelled_call_is_not_wrapped(on_sqlite):
    async def main():
        async with on_sqlite.connected() as client, tabled(client) as store:
            write = asyncio.create_task(store.insert(NAME, "1", OrderState(note="x" * 200_000)))
            await asyncio.sleep(0)
            write.cancel()
            with pytest.raises(asyncio.CancelledError):
                await write
            assert await store.count(SagaFilter()) in (0, 1)

    asyncio.run(main())

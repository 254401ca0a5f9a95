"""Every error of the tree, from a real server."""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from urllib.parse import urlsplit

import asyncpg
import pytest

from postgres_helpers import SAGA, OrderState, connected, follow, locked, new_table, store_on, with_user
from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
    InvalidSagaError,
    OutcomeUnknownError,
    SagaFilter,
    SagaNotFoundError,
    SagaStoreError,
    SchemaError,
    StateDecodeError,
    StateEncodeError,
    StateTooLargeError,
    StoreClosedError,
    StoreUnavailableError,
    open_store,
)
from saga_bus.store_postgres import PostgresSagaStore
from saga_bus.store_postgres._errors import sqlstate_of, translated


def raised(kind, work):
    """The error of exactly this type that some work ends with."""
    with pytest.raises(kind) as caught:
        asyncio.run(work)
    assert type(caught.value) is kind
    return caught.value


async def use(url, **options):
    async with PostgresSagaStore(url, **options) as store:
        await store.get_by_id(SAGA, "x")


def test_nobody_listens():
    error = raised(StoreUnavailableError, use("postgresql://bob:s3cret@127.0.0.1:1/x"))
    assert error.retryable
    assert isinstance(error.__cause__, OSError)


def test_a_store_that_could_not_open_opens_later(url):
    async def run():
        table = new_table()
        store = PostgresSagaStore("postgresql://bob@127.0.0.1:1/x", table=table)
        with pytest.raises(StoreUnavailableError):
            await store.count(SagaFilter())
        async with store_on(url, table=table):
            store._engine._connections._settings = PostgresSagaStore(url)._engine._connections._settings
            assert await store.count(SagaFilter()) == 0
            await store.close()

    asyncio.run(run())


def test_the_wrong_password_is_not_shown(server):
    error = raised(SagaStoreError, use(server.url_of("guarded", "wr0ng-s3cret")))
    assert sqlstate_of(error) == "28P01"
    assert not error.retryable
    assert "wr0ng-s3cret" not in f"{error!r} {error} {error.__cause__!r}"


def test_the_right_password_is_taken_and_never_shown(server):
    url = server.url_of("guarded", "r1ght-s3cret")
    assert "r1ght-s3cret" not in repr(PostgresSagaStore(url))
    error = raised(SchemaError, use(url))
    assert "r1ght-s3cret" not in f"{error!r}"


def test_there_is_no_such_database(url):
    error = raised(SagaStoreError, use(url.rpartition("/")[0] + "/nowhere"))
    assert "no such database" in str(error)


def test_the_table_is_missing(url):
    error = raised(SchemaError, use(url, table=new_table()))
    assert "create_schema()" in str(error)
    assert isinstance(error.__cause__, asyncpg.UndefinedTableError)


def test_a_role_without_rights(url):
    role = f"r_{uuid.uuid4().hex[:8]}"

    async def run():
        async with store_on(url) as store, connected(url) as connection:
            await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'r1ght-s3cret'")
            try:
                await use(with_user(url, role, "r1ght-s3cret"), table=store._table_name)
            finally:
                await connection.execute(f"DROP ROLE {role}")

    error = raised(SagaStoreError, run())
    assert sqlstate_of(error) == "42501"


def test_writes_on_a_read_only_server(url):
    async def run():
        async with (
            store_on(url) as store,
            asyncpg.create_pool(url, min_size=0, server_settings={"default_transaction_read_only": "on"}) as pool,
            PostgresSagaStore(pool=pool, table=store._table_name) as reader,
        ):
            assert any("read-only" in warning for warning in (await reader.ping()).warnings)
            assert await reader.get_by_id(SAGA, "x") is None
            await reader.insert(SAGA, "order-1", OrderState())

    assert sqlstate_of(raised(SagaStoreError, run())) == "25006"


def test_conflicts_keep_what_was_found(url):
    async def run():
        async with store_on(url) as store:
            state = OrderState()
            await store.insert(SAGA, "order-1", state)
            with pytest.raises(DuplicateSagaError) as duplicate:
                await store.insert(SAGA, "order-2", state)
            assert duplicate.value.conflict == "saga_id"
            with pytest.raises(DuplicateSagaError) as duplicate:
                await store.insert(SAGA, "order-1", OrderState())
            assert duplicate.value.conflict == "correlation_id"
            await store.update(SAGA, follow(state), 0)
            with pytest.raises(ConcurrencyError) as conflict:
                await store.update(SAGA, follow(state), 0)
            assert (conflict.value.expected_version, conflict.value.actual_version) == (0, 1)
            with pytest.raises(ConcurrencyError):
                await store.delete(SAGA, state.metadata.saga_id, 0)
            with pytest.raises(SagaNotFoundError):
                await store.update(SAGA, follow(OrderState()), 0)
            with pytest.raises(SagaNotFoundError):
                await store.delete(SAGA, "x", 0)

    asyncio.run(run())


def test_a_deadlock(url):
    async def run():
        async with store_on(url) as store:
            first, second = OrderState(), OrderState()
            await store.insert(SAGA, "order-1", first)
            await store.insert(SAGA, "order-2", second)

            async def both(one, other, done, wait):
                async with connected(url) as connection, connection.transaction():
                    bound = store.bind(connection)
                    await bound.update(SAGA, follow(one), 0)
                    done.set()
                    await wait.wait()
                    await bound.update(SAGA, follow(other), 0)

            a, b = asyncio.Event(), asyncio.Event()
            return await asyncio.gather(both(first, second, a, b), both(second, first, b, a), return_exceptions=True)

    outcomes = asyncio.run(run())
    (error,) = [outcome for outcome in outcomes if outcome is not None]
    assert type(error) is StoreUnavailableError
    assert sqlstate_of(error) == "40P01"


def test_a_serialization_failure_in_the_callers_transaction(url):
    async def run():
        async with store_on(url) as store, connected(url) as connection:
            state = OrderState()
            await store.insert(SAGA, "order-1", state)
            async with connection.transaction(isolation="repeatable_read"):
                bound = store.bind(connection)
                await bound.get_by_id(SAGA, state.metadata.saga_id)
                await store.update(SAGA, follow(state), 0)
                with pytest.raises(StoreUnavailableError) as caught:
                    await bound.update(SAGA, follow(state), 0)
                assert sqlstate_of(caught.value) == "40001"
                assert (await bound.get_by_id(SAGA, state.metadata.saga_id)).metadata.version == 0

    asyncio.run(run())


def test_a_lock_timeout(url):
    async def run():
        async with (
            store_on(url) as store,
            asyncpg.create_pool(url, min_size=0, server_settings={"lock_timeout": "20ms"}) as pool,
            PostgresSagaStore(pool=pool, table=store._table_name) as impatient,
        ):
            state = OrderState()
            await store.insert(SAGA, "order-1", state)
            async with locked(url, store, state.metadata.saga_id):
                for write in (
                    impatient.update(SAGA, follow(state), 0),
                    impatient.delete(SAGA, state.metadata.saga_id),
                ):
                    with pytest.raises(StoreUnavailableError) as caught:
                        await write
                    assert type(caught.value) is StoreUnavailableError
                    assert sqlstate_of(caught.value) == "55P03"
            await impatient.update(SAGA, follow(state), 0)

    asyncio.run(run())


def test_a_statement_timeout_of_the_server(url):
    async def run():
        async with (
            store_on(url) as store,
            asyncpg.create_pool(url, min_size=0, server_settings={"statement_timeout": "50ms"}) as pool,
            PostgresSagaStore(pool=pool, table=store._table_name) as impatient,
        ):
            state = OrderState()
            await store.insert(SAGA, "order-1", state)
            async with locked(url, store, state.metadata.saga_id):
                await impatient.update(SAGA, follow(state), 0)

    assert sqlstate_of(raised(StoreUnavailableError, run())) == "57014"


def test_no_answer_in_time_leaves_a_write_unknown(url):
    async def run():
        async with store_on(url, command_timeout=0.2) as store:
            state = OrderState()
            await store.insert(SAGA, "order-1", state)
            async with locked(url, store, state.metadata.saga_id):
                with pytest.raises(OutcomeUnknownError, match="no answer in time"):
                    await store.update(SAGA, follow(state), 0)
                assert (await store.get_by_id(SAGA, state.metadata.saga_id)).metadata.version == 0
            await store.update(SAGA, follow(state), 0)

    asyncio.run(run())


def test_a_state_over_the_limit(url, monkeypatch):
    async def run():
        async with store_on(url) as store:
            limit = store.capabilities.max_state_bytes
            with pytest.raises(StateTooLargeError) as caught:
                await store.insert(SAGA, "order-1", OrderState(note="x" * limit))
            assert caught.value.limit == limit
            assert await store.count(SagaFilter()) == 0

    asyncio.run(run())


class JsonText:
    """A codec that writes what it is told."""

    def __init__(self, text):
        self.text = text

    def encode(self, state):
        return self.text.encode()

    def decode(self, saga_name, document):
        return OrderState()  # so that the store itself finds nothing wrong


@pytest.mark.parametrize(
    "text", ['{"a": "\\u0000"}', '{"a": 1e999999}', "{", "\\", '{"a": 1}, "version": 7', '{"a": 1}}, {"number": 1']
)
def test_what_jsonb_refuses_is_an_error_of_the_state_and_spoils_no_neighbour(url, text):
    async def run():
        async with store_on(url) as store:
            bad = PostgresSagaStore(url, table=store._table_name, codec=JsonText(text))
            bad._engine = store._engine  # the same groups
            bad._is_open = True
            first, *good = [store.insert(SAGA, f"order-{number}", OrderState()) for number in range(5)]
            outcomes = await asyncio.gather(  # the first one leaves alone, the others are a group
                first, bad.insert(SAGA, "bad", OrderState()), *good, return_exceptions=True
            )
            assert [type(outcome) for outcome in outcomes] == [type(None), StateEncodeError] + [type(None)] * 4
            assert await store.count(SagaFilter()) == 5
            with pytest.raises(StateEncodeError):
                await bad.insert(SAGA, "bad", OrderState())

    asyncio.run(run())


def test_a_document_of_another_type(url):
    async def run():
        async with store_on(url) as store, connected(url) as connection:
            state = OrderState()
            await store.insert(SAGA, "order-1", state)
            await connection.execute(f"""UPDATE {store._quoted} SET state = '{{"note": 5}}'""")
            await store.get_by_id(SAGA, state.metadata.saga_id)

    raised(StateDecodeError, run())


def test_a_closed_store(url):
    async def run():
        store = PostgresSagaStore(url)
        await store.close()
        await store.get_by_id(SAGA, "x")

    raised(StoreClosedError, run())


def test_a_pool_that_is_exhausted(url):
    async def run():
        async with (
            store_on(url) as other,
            PostgresSagaStore(url, table=other._table_name, max_size=1, acquire_timeout=0.1) as store,
        ):
            state = OrderState()
            await store.insert(SAGA, "order-1", state)
            async with locked(url, store, state.metadata.saga_id):
                waiting = asyncio.ensure_future(store.update(SAGA, follow(state), 0))
                await asyncio.sleep(0)  # the update has the one connection now
                with pytest.raises(StoreUnavailableError, match=r"no connection was free within 0.1 s"):
                    await store.count(SagaFilter())
            await waiting
            assert await store.count(SagaFilter()) == 1

    asyncio.run(run())


def test_a_given_pool_that_is_exhausted(url):
    async def run():
        async with store_on(url) as other, asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
            store = PostgresSagaStore(pool=pool, table=other._table_name, acquire_timeout=0.1)
            state = OrderState()
            async with pool.acquire():
                for work in (
                    store.insert(SAGA, "order-1", state),
                    store.get_by_id(SAGA, "x"),
                    store.delete(SAGA, "x"),
                    store.count(SagaFilter()),
                ):
                    with pytest.raises(StoreUnavailableError, match=r"no connection was free within 0.1 s") as caught:
                        await work
                    assert type(caught.value) is StoreUnavailableError
            await store.insert(SAGA, "order-1", state)
            await store.close()

    asyncio.run(run())


@pytest.mark.parametrize("min_size", [0, 1])  # the first connection is made by the first operation, or before it
def test_a_server_that_takes_connections_and_never_answers(min_size):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"postgresql://bob:s3cret@127.0.0.1:{listener.getsockname()[1]}/x"
        begun = time.monotonic()
        raised(StoreUnavailableError, use(url, min_size=min_size, connect_timeout=0.3))
        assert 0.3 <= time.monotonic() - begun < 5


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_open_store_opens_it(url, scheme):
    async def run():
        store = open_store(urlsplit(url)._replace(scheme=scheme).geturl(), table=new_table())
        assert type(store) is PostgresSagaStore
        async with store:
            await store.create_schema()
            await store.insert(SAGA, "order-1", OrderState())
            assert await store.get_by_correlation_id(SAGA, "order-1") is not None
            await store.drop_schema()

    asyncio.run(run())


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"url": "postgresql://h/x", "pool": object()},
        {"pool": object()},
        {"url": "mysql://h/x"},
        {"url": "h/x"},
        {"url": 5},
        {"url": "postgresql://h:port/x"},
        {"url": "postgresql://h/x", "min_size": 11},
        {"url": "postgresql://h/x", "max_size": 0},
        {"url": "postgresql://h/x", "acquire_timeout": 0},
        {"url": "postgresql://h/x", "command_timeout": float("nan")},
        {"url": "postgresql://h/x", "statement_cache_size": -1},
    ],
)
def test_bad_arguments(arguments):
    with pytest.raises(InvalidSagaError):
        PostgresSagaStore(**arguments)


def test_bind_wants_an_open_transaction(url):
    async def run():
        async with store_on(url) as store, connected(url) as connection:
            for wrong in (None, url, connection):
                with pytest.raises(InvalidSagaError):
                    store.bind(wrong)
            async with connection.transaction():
                bound = store.bind(connection)
                await bound.insert(SAGA, "order-1", OrderState())
            with pytest.raises(InvalidSagaError, match="no open transaction"):
                await bound.insert(SAGA, "order-2", OrderState())

    asyncio.run(run())


def test_a_bound_store_takes_turns(url):
    async def run():
        async with store_on(url) as store, connected(url) as connection:
            async with connection.transaction():
                bound = store.bind(connection)
                states = [OrderState() for _ in range(10)]
                await asyncio.gather(*(bound.insert(SAGA, f"o-{n}", state) for n, state in enumerate(states)))
                assert await bound.count(SagaFilter()) == 10
                assert await store.count(SagaFilter()) == 0
            assert await store.count(SagaFilter()) == 10

    asyncio.run(run())


def test_a_connection_that_somebody_else_uses(url):
    async def run():
        async with store_on(url) as store, connected(url) as connection, connection.transaction():
            bound = store.bind(connection)
            busy = asyncio.ensure_future(connection.execute("SELECT pg_sleep(0.2)"))
            await asyncio.sleep(0)
            try:
                await bound.get_by_id(SAGA, "x")
            finally:
                await busy

    raised(InvalidSagaError, run())


@pytest.mark.parametrize("sqlstate", ["53300", "53100", "08006", "57P03", "57P01", "XX000"])
def test_errors_that_are_hard_to_provoke(sqlstate):
    error = asyncpg.PostgresError("no")
    error.sqlstate = sqlstate
    expected = SagaStoreError if sqlstate == "XX000" else StoreUnavailableError
    assert type(translated(error, writing=False)) is expected
    lost = sqlstate in ("08006", "57P01")
    assert type(translated(error, writing=True)) is (OutcomeUnknownError if lost else expected)

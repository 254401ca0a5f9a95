"""The PostgreSQL store behind a real transaction pooler, when the pooler or the server behind it breaks."""

from __future__ import annotations

import asyncio
import functools
from contextlib import asynccontextmanager

import asyncpg
import pytest

from faults.load import Load, verify
from postgres_helpers import SAGA, OrderState, connected, follow, new_table, store_on
from providers import UnavailableError
from providers.pgbouncer import PrivatePgBouncer
from providers.postgres import PrivatePostgres
from providers.skipping import skip_unless_required
from saga_bus.store import SagaFilter, SagaStoreError, StoreUnavailableError
from saga_bus.store_postgres import PostgresSagaStore


@pytest.fixture(scope="module")
def servers():
    """A server and a pooler in front of it, both to be killed."""
    private, pooler = None, None
    try:
        private = PrivatePostgres()
        pooler = PrivatePgBouncer(
            private.host,
            private.port,
            {"server_login_retry": "0.2", "default_pool_size": "3", "max_client_conn": "100"},
        )
        private.start()
        pooler.start()
        yield private, pooler
    except UnavailableError as error:
        skip_unless_required("postgres", str(error))
    finally:
        for started in (pooler, private):
            if started is not None:
                started.remove()


@asynccontextmanager
async def store_behind(servers):
    """A store behind the pooler, and another one that is connected directly."""
    server, pooler = servers
    async with store_on(server.url) as direct:
        options = {"table": direct._table_name, "state_types": {SAGA: OrderState}, "statement_cache_size": 0}
        async with PostgresSagaStore(pooler.url, **options) as store:
            yield store, direct


async def until_it_answers(work):
    """The result of what is tried again while the store is not available."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await work()
            except StoreUnavailableError:
                await asyncio.sleep(0.02)


def test_more_callers_than_the_pooler_has_connections(servers):
    async def run():
        async with store_behind(servers) as (store, direct):
            states = [OrderState() for _ in range(60)]
            await asyncio.gather(*(store.insert(SAGA, f"order-{n}", state) for n, state in enumerate(states)))
            for version in range(5):
                saved = [follow(state, f"{n} {version}") for n, state in enumerate(states)]
                await asyncio.gather(*(store.update(SAGA, state, version) for state in saved))
                states = await asyncio.gather(*(store.get_by_correlation_id(SAGA, f"order-{n}") for n in range(60)))
                assert [state.note for state in states] == [f"{n} {version}" for n in range(60)]
            assert await direct.count(SagaFilter()) == 60

    asyncio.run(run())


def test_a_killed_pooler_is_unavailable_until_it_is_back(servers):
    _, pooler = servers

    async def run():
        async with store_behind(servers) as (store, _):
            state = OrderState()
            await store.insert(SAGA, "order-1", state)
            await asyncio.gather(*(store.get_by_correlation_id(SAGA, "order-1") for _ in range(20)))
            pooler.kill()
            try:
                for _ in range(2):
                    outcomes = await asyncio.gather(
                        store.get_by_correlation_id(SAGA, "order-1"),
                        store.update(SAGA, follow(state), 0),
                        store.count(SagaFilter()),
                        return_exceptions=True,
                    )
                    assert all(isinstance(outcome, StoreUnavailableError) for outcome in outcomes)
            finally:
                pooler.start()
            assert (await until_it_answers(lambda: store.get_by_correlation_id(SAGA, "order-1"))).metadata.version == 0
            await until_it_answers(lambda: store.update(SAGA, follow(state), 0))

    asyncio.run(run())


def test_server_connections_closed_behind_the_pooler_are_replaced(servers):
    server, _ = servers

    async def run():
        async with (
            store_behind(servers) as (store, _),
            connected(server.url) as administrator,
            connected(server.url) as blocker,
        ):
            state = OrderState()
            await store.insert(SAGA, "order-1", state)
            lock = blocker.transaction()
            await lock.start()
            await blocker.execute(f"SELECT FROM {store._quoted} FOR UPDATE")
            waiting = asyncio.ensure_future(store.update(SAGA, follow(state), 0))
            kill = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            async with asyncio.timeout(30):
                while await administrator.fetchval(kill) == 0:  # noqa: ASYNC110 - the server tells nobody
                    await asyncio.sleep(0.02)
            with pytest.raises(StoreUnavailableError):
                await waiting
            await lock.rollback()
            assert (await until_it_answers(lambda: store.get_by_correlation_id(SAGA, "order-1"))).metadata.version == 0
            await until_it_answers(lambda: store.update(SAGA, follow(state), 0))

    asyncio.run(run())


def test_prepared_statements_that_the_pooler_mixes_up_are_an_error_with_its_remedy(servers):
    server, pooler = servers

    async def run():
        async with store_on(server.url) as direct:
            await direct.insert(SAGA, "order-1", OrderState())
            async with asyncpg.create_pool(pooler.url, min_size=8, max_size=8) as pool:
                store = PostgresSagaStore(pool=pool, table=direct._table_name, state_types={SAGA: OrderState})
                outcomes = []
                for _ in range(10):
                    outcomes += await asyncio.gather(
                        *(store.get_by_correlation_id(SAGA, "order-1") for _ in range(4)),
                        *(store.count(SagaFilter(saga_name=SAGA)) for _ in range(4)),
                        return_exceptions=True,
                    )
                errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
                assert errors
                assert all(isinstance(error, SagaStoreError) for error in errors)
                assert any("statement_cache_size=0" in str(error) for error in errors)
                await store.close()

    asyncio.run(run())


def test_pooler_and_server_killed_under_load(servers, tmp_path):
    server, pooler = servers
    table = new_table()
    opener = functools.partial(
        PostgresSagaStore, pooler.url, table=table, acquire_timeout=5.0, statement_cache_size=0, max_size=8
    )

    async def with_store(work):
        async with opener() as store:
            return await until_it_answers(lambda: work(store))

    asyncio.run(with_store(lambda store: store.create_schema()))
    cuts = 2
    with Load(opener, tmp_path, workers=4, callers=8) as load:
        load.wait_for(200)
        pooler.kill()
        pooler.start()
        load.wait_for(200)
        server.kill()
        server.start()
        load.wait_for(200)
        load.stop()
        verdict = asyncio.run(with_store(lambda store: verify(load, store, cuts=cuts)))
    assert verdict.acknowledged >= 200 * (cuts + 1)
    asyncio.run(with_store(lambda store: store.drop_schema()))

"""The PostgreSQL store when connections break, servers die and poolers hand connections around."""

from __future__ import annotations

import asyncio
import functools
from contextlib import asynccontextmanager

import asyncpg
import pytest

from faults.load import Load, verify
from faults.proxy import Proxy
from postgres_helpers import SAGA, OrderState, connected, follow, new_table, store_on
from providers import UnavailableError
from providers.postgres import PrivatePostgres
from providers.skipping import skip_unless_required
from saga_bus.store import ConcurrencyError, DuplicateSagaError, OutcomeUnknownError, SagaFilter, StoreUnavailableError
from saga_bus.store_postgres import PostgresSagaStore


@pytest.fixture(scope="module")
def server():
    """A server to be killed."""
    try:
        private = PrivatePostgres()
    except UnavailableError as error:
        skip_unless_required("postgres", str(error))
    try:
        private.start()
        yield private
    finally:
        private.remove()


@asynccontextmanager
async def store_behind_a_proxy(server, **options):
    """A store whose connections go through a proxy, and another one that is connected directly."""
    async with Proxy(server.host, server.port) as proxy, store_on(server.url) as direct:
        url = server.url.replace(f":{server.port}/", f":{proxy.port}/")
        options = {"table": direct._table_name, "state_types": {SAGA: OrderState}, **options}
        async with PostgresSagaStore(url, **options) as store:
            yield proxy, store, direct


def test_cut_before_the_write_was_sent(server):
    async def run():
        async with store_behind_a_proxy(server) as (proxy, store, direct):
            await store.insert(SAGA, "warm", OrderState())
            state = OrderState(note="poison")
            proxy.cut_before_request(b"poison")
            with pytest.raises(OutcomeUnknownError):  # nobody here can know that the server never saw it
                await store.insert(SAGA, "order-1", state)
            await proxy.fired()
            assert await direct.get_by_correlation_id(SAGA, "order-1") is None
            await store.insert(SAGA, "order-1", state)
            proxy.cut_before_request(b"poison")
            with pytest.raises(OutcomeUnknownError):
                await store.update(SAGA, follow(state, "poison"), 0)
            assert (await store.get_by_correlation_id(SAGA, "order-1")).metadata.version == 0

    asyncio.run(run())


def test_cut_after_the_write_was_sent(server):
    async def run():
        async with store_behind_a_proxy(server) as (proxy, store, _):
            await store.insert(SAGA, "warm", OrderState())
            state = OrderState(note="poison")
            proxy.cut_after_request(b"poison")
            with pytest.raises(OutcomeUnknownError):
                await store.insert(SAGA, "order-1", state)
            # It was applied. A retry meets it, and the saga that is there is known by its id as the caller's own.
            with pytest.raises(DuplicateSagaError) as caught:
                await store.insert(SAGA, "order-1", state)
            assert caught.value.conflict == "saga_id"
            found = await store.get_by_correlation_id(SAGA, "order-1")
            assert found.metadata.saga_id == state.metadata.saga_id
            proxy.cut_after_request(b"poison")
            with pytest.raises(OutcomeUnknownError):
                await store.update(SAGA, follow(state, "poison"), 0)
            with pytest.raises(ConcurrencyError) as conflict:
                await store.update(SAGA, follow(state, "poison"), 0)
            assert conflict.value.actual_version == 1

    asyncio.run(run())


def test_a_cut_group_leaves_each_of_its_writes_unknown_and_all_or_nothing(server):
    async def run():
        async with store_behind_a_proxy(server) as (proxy, store, _):
            await asyncio.gather(*(store.insert(SAGA, f"warm-{n}", OrderState()) for n in range(20)))
            states = [OrderState(note="poison") for _ in range(20)]
            proxy.cut_after_request(b"poison")
            outcomes = await asyncio.gather(
                *(store.insert(SAGA, f"order-{n}", state) for n, state in enumerate(states)), return_exceptions=True
            )
            assert OutcomeUnknownError in {type(outcome) for outcome in outcomes}
            for number, outcome in enumerate(outcomes):
                assert outcome is None or type(outcome) is OutcomeUnknownError
                assert await store.get_by_correlation_id(SAGA, f"order-{number}") is not None

    asyncio.run(run())


def test_a_cut_read_is_only_unavailable(server):
    async def run():
        async with store_behind_a_proxy(server) as (proxy, store, _):
            await store.get_by_correlation_id(SAGA, "x")
            for work in (
                lambda: store.get_by_correlation_id(SAGA, "poison"),
                lambda: store.count(SagaFilter(saga_name="poison")),
            ):
                proxy.cut_after_request(b"poison")
                with pytest.raises(StoreUnavailableError) as caught:
                    await work()
                assert type(caught.value) is StoreUnavailableError
                await work()

    asyncio.run(run())


def test_a_cut_in_the_callers_transaction_is_no_unknown_outcome(server):
    async def run():
        async with store_behind_a_proxy(server) as (proxy, store, direct):
            url = server.url.replace(f":{server.port}/", f":{proxy.port}/")
            connection = await asyncpg.connect(url)
            transaction = connection.transaction()
            await transaction.start()
            proxy.cut_after_request(b"poison")
            with pytest.raises(StoreUnavailableError) as caught:
                await store.bind(connection).insert(SAGA, "order-1", OrderState(note="poison"))
            assert type(caught.value) is StoreUnavailableError
            assert await direct.count(SagaFilter()) == 0

    asyncio.run(run())


def test_a_server_that_does_not_answer(server):
    async def run():
        async with store_behind_a_proxy(server, command_timeout=0.3, acquire_timeout=0.5) as (proxy, store, direct):
            state = OrderState()
            await store.insert(SAGA, "order-1", state)
            proxy.hold()
            with pytest.raises(OutcomeUnknownError, match="no answer in time"):
                await store.update(SAGA, follow(state), 0)
            with pytest.raises(StoreUnavailableError):
                await store.get_by_correlation_id(SAGA, "order-1")
            proxy.release()
            proxy.cut()
            assert (await store.get_by_correlation_id(SAGA, "order-1")).metadata.version in (0, 1)
            assert await direct.count(SagaFilter()) == 1

    asyncio.run(run())


def test_refused_connections(server):
    async def run():
        async with store_behind_a_proxy(server) as (proxy, store, _):
            await store.insert(SAGA, "order-1", OrderState())
            proxy.refuse()
            proxy.cut()
            for _ in range(2):
                with pytest.raises(StoreUnavailableError):
                    await store.get_by_correlation_id(SAGA, "order-1")
            proxy.accept()
            assert await store.get_by_correlation_id(SAGA, "order-1") is not None

    asyncio.run(run())


def test_terminated_connections_are_replaced(server):
    async def run():
        async with store_on(server.url) as store, connected(server.url) as administrator:
            states = [OrderState() for _ in range(20)]
            for round_ in range(3):
                await asyncio.gather(
                    *(store.insert(SAGA, f"order-{round_}-{n}", OrderState()) for n in range(len(states)))
                )
                await administrator.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
                )
                # The loop hears of it in its next turn; a write sent before that would be of unknown outcome.
                await asyncio.sleep(0.05)
                assert await store.count(SagaFilter()) == 20 * (round_ + 1)

    asyncio.run(run())


def test_killed_and_restarted_under_load(server, tmp_path):
    table = new_table()
    opener = functools.partial(PostgresSagaStore, server.url, table=table, acquire_timeout=5.0)
    asyncio.run(_with(opener, lambda store: store.create_schema()))
    cuts = 3
    with Load(opener, tmp_path, workers=4, callers=8) as load:
        load.wait_for(300)
        for number in range(cuts):
            server.kill()
            server.start()
            if number == 1:
                load.kill(0)
                load.start(0)
            load.wait_for(300)
        load.stop()

        async def check(store):
            return await verify(load, store, cuts=cuts + 1)

        verdict = asyncio.run(_with(opener, check))
    assert verdict.acknowledged >= 300 * (cuts + 1)
    asyncio.run(_with(opener, lambda store: store.drop_schema()))


async def _with(opener, work):
    async with opener() as store:
        return await work(store)

"""The PostgreSQL store when connections break, servers die and poolers hand connections around."""

from __future__ import annotations

import asyncio
import functools
from contextlib import asynccontextmanager

import asyncpg
import pytest

from faults.load import Load, verify
from faults.proxy import Proxy
from postgres_helpers import SAGA, OrderState, connected, follow, locked, new_table, store_on
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


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("operation", ["insert", "update"])
def test_a_cut_group_leaves_each_of_its_writes_unknown_and_all_or_nothing(server, operation, moment):
    async def run():
        async with store_behind_a_proxy(server) as (proxy, store, direct):
            states = [OrderState() for _ in range(20)]
            await asyncio.gather(*(store.insert(SAGA, f"order-{n}", state) for n, state in enumerate(states)))
            # The first call leaves alone, so only what leaves behind it is cut.
            notes = ["first"] + ["poison"] * (len(states) - 1)
            if operation == "insert":
                saved = [OrderState(note=note) for note in notes]
                works = [store.insert(SAGA, f"new-{n}", state) for n, state in enumerate(saved)]
            else:
                saved = [follow(state, note) for state, note in zip(states, notes, strict=True)]
                works = [store.update(SAGA, state, 0) for state in saved]
            getattr(proxy, f"cut_{moment}_request")(b"poison")
            outcomes = await asyncio.gather(*works, return_exceptions=True)
            await proxy.fired()
            assert outcomes[0] is None
            kinds = [type(outcome) for outcome in outcomes]
            assert set(kinds) <= {type(None), OutcomeUnknownError}
            assert kinds.count(OutcomeUnknownError) >= 2
            for state, outcome in zip(saved, outcomes, strict=True):
                found = await direct.get_by_id(SAGA, state.metadata.saga_id)
                is_stored = found is not None and found.note == state.note
                assert is_stored == (outcome is None or moment == "after")

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


_TERMINATE = """\
SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"""


async def terminate(administrator):
    await administrator.execute(_TERMINATE)
    # The loop hears of it in its next turn; a write sent before that would be of unknown outcome.
    await asyncio.sleep(0.05)


def test_terminated_connections_are_replaced(server):
    async def run():
        async with store_on(server.url) as store, connected(server.url) as administrator:
            for round_ in range(3):
                await asyncio.gather(*(store.insert(SAGA, f"order-{round_}-{n}", OrderState()) for n in range(20)))
                await terminate(administrator)
                assert await store.count(SagaFilter()) == 20 * (round_ + 1)

    asyncio.run(run())


@asynccontextmanager
async def store_with(pool, server):
    """A store with a pool of its own, or on a given one."""
    async with store_on(server.url) as own:
        if pool == "own":
            yield own
            return
        async with (
            asyncpg.create_pool(server.url, min_size=0) as given,
            PostgresSagaStore(pool=given, table=own._table_name, state_types={SAGA: OrderState}) as store,
        ):
            yield store


@pytest.mark.parametrize("pool", ["own", "given"])
def test_writes_after_their_connections_were_terminated(server, pool):
    async def run():
        async with store_with(pool, server) as store, connected(server.url) as administrator:
            states = [OrderState() for _ in range(6)]
            await store.insert(SAGA, "warm", OrderState())
            await terminate(administrator)
            await store.insert(SAGA, "order-0", states[0])  # alone
            await terminate(administrator)
            await asyncio.gather(*(store.insert(SAGA, f"order-{n}", states[n]) for n in range(1, 6)))
            await terminate(administrator)
            await store.update(SAGA, follow(states[0]), 0)
            await terminate(administrator)
            await asyncio.gather(*(store.update(SAGA, follow(state), 0) for state in states[1:]))
            await terminate(administrator)
            await store.delete(SAGA, states[0].metadata.saga_id, 1)
            versions = [await store.get_by_id(SAGA, state.metadata.saga_id) for state in states]
            assert [found and found.metadata.version for found in versions] == [None, 1, 1, 1, 1, 1]

    asyncio.run(run())


@pytest.mark.parametrize("pool", ["own", "given"])
@pytest.mark.parametrize("operation", ["update", "delete"])
def test_a_connection_that_is_terminated_during_a_write(server, pool, operation):
    async def run():
        async with store_with(pool, server) as store, connected(server.url) as administrator:
            state = OrderState()
            await store.insert(SAGA, "order-1", state)

            def write():
                if operation == "update":
                    return store.update(SAGA, follow(state), 0)
                return store.delete(SAGA, state.metadata.saga_id, 0)

            async with locked(server.url, store, state.metadata.saga_id):
                waiting = asyncio.ensure_future(write())
                async with asyncio.timeout(30):
                    while await administrator.fetchval(f"{_TERMINATE} AND wait_event_type = 'Lock'") == 0:  # noqa: ASYNC110 - it tells nobody
                        await asyncio.sleep(0.02)
                with pytest.raises(OutcomeUnknownError):
                    await waiting
            assert (await store.get_by_id(SAGA, state.metadata.saga_id)).metadata.version == 0
            await write()

    asyncio.run(run())


async def round_trips(proxy, *works):
    """How many round trips each of some works makes, one after the other."""
    counts = []
    for work in works:
        before = proxy.turns
        await work()
        counts.append(proxy.turns - before)
    return counts


def five_operations(store):
    """Each of them with success."""
    one, other = OrderState(), OrderState()
    one_id, other_id = one.metadata.saga_id, other.metadata.saga_id
    return (
        lambda: store.insert(SAGA, one_id, one),
        lambda: store.insert(SAGA, other_id, other),
        lambda: store.get_by_id(SAGA, one_id),
        lambda: store.get_by_correlation_id(SAGA, one_id),
        lambda: store.update(SAGA, follow(one), 0),
        lambda: store.delete(SAGA, one_id),
        lambda: store.delete(SAGA, other_id, 0),
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 1), ({"max_size": 4}, 1), ({"statement_cache_size": 0}, 2), ({"max_size": 4, "statement_cache_size": 0}, 2)],
)
def test_the_round_trips_of_the_own_pool(server, options, expected):
    async def run():
        async with store_behind_a_proxy(server, **options) as (proxy, store, _):
            await round_trips(proxy, *five_operations(store))
            assert await round_trips(proxy, *five_operations(store)) == [expected] * 7

    asyncio.run(run())


@pytest.mark.parametrize(("options", "expected"), [({}, 2), ({"statement_cache_size": 0}, 3)])
def test_a_given_pool_costs_a_round_trip_more(server, options, expected):
    async def run():
        async with store_behind_a_proxy(server) as (proxy, own, _):
            url = server.url.replace(f":{server.port}/", f":{proxy.port}/")
            async with asyncpg.create_pool(url, min_size=1, max_size=1, **options) as pool:
                store = PostgresSagaStore(pool=pool, table=own._table_name, state_types={SAGA: OrderState})
                await round_trips(proxy, *five_operations(store))
                assert await round_trips(proxy, *five_operations(store)) == [expected] * 7
                await store.close()

    asyncio.run(run())


def test_the_round_trips_inside_a_transaction(server):
    """A write has a savepoint around it."""

    async def run():
        async with store_behind_a_proxy(server) as (proxy, store, _):
            url = server.url.replace(f":{server.port}/", f":{proxy.port}/")
            async with connected(url) as connection, connection.transaction():
                bound = store.bind(connection)
                await round_trips(proxy, *five_operations(bound))
                assert await round_trips(proxy, *five_operations(bound)) == [3, 3, 1, 1, 3, 3, 3]

    asyncio.run(run())


def test_a_group_is_one_round_trip_but_two_where_it_reads_by_both_keys(server):
    """Five calls at once: the first one leaves alone, the others as a group."""

    async def run():
        async with store_behind_a_proxy(server) as (proxy, store, _):

            def five(work):
                return lambda: asyncio.gather(*(work(n) for n in range(5)))

            def get(n, *, by_id):
                key = states[n].metadata.saga_id if by_id else f"{prefix}-{n}"
                return (store.get_by_id if by_id else store.get_by_correlation_id)(SAGA, key)

            for prefix in ("warm", "order"):
                states = [OrderState() for _ in range(5)]
                counts = await round_trips(
                    proxy,
                    five(lambda n: store.insert(SAGA, f"{prefix}-{n}", states[n])),  # noqa: B023 - it is awaited here
                    five(lambda n: store.update(SAGA, follow(states[n]), 0)),  # noqa: B023
                    five(lambda n: get(n, by_id=True)),
                    five(lambda n: get(n, by_id=False)),
                    five(lambda n: get(n, by_id=n % 2 == 0)),
                )
            assert counts == [2, 2, 2, 2, 3]

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

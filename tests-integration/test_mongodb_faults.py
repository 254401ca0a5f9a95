"""The MongoDB store when connections break and servers die.

The server is SecantusDB. It answers a retried write of pymongo's (``retryWrites``) like MongoDB, from what it
remembers. Unlike MongoDB, which keeps a record of each statement in its journal, it forgets all of them when it is
killed, and those of a group in which one statement failed at once. So where it is killed, the tests let nothing be
retried, and no group that is retried here has a conflict in it.
"""

from __future__ import annotations

import asyncio
import functools
from contextlib import asynccontextmanager

import pytest

from faults.load import Load, verify
from faults.proxy import Proxy
from mongodb_helpers import (
    SAGA,
    OrderState,
    client_of,
    collect_sockets,
    follow,
    new_collection,
    private_server,
    store_on,
)
from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
    OutcomeUnknownError,
    SagaFilter,
    SagaStoreError,
    StoreUnavailableError,
)
from saga_bus.store_mongodb import MongoSagaStore

NO_RETRIES = "&retryWrites=false&retryReads=false"
CALLERS = 20


@pytest.fixture(scope="module")
def server():
    """A server to be killed, or to fail on command."""
    private = private_server()
    private.options = ("--enable-test-commands",)
    try:
        private.start()
        yield private
    finally:
        private.remove()


@pytest.fixture
def pymongos_sockets():
    """Collects the socket that pymongo's monitor leaves open if its client is closed while it connects."""
    yield
    collect_sockets()


@asynccontextmanager
async def store_behind_a_proxy(server, options=""):
    """A store whose connections go through a proxy, and another one that is connected directly."""
    async with Proxy(server.host, server.port) as proxy, store_on(server.url) as direct:
        url = server.url.replace(f":{server.port}/", f":{proxy.port}/") + options
        types = {SAGA: OrderState}
        async with MongoSagaStore(url, collection=direct._names[1], state_types=types) as store:
            yield proxy, store, direct


def test_a_write_that_was_cut_before_it_was_sent_is_sent_again_once(server):
    async def run():
        async with store_behind_a_proxy(server) as (proxy, store, direct):
            state = OrderState(note="poison")
            proxy.cut_before_request(b"poison")
            await store.insert(SAGA, "order-1", state)
            await proxy.fired()
            proxy.cut_before_request(b"poison")
            await store.update(SAGA, follow(state, "poison"), 0)
            await proxy.fired()
            assert (await direct.get_by_correlation_id(SAGA, "order-1")).metadata.version == 1

    asyncio.run(run())


def test_a_write_that_was_cut_after_it_was_sent_is_known_as_ones_own(server):
    async def run():
        async with store_behind_a_proxy(server) as (proxy, store, direct):
            state = OrderState(note="poison")
            proxy.cut_after_request(b"poison")
            await store.insert(SAGA, "order-1", state)  # applied, lost, retried: and no false duplicate
            await proxy.fired()
            proxy.cut_after_request(b"poison")
            await store.update(SAGA, follow(state, "poison"), 0)  # and no false conflict
            await proxy.fired()
            assert (await direct.get_by_correlation_id(SAGA, "order-1")).metadata.version == 1
            with pytest.raises(DuplicateSagaError) as caught:
                await store.insert(SAGA, "order-1", state)  # a second insert of the caller's own is a true one
            assert caught.value.conflict == "saga_id"
            proxy.cut_after_request(state.metadata.saga_id.encode())
            await store.delete(SAGA, state.metadata.saga_id, 1)
            await proxy.fired()
            assert await direct.count(SagaFilter()) == 0

    asyncio.run(run())


def test_a_group_that_was_cut_after_it_was_sent_is_retried_whole(server):
    async def run():
        async with store_behind_a_proxy(server) as (proxy, store, direct):
            states = [OrderState() for _ in range(CALLERS)]
            proxy.cut_after_request(b"poison-19")
            await asyncio.gather(*(store.insert(SAGA, f"poison-{n}", state) for n, state in enumerate(states)))
            await proxy.fired()
            proxy.cut_after_request(b"poison-19")
            await asyncio.gather(
                *(store.update(SAGA, follow(state, f"poison-{n}"), 0) for n, state in enumerate(states))
            )
            await proxy.fired()
            assert await direct.count(SagaFilter()) == CALLERS
            assert (await direct.get_by_correlation_id(SAGA, "poison-19")).metadata.version == 1

    asyncio.run(run())


def test_without_retries_a_cut_write_is_of_unknown_outcome(server):
    async def run():
        async with store_behind_a_proxy(server, NO_RETRIES) as (proxy, store, direct):
            state = OrderState(note="poison")
            proxy.cut_before_request(b"poison")
            with pytest.raises(OutcomeUnknownError):  # nobody here can know that the server never saw it
                await store.insert(SAGA, "order-1", state)
            await proxy.fired()
            assert await direct.count(SagaFilter()) == 0
            proxy.cut_after_request(b"poison")
            with pytest.raises(OutcomeUnknownError):
                await store.insert(SAGA, "order-1", state)
            # It was applied. A retry meets it, and the saga that is there is known by its id as the caller's own.
            with pytest.raises(DuplicateSagaError) as caught:
                await store.insert(SAGA, "order-1", state)
            assert caught.value.conflict == "saga_id"
            proxy.cut_after_request(b"poison")
            with pytest.raises(OutcomeUnknownError):
                await store.update(SAGA, follow(state, "poison"), 0)
            with pytest.raises(ConcurrencyError) as conflict:
                await store.update(SAGA, follow(state, "poison"), 0)
            assert conflict.value.actual_version == 1

    asyncio.run(run())


def test_without_retries_a_cut_group_leaves_each_of_its_writes_unknown(server):
    async def run():
        async with store_behind_a_proxy(server, NO_RETRIES) as (proxy, store, direct):
            proxy.cut_after_request(b"poison-19")
            outcomes = await asyncio.gather(
                *(store.insert(SAGA, f"poison-{number}", OrderState()) for number in range(CALLERS)),
                return_exceptions=True,
            )
            assert {type(outcome) for outcome in outcomes} == {type(None), OutcomeUnknownError}
            assert await direct.count(SagaFilter()) == CALLERS

    asyncio.run(run())


def test_a_cut_read_is_read_again_or_only_unavailable(server):
    async def run():
        async with store_behind_a_proxy(server) as (proxy, store, _):
            proxy.cut_after_request(b"poison")
            assert await store.get_by_correlation_id(SAGA, "poison") is None
            await proxy.fired()
        async with store_behind_a_proxy(server, NO_RETRIES) as (proxy, store, _):
            for work in (
                lambda: store.get_by_correlation_id(SAGA, "poison"),
                lambda: store.count(SagaFilter(saga_name="poison")),
                lambda: store.find(SagaFilter(saga_name="poison")),
            ):
                await work()
                proxy.cut_after_request(b"poison")
                with pytest.raises(StoreUnavailableError) as caught:
                    await work()
                assert type(caught.value) is StoreUnavailableError

    asyncio.run(run())


def test_a_cut_in_the_callers_transaction_is_no_unknown_outcome(server):
    async def run():
        async with store_behind_a_proxy(server) as (proxy, store, direct):
            url = server.url.replace(f":{server.port}/", f":{proxy.port}/")
            async with client_of(url) as client, client.start_session() as session:
                await session.start_transaction()
                bound = store.bind(session)
                await bound.insert(SAGA, "order-1", OrderState())
                proxy.cut_after_request(b"poison")
                with pytest.raises(StoreUnavailableError) as caught:
                    await bound.insert(SAGA, "order-2", OrderState(note="poison"))
                assert type(caught.value) is StoreUnavailableError
                assert caught.value.__cause__.has_error_label("TransientTransactionError")
            assert await direct.count(SagaFilter()) == 0

    asyncio.run(run())


def test_a_server_that_does_not_answer(server, pymongos_sockets):
    async def run():
        async with store_behind_a_proxy(server, NO_RETRIES + "&socketTimeoutMS=300") as (proxy, store, direct):
            state = OrderState()
            await store.insert(SAGA, "order-1", state)
            proxy.hold()
            with pytest.raises(OutcomeUnknownError, match="no answer in time"):
                await store.update(SAGA, follow(state), 0)
            with pytest.raises(StoreUnavailableError):
                await store.get_by_correlation_id(SAGA, "order-1")
            proxy.release()
            proxy.cut()
            async with asyncio.timeout(30):
                while True:
                    try:
                        found = await store.get_by_correlation_id(SAGA, "order-1")
                        break
                    except StoreUnavailableError:
                        await asyncio.sleep(0.05)
            assert found.metadata.version in (0, 1)
            assert await direct.count(SagaFilter()) == 1

    asyncio.run(run())


def test_a_server_that_does_not_answer_is_not_waited_for_without_end(server, pymongos_sockets):
    async def run():
        async with store_behind_a_proxy(server) as (proxy, store, direct):
            deadlines = store._engine.collections().calls.deadlines
            deadlines.limit = None  # as long as the server answers, however slowly it does
            states = [OrderState() for _ in range(CALLERS)]
            await asyncio.gather(*(store.insert(SAGA, f"order-{n}", state) for n, state in enumerate(states)))
            deadlines.limit = 0.3
            proxy.hold()
            for work in (
                lambda: store.get_by_correlation_id(SAGA, "order-1"),
                lambda: store.find(SagaFilter()),
                lambda: store.delete(SAGA, "x"),
                store.ping,
            ):
                with pytest.raises(StoreUnavailableError, match="no answer in time"):
                    await work()
            outcomes = await asyncio.gather(
                *(store.update(SAGA, follow(state), 0) for state in states), return_exceptions=True
            )
            assert {type(outcome) for outcome in outcomes} == {OutcomeUnknownError}
            deadlines.limit = None
            proxy.release()
            proxy.cut()
            assert (await store.get_by_correlation_id(SAGA, "order-1")).metadata.version in (0, 1)
            assert await direct.count(SagaFilter()) == CALLERS

    asyncio.run(run())


def test_refused_connections(server, pymongos_sockets):
    async def run():
        async with store_behind_a_proxy(server, "&serverSelectionTimeoutMS=300") as (proxy, store, _):
            state = OrderState()
            await store.insert(SAGA, "order-1", state)
            proxy.refuse()
            proxy.cut()
            with pytest.raises(StoreUnavailableError):
                await store.get_by_correlation_id(SAGA, "order-1")
            with pytest.raises(StoreUnavailableError):
                await store.update(SAGA, follow(state), 0)
            proxy.accept()
            async with asyncio.timeout(30):
                while True:
                    try:
                        found = await store.get_by_correlation_id(SAGA, "order-1")
                        break
                    except StoreUnavailableError:
                        continue
            assert found.metadata.version == 0

    asyncio.run(run())


@asynccontextmanager
async def failing(server, times, **data):
    """The server fails the next commands that ``data`` is about."""
    async with client_of(server.url) as client:
        fail = {"configureFailPoint": "failCommand"}
        await client.admin.command({**fail, "mode": {"times": times} if times else "alwaysOn", "data": data})
        try:
            yield
        finally:
            await client.admin.command({**fail, "mode": "off"})


NOT_REPLICATED = {"code": 64, "errmsg": "waiting for replication timed out", "errInfo": {"wtimeout": True}}


def test_a_write_that_did_not_reach_the_majority_is_of_unknown_outcome(server):
    async def run():
        async with store_on(server.url) as store:
            states = [OrderState() for _ in range(CALLERS)]
            async with failing(server, 0, failCommands=["insert"], writeConcernError=NOT_REPLICATED):
                with pytest.raises(OutcomeUnknownError, match="written, but"):
                    await store.insert(SAGA, "order-0", states[0])
                outcomes = await asyncio.gather(
                    *(store.insert(SAGA, f"order-{n}", state) for n, state in enumerate(states)), return_exceptions=True
                )
                # The first one meets itself. Of the others, each may yet be rolled back.
                assert type(outcomes[0]) is DuplicateSagaError
                assert {type(outcome) for outcome in outcomes[1:]} == {OutcomeUnknownError}
            assert await store.count(SagaFilter()) == CALLERS
            await store.update(SAGA, follow(states[-1]), 0)
            async with failing(server, 0, failCommands=["update"], writeConcernError=NOT_REPLICATED):
                outcomes = await asyncio.gather(
                    *(store.update(SAGA, follow(state), 0) for state in states), return_exceptions=True
                )
                assert {type(outcome) for outcome in outcomes[:-1]} == {OutcomeUnknownError}
                assert type(outcomes[-1]) is ConcurrencyError  # which is certain, whatever else is not
                assert outcomes[-1].actual_version == 1

    asyncio.run(run())


def test_a_primary_that_steps_down_is_waited_for(server):
    async def run():
        # A real step-down answers the monitor's heartbeat at once; here the next one has to be waited for.
        async with store_on(server.url + "&heartbeatFrequencyMS=500") as store:
            state = OrderState()
            stepped_down = {"errorCode": 11602, "errorLabels": ["RetryableWriteError"]}
            async with failing(server, 1, failCommands=["insert"], **stepped_down):
                await store.insert(SAGA, "order-1", state)
            async with failing(server, 1, failCommands=["find"], errorCode=11602):
                assert await store.get_by_correlation_id(SAGA, "order-1") is not None
            async with failing(server, 0, failCommands=["update"], **stepped_down):
                with pytest.raises(OutcomeUnknownError):
                    await store.update(SAGA, follow(state), 0)
            async with failing(server, 0, failCommands=["find"], errorCode=11602):
                with pytest.raises(StoreUnavailableError) as caught:
                    await store.get_by_correlation_id(SAGA, "order-1")
                assert type(caught.value) is StoreUnavailableError

    asyncio.run(run())


def test_a_conflict_stays_one_when_nobody_can_say_with_which_version(server):
    async def run():
        async with store_on(server.url) as store:
            states = [OrderState() for _ in range(4)]
            await asyncio.gather(*(store.insert(SAGA, f"order-{n}", state) for n, state in enumerate(states)))
            await store.update(SAGA, follow(states[3]), 0)
            async with failing(server, 0, failCommands=["find"], errorCode=8):
                outcomes = await asyncio.gather(
                    *(store.insert(SAGA, "order-0", OrderState()) for _ in range(3)), return_exceptions=True
                )
                assert [getattr(outcome, "conflict", outcome) for outcome in outcomes] == ["correlation_id"] * 3
                outcomes = await asyncio.gather(
                    *(store.update(SAGA, follow(state), 0) for state in states), return_exceptions=True
                )
                assert outcomes[:3] == [None] * 3
                assert type(outcomes[3]) is SagaStoreError  # what was written stays written, and is told

    asyncio.run(run())


def test_killed_and_restarted_under_load(server, tmp_path):
    collection = new_collection()
    opener = functools.partial(MongoSagaStore, server.url + NO_RETRIES, collection=collection)
    asyncio.run(_with(opener, lambda store: store.create_schema()))
    cuts = 3
    with Load(opener, tmp_path, workers=3, callers=8) as load:
        load.wait_for(200)
        for number in range(cuts):
            server.kill()
            server.start()
            if number == 1:
                load.kill(0)
                load.start(0)
            load.wait_for(200)
        load.stop()

        async def check(store):
            return await verify(load, store, cuts=cuts + 1)

        verdict = asyncio.run(_with(opener, check))
    assert verdict.acknowledged >= 200 * (cuts + 1)
    asyncio.run(_with(opener, lambda store: store.drop_schema()))


async def _with(opener, work):
    async with opener() as store:
        return await work(store)

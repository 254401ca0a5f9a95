"""Groups: every call keeps its own outcome, and nobody waits for somebody else's lock."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import asyncpg
import pytest

from postgres_helpers import SAGA, OrderState, connected, follow, locked, store_on
from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
    OutcomeUnknownError,
    SagaFilter,
    SagaNotFoundError,
    StoreUnavailableError,
)
from saga_bus.store_postgres import _groups as groups
from saga_bus.store_postgres._lanes import Lane


async def inserted(store, count, prefix="order"):
    states = [OrderState() for _ in range(count)]
    await asyncio.gather(*(store.insert(SAGA, f"{prefix}-{n}", state) for n, state in enumerate(states)))
    return states


def test_each_update_of_a_group_has_its_own_outcome(url):
    async def run():
        async with store_on(url) as store:
            states = await inserted(store, 6)
            await store.update(SAGA, follow(states[1]), 0)
            await store.delete(SAGA, states[2].metadata.saga_id)
            outcomes = await asyncio.gather(
                *(store.update(SAGA, follow(state), 0) for state in states), return_exceptions=True
            )
            assert [type(outcome) for outcome in outcomes] == [
                type(None), ConcurrencyError, SagaNotFoundError, type(None), type(None), type(None),
            ]  # fmt: skip
            assert outcomes[1].actual_version == 1

    asyncio.run(run())


def test_each_insert_of_a_group_has_its_own_outcome(url):
    async def run():
        async with store_on(url) as store:
            (taken,) = await inserted(store, 1)
            twice = OrderState()
            outcomes = await asyncio.gather(
                store.insert(SAGA, "order-0", OrderState()),
                store.insert(SAGA, "new-1", taken),
                store.insert(SAGA, "new-2", twice),
                store.insert(SAGA, "new-3", twice),
                store.insert(SAGA, "new-4", OrderState()),
                store.insert(SAGA, "new-4", OrderState()),
                return_exceptions=True,
            )
            assert [getattr(outcome, "conflict", outcome) for outcome in outcomes][:3] == [
                "correlation_id", "saga_id", None,
            ]  # fmt: skip
            assert outcomes[3].conflict == "saga_id"
            assert sorted(type(outcome).__name__ for outcome in outcomes[4:]) == ["DuplicateSagaError", "NoneType"]
            assert await store.count(SagaFilter()) == 3

    asyncio.run(run())


def test_callers_of_one_saga_take_turns(url):
    async def run():
        async with store_on(url) as store:
            (state,) = await inserted(store, 1)

            async def add():
                while True:
                    found = await store.get_by_id(SAGA, state.metadata.saga_id)
                    try:
                        await store.update(SAGA, follow(found), found.metadata.version)
                    except ConcurrencyError:
                        continue
                    return

            await asyncio.gather(*(add() for _ in range(20)))
            assert (await store.get_by_id(SAGA, state.metadata.saga_id)).metadata.version == 20

    asyncio.run(run())


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_locked_row_stalls_only_its_own_callers(url, ends):
    async def run():
        async with store_on(url) as store:
            states = await inserted(store, 20)
            async with connected(url) as connection:
                transaction = connection.transaction()
                await transaction.start()
                await store.bind(connection).update(SAGA, follow(states[7]), 0)
                tasks = [asyncio.ensure_future(store.update(SAGA, follow(state), 0)) for state in states]
                others = [task for task in tasks if task is not tasks[7]]
                await asyncio.wait_for(asyncio.gather(*others), 20)
                # And again, alone, while the locked one waits.
                await asyncio.wait_for(store.update(SAGA, follow(follow(states[0])), 1), 20)
                assert not tasks[7].done()
                await (transaction.commit() if ends == "commit" else transaction.rollback())
                outcome = (await asyncio.gather(tasks[7], return_exceptions=True))[0]
            assert type(outcome) is (ConcurrencyError if ends == "commit" else type(None))
            assert (await store.get_by_id(SAGA, states[7].metadata.saga_id)).metadata.version == 1

    asyncio.run(run())


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_an_insert_of_the_same_key_elsewhere_stalls_only_its_own_caller(url, ends):
    async def run():
        async with store_on(url) as store, connected(url) as connection:
            transaction = connection.transaction()
            await transaction.start()
            await store.bind(connection).insert(SAGA, "order-3", OrderState(note="theirs"))
            states = [OrderState() for _ in range(6)]
            tasks = [asyncio.ensure_future(store.insert(SAGA, f"order-{n}", s)) for n, s in enumerate(states)]
            await asyncio.wait_for(asyncio.gather(*(task for task in tasks if task is not tasks[3])), 20)
            assert not tasks[3].done()
            await (transaction.commit() if ends == "commit" else transaction.rollback())
            outcome = (await asyncio.gather(tasks[3], return_exceptions=True))[0]
            assert type(outcome) is (DuplicateSagaError if ends == "commit" else type(None))
            assert await store.count(SagaFilter()) == 6

    asyncio.run(run())


def test_many_that_wait_for_locks_leave_connections_for_the_others(url):
    async def run():
        async with store_on(url) as store:
            states = await inserted(store, 3)
            async with locked(url, store, states[0].metadata.saga_id):
                waiting = [asyncio.ensure_future(store.update(SAGA, follow(states[0], f"{n}"), 0)) for n in range(20)]
                for version in range(10):
                    next_one = OrderState(metadata=states[1].metadata.next())
                    states[1] = next_one
                    await asyncio.wait_for(store.update(SAGA, next_one, version), 20)
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ConcurrencyError"] * 19 + ["NoneType"]

    asyncio.run(run())


def test_a_cancelled_caller_cancels_no_neighbour(url):
    async def run():
        async with store_on(url) as store:
            states = await inserted(store, 10)
            tasks = [asyncio.ensure_future(store.update(SAGA, follow(state), 0)) for state in states]
            await asyncio.sleep(0)
            tasks[3].cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(outcomes[3], asyncio.CancelledError)
            assert [outcome for number, outcome in enumerate(outcomes) if number != 3] == [None] * 9
            assert await store.count(SagaFilter()) == 10

    asyncio.run(run())


def test_a_purge_passes_over_what_is_locked_elsewhere(url):
    async def run():
        async with store_on(url) as store:
            states = await inserted(store, 5)
            ended = [OrderState(metadata=state.metadata.next(is_completed=True)) for state in states]
            await asyncio.gather(*(store.update(SAGA, state, 0) for state in ended))
            tomorrow = states[0].metadata.created_at + timedelta(days=1)
            async with locked(url, store, states[0].metadata.saga_id):
                assert await asyncio.wait_for(store.delete_completed_before(SAGA, tomorrow, batch_size=2), 20) == 4
                assert await store.get_by_id(SAGA, states[0].metadata.saga_id) is not None
            assert await store.delete_completed_before(SAGA, tomorrow) == 1

    asyncio.run(run())


def test_groups_at_the_strictest_isolation_level(url):
    async def run():
        strict = {"default_transaction_isolation": "serializable"}
        async with (
            store_on(url) as store,
            asyncpg.create_pool(url, min_size=0, server_settings=strict) as pool,
        ):
            one, other = (type(store)(pool=pool, table=store._table_name, state_types={SAGA: OrderState}) for _ in "ab")
            states = await inserted(one, 20)
            for version in range(5):
                outcomes = await asyncio.gather(
                    *(each.update(SAGA, follow(state), version) for state in states for each in (one, other)),
                    return_exceptions=True,
                )
                assert outcomes.count(None) == 20
                assert {type(outcome) for outcome in outcomes} == {type(None), ConcurrencyError}
                states = [follow(state) for state in states]
            await one.close()
            await other.close()

    asyncio.run(run())


def test_a_group_too_large_for_one_message_is_split(url, monkeypatch):
    monkeypatch.setattr(groups, "_GROUP_BYTES", 1000)

    async def run():
        async with store_on(url) as store:
            states = [OrderState(note="x" * 400) for _ in range(20)]
            await asyncio.gather(*(store.insert(SAGA, f"order-{n}", state) for n, state in enumerate(states)))
            await asyncio.gather(*(store.update(SAGA, follow(state, "y" * 400), 0) for state in states))
            found = await asyncio.gather(*(store.get_by_id(SAGA, state.metadata.saga_id) for state in states))
            assert {state.note for state in found} == {"y" * 400}

    asyncio.run(run())


@pytest.mark.parametrize("failing", ["select_versions", "select_taken"])
def test_what_a_group_wrote_is_acknowledged_when_the_next_question_fails(url, monkeypatch, failing):
    async def run():
        async with store_on(url) as store:
            states = await inserted(store, 4)
            read = Lane.read

            async def broken(lane, statement, *parameters):
                if statement == getattr(store._statements, failing):
                    raise StoreUnavailableError("cut")
                return await read(lane, statement, *parameters)

            monkeypatch.setattr(Lane, "read", broken)
            if failing == "select_versions":
                saved = [follow(state) for state in states]
                saved[2] = follow(saved[2])
                works = [store.update(SAGA, state, state.metadata.version - 1) for state in saved]
            else:
                works = [store.insert(SAGA, f"{'order' if n == 2 else 'new'}-{n}", OrderState()) for n in range(4)]
            outcomes = await asyncio.gather(*works, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [
                type(None),
                type(None),
                StoreUnavailableError,
                type(None),
            ]

    asyncio.run(run())


def test_a_statement_that_takes_too_long_is_given_up_and_its_lane_goes_on(url):
    async def run():
        async with store_on(url, command_timeout=0.3) as store:
            states = await inserted(store, 2)
            async with locked(url, store, states[0].metadata.saga_id) as other:
                with pytest.raises(OutcomeUnknownError, match="no answer in time"):
                    await store.update(SAGA, follow(states[0]), 0)
                await store.update(SAGA, follow(states[1]), 0)
                running = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1"
                async with asyncio.timeout(20):
                    while await other.fetchval(running, f"%{store._table_name}%"):  # noqa: ASYNC110 - it tells nobody
                        await asyncio.sleep(0.02)
            await store.update(SAGA, follow(states[0]), 0)

    asyncio.run(run())


def test_a_caller_that_is_cancelled_while_its_statement_runs_is_not_told_of_a_timeout(url):
    async def run():
        async with store_on(url, command_timeout=20) as store:
            (state,) = await inserted(store, 1)
            async with locked(url, store, state.metadata.saga_id):
                waiting = asyncio.ensure_future(store.update(SAGA, follow(state), 0))
                await asyncio.sleep(0.05)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            # The server was told to stop it, which may have come too late.
            assert (await store.get_by_id(SAGA, state.metadata.saga_id)).metadata.version in (0, 1)

    asyncio.run(run())


def test_a_lone_lane_times_each_statement_by_itself(url):
    """However many statements come and go while the lane's one timer is set, only a slow one is given up."""

    async def run():
        async with store_on(url, command_timeout=0.2) as store:
            (state,) = await inserted(store, 1)
            begun = asyncio.get_running_loop().time()
            while asyncio.get_running_loop().time() - begun < 0.7:
                assert await store.get_by_id(SAGA, state.metadata.saga_id) is not None

    asyncio.run(run())


def test_statements_that_a_lane_has_prepared_survive_a_change_of_the_table(url):
    """What a statement returns has another type then, which PostgreSQL refuses for a statement prepared before."""

    async def run():
        async with store_on(url) as store, connected(url) as connection:
            for prefix, change in (("a", "version TYPE integer"), ("b", "saga_name TYPE varchar(128)"), ("c", None)):
                states = await inserted(store, 4, prefix)
                stale = [store.update(SAGA, follow(follow(state)), 1) for state in states]
                outcomes = await asyncio.gather(*stale, return_exceptions=True)
                assert [(type(each), each.actual_version) for each in outcomes] == [(ConcurrencyError, 0)] * 4
                if change:
                    await connection.execute(f"ALTER TABLE {store._quoted} ALTER COLUMN {change}")
            assert await store.count(SagaFilter()) == 12

    asyncio.run(run())

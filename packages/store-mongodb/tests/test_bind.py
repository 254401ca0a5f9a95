"""Inside the caller's transaction."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from mongodb_helpers import SAGA, OrderState, client_of, follow, heard_store, store_on
from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
    InvalidSagaError,
    SagaFilter,
    SagaNotFoundError,
    StoreUnavailableError,
)


@asynccontextmanager
async def transaction(url):
    async with client_of(url) as client, client.start_session() as session:
        await session.start_transaction()
        yield session


def test_refused_writes_are_asked_about_first_and_leave_the_transaction_whole(url):
    async def run():
        async with store_on(url) as store, transaction(url) as session:
            taken = OrderState()
            await store.insert(SAGA, "taken", taken)
            await session.abort_transaction()
            await session.start_transaction()  # which sees what was just written
            bound = store.bind(session)
            for correlation_id, state, conflict in (
                ("taken", OrderState(), "correlation_id"),
                ("other", taken, "saga_id"),
                ("taken", taken, "saga_id"),
            ):
                with pytest.raises(DuplicateSagaError) as caught:
                    await bound.insert(SAGA, correlation_id, state)
                assert caught.value.conflict == conflict
            with pytest.raises(ConcurrencyError):
                await bound.update(SAGA, follow(follow(taken)), 1)
            with pytest.raises(SagaNotFoundError):
                await bound.delete(SAGA, "nobody", 0)
            await bound.update(SAGA, follow(taken), 0)
            await session.commit_transaction()
            assert (await store.get_by_correlation_id(SAGA, "taken")).metadata.version == 1

    asyncio.run(run())


def test_a_write_conflict_is_retryable_and_ends_the_transaction(url):
    async def run():
        async with store_on(url) as store, transaction(url) as first, transaction(url) as second:
            state = OrderState()
            await store.insert(SAGA, "order-1", state)
            for session in (first, second):
                await session.abort_transaction()
                await session.start_transaction()
            await store.bind(first).update(SAGA, follow(state, "first"), 0)
            with pytest.raises(StoreUnavailableError) as caught:
                await store.bind(second).update(SAGA, follow(state, "second"), 0)
            assert type(caught.value) is StoreUnavailableError
            assert caught.value.__cause__.has_error_label("TransientTransactionError")
            with pytest.raises(StoreUnavailableError):
                await store.bind(second).get_by_id(SAGA, state.metadata.saga_id)
            await first.commit_transaction()
            assert (await store.get_by_correlation_id(SAGA, "order-1")).note == "first"

    asyncio.run(run())


def test_two_transactions_that_insert_one_saga(url):
    async def run():
        async with store_on(url) as store, transaction(url) as first, transaction(url) as second:
            await store.bind(first).insert(SAGA, "order-1", OrderState(note="first"))
            with pytest.raises((StoreUnavailableError, DuplicateSagaError)) as caught:
                await store.bind(second).insert(SAGA, "order-1", OrderState(note="second"))
            assert caught.value.retryable
            await first.commit_transaction()
            assert (await store.get_by_correlation_id(SAGA, "order-1")).note == "first"

    asyncio.run(run())


def test_a_session_without_a_transaction_is_refused(url):
    async def run():
        async with store_on(url) as store, client_of(url) as client:
            async with client.start_session() as session:
                with pytest.raises(InvalidSagaError, match="no open transaction"):
                    store.bind(session)
                await session.start_transaction()
                bound = store.bind(session)
                await session.abort_transaction()
                for use in (lambda: bound.get_by_id(SAGA, "x"), lambda: bound.count(SagaFilter())):
                    with pytest.raises(InvalidSagaError, match="no open transaction"):
                        await use()
            with pytest.raises(InvalidSagaError, match="no open transaction"):
                await bound.insert(SAGA, "order-1", OrderState())
            with pytest.raises(InvalidSagaError, match="AsyncClientSession"):
                store.bind(client)

    asyncio.run(run())


def test_many_tasks_take_turns_in_a_session(url):
    async def run():
        async with store_on(url) as store, transaction(url) as session:
            bound = store.bind(session)
            await asyncio.gather(*(bound.insert(SAGA, f"order-{n}", OrderState()) for n in range(10)))
            assert set(await asyncio.gather(*(bound.count(SagaFilter()) for _ in range(3)))) == {10}
            assert await store.count(SagaFilter()) == 0
            await session.commit_transaction()
            assert await store.count(SagaFilter()) == 10

    asyncio.run(run())


def test_the_index_is_looked_for_once_for_all_transactions(url):
    async def run():
        async with heard_store(url) as (heard, store):
            client = store._engine._client
            for _ in range(3):
                async with client.start_session() as session:
                    await session.start_transaction()
                    await store.bind(session).get_by_id(SAGA, "x")
                    await session.commit_transaction()
            assert "listIndexes" not in heard.names()

    asyncio.run(run())

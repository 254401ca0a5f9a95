"""Taking part in the caller's transaction."""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
    InvalidSagaError,
    SagaFilter,
    SagaNotFoundError,
    SagaState,
    SagaStoreError,
    SchemaError,
    StoreClosedError,
    UnsupportedOperationError,
)
from saga_bus.store_sqlite import SqliteSagaStore, create_schema


class Order(SagaState, kw_only=True):
    total: int = 0


@pytest.fixture
def path(tmp_path):
    asyncio.run(create_schema(tmp_path / "x.db"))
    return tmp_path / "x.db"


def on_file(path, **options):
    return SqliteSagaStore(path, state_types={"OrderSaga": Order}, **options)


def connected(path, **options):
    return closing(sqlite3.connect(path, **options))


def changed(order, total):
    return Order(metadata=order.metadata.next(), total=total)


@pytest.mark.parametrize("isolation_level", [None, "", "IMMEDIATE"])
@pytest.mark.parametrize("outcome", ["commit", "rollback"])
def test_sagas_and_business_rows_share_their_fate(path, isolation_level, outcome):
    async def run():
        async with on_file(path) as store:
            kept, gone = Order(), Order()
            await store.insert("OrderSaga", "kept", kept)
            await store.insert("OrderSaga", "gone", gone)
            with connected(path, isolation_level=isolation_level) as connection:
                connection.execute("CREATE TABLE business (x)")
                connection.commit()
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("INSERT INTO business VALUES (1)")
                async with store.bind(connection) as bound:
                    await bound.insert("OrderSaga", "new", Order(total=3))
                    await bound.update("OrderSaga", changed(kept, 7), 0)
                    await bound.delete("OrderSaga", gone.metadata.saga_id, 0)
                    assert (await bound.get_by_correlation_id("OrderSaga", "kept")).total == 7
                    assert await bound.count(SagaFilter()) == 2
                assert connection.in_transaction
                # Nobody else sees it yet.
                assert await store.get_by_correlation_id("OrderSaga", "new") is None
                getattr(connection, outcome)()
                business = connection.execute("SELECT count(*) FROM business").fetchone()[0]
            done = outcome == "commit"
            assert business == done
            assert (await store.get_by_correlation_id("OrderSaga", "new") is not None) is done
            assert (await store.get_by_correlation_id("OrderSaga", "gone") is None) is done
            assert (await store.get_by_id("OrderSaga", kept.metadata.saga_id)).total == (7 if done else 0)

    asyncio.run(run())


def test_refused_writes_leave_the_transaction_usable(path):
    async def run():
        async with on_file(path) as store:
            first = Order()
            await store.insert("OrderSaga", "first", first)
            with connected(path) as connection:
                connection.execute("BEGIN IMMEDIATE")
                bound = store.bind(connection)
                with pytest.raises(DuplicateSagaError):
                    await bound.insert("OrderSaga", "first", Order())
                with pytest.raises(DuplicateSagaError):
                    await bound.insert("OrderSaga", "second", first)
                with pytest.raises(ConcurrencyError):
                    await bound.update("OrderSaga", changed(changed(first, 1), 1), 1)
                with pytest.raises(SagaNotFoundError):
                    await bound.update("OrderSaga", changed(Order(), 1), 0)
                await bound.insert("OrderSaga", "third", Order())
                connection.commit()
            assert await store.get_by_correlation_id("OrderSaga", "second") is None
            assert await store.get_by_correlation_id("OrderSaga", "third") is not None

    asyncio.run(run())


def test_queries_purge_ping_and_schema_inside_a_transaction(path):
    async def run():
        async with on_file(path) as store:
            order = Order()
            await store.insert("OrderSaga", "done", order)
            await store.update("OrderSaga", Order(metadata=order.metadata.next(is_completed=True)), 0)
            with connected(path) as connection:
                connection.execute("BEGIN IMMEDIATE")
                bound = store.bind(connection)
                page = await bound.find(SagaFilter(completed=True))
                assert [record.correlation_id for record in page.items] == ["done"]
                assert await bound.delete_completed_before("OrderSaga", datetime.now(UTC) + timedelta(days=1)) == 1
                assert await bound.count(SagaFilter()) == 0
                assert (await bound.ping()).seconds >= 0
                await bound.check_schema()
                await bound.drop_schema()
                with pytest.raises(SchemaError):
                    await bound.check_schema()
                await bound.create_schema()
                await bound.check_schema()
                connection.rollback()
            assert await store.count(SagaFilter()) == 1

    asyncio.run(run())


def test_without_a_transaction_it_is_refused(path):
    async def run():
        async with on_file(path) as store:
            with connected(path) as connection:
                with pytest.raises(UnsupportedOperationError, match="BEGIN IMMEDIATE"):
                    store.bind(connection)
                connection.execute("BEGIN")
                bound = store.bind(connection)
                await bound.insert("OrderSaga", "first", Order())
                connection.commit()
                with pytest.raises(UnsupportedOperationError):
                    await bound.insert("OrderSaga", "second", Order())
                with pytest.raises(UnsupportedOperationError):
                    await bound.create_schema()
            assert await store.count(SagaFilter()) == 1

    asyncio.run(run())


def test_the_connection_stays_open_and_the_stores_are_independent(path):
    async def run():
        with connected(path) as connection:
            connection.execute("BEGIN IMMEDIATE")
            store = on_file(path)
            bound = store.bind(connection)
            await bound.insert("OrderSaga", "first", Order())
            await bound.close()
            with pytest.raises(StoreClosedError):
                await bound.count(SagaFilter())
            again = store.bind(connection)
            await store.close()
            with pytest.raises(StoreClosedError):
                store.bind(connection)
            assert await again.count(SagaFilter()) == 1
            assert connection.in_transaction
            connection.rollback()

    asyncio.run(run())


def test_it_keeps_the_class_the_types_and_the_table(tmp_path):
    class MyStore(SqliteSagaStore):
        pass

    async def run():
        async with MyStore(tmp_path / "x.db", table="orders") as store:
            await store.create_schema()
            with connected(tmp_path / "x.db") as connection:
                connection.execute("BEGIN IMMEDIATE")
                bound = store.bind(connection)
                assert type(bound) is MyStore
                store.register("OrderSaga", Order)
                await bound.insert("OrderSaga", "first", Order(total=5))
                assert await bound.get_by_correlation_id("OrderSaga", "first") == (
                    await bound.repository("OrderSaga", Order).get_by_correlation_id("first")
                )
                connection.commit()
                assert connection.execute("SELECT count(*) FROM orders").fetchone() == (1,)
                assert "the caller's transaction" in repr(bound)

    asyncio.run(run())


def test_what_is_no_connection_is_refused(path):
    async def run():
        async with on_file(path) as store:
            with pytest.raises(InvalidSagaError, match=r"sqlite3\.Connection"):
                store.bind("x.db")
            with pytest.raises(UnsupportedOperationError):
                SqliteSagaStore(":memory:").bind(None)

    asyncio.run(run())


def test_connections_that_cannot_be_used(path):
    async def run():
        async with on_file(path) as store:
            with connected(path) as connection:
                connection.execute("BEGIN")
                bound = store.bind(connection)
                await bound.insert("OrderSaga", "first", Order())
            with pytest.raises(SagaStoreError, match="closed"):
                await bound.insert("OrderSaga", "second", Order())
            with pytest.raises(SagaStoreError, match="closed"):
                store.bind(connection)
            with ThreadPoolExecutor(1) as elsewhere:
                foreign = elsewhere.submit(sqlite3.connect, path, isolation_level=None).result()
                elsewhere.submit(foreign.execute, "BEGIN").result()
                with pytest.raises(SagaStoreError, match="thread"):
                    await store.bind(foreign).insert("OrderSaga", "third", Order())
                elsewhere.submit(foreign.close).result()
            assert await store.count(SagaFilter()) == 0

    asyncio.run(run())


def test_a_database_without_the_schema(path, tmp_path):
    async def run():
        async with on_file(path) as store:
            with connected(tmp_path / "other.db") as connection:
                connection.execute("BEGIN IMMEDIATE")
                with pytest.raises(SchemaError):
                    await store.bind(connection).insert("OrderSaga", "first", Order())
                assert connection.in_transaction

    asyncio.run(run())


def test_a_connection_with_factories_of_its_own(path):
    async def run():
        async with on_file(path) as store:
            for row_factory, text_factory in ((sqlite3.Row, bytes), (lambda *_: None, str)):
                with connected(path) as connection:
                    connection.row_factory = row_factory
                    connection.text_factory = text_factory
                    connection.execute("BEGIN IMMEDIATE")
                    bound = store.bind(connection)
                    order = Order()
                    await bound.insert("OrderSaga", "first", order)
                    assert await bound.get_by_id("OrderSaga", order.metadata.saga_id) == order
                    (record,) = (await bound.find(SagaFilter())).items
                    assert (record.saga_name, record.correlation_id, record.state) == ("OrderSaga", "first", order)
                    assert await bound.count(SagaFilter()) == 1
                    assert isinstance((await bound.ping()).warnings, tuple)
                    with pytest.raises(ConcurrencyError) as caught:
                        await bound.delete("OrderSaga", order.metadata.saga_id, 3)
                    assert caught.value.actual_version == 0
                    connection.rollback()

    asyncio.run(run())

"""Every query reads about as many rows as it returns, and every group finds its rows by their keys."""

from datetime import UTC, datetime, timedelta

import pytest

from saga_bus.store import SagaFilter, SagaMetadata
from saga_bus.store.query import SagaOrder

START = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = 3000
PAGE = 20
LATER = START + timedelta(days=1000)


def filters(place) -> list[SagaFilter]:
    name = place.name
    return [
        SagaFilter(),
        SagaFilter(saga_name=name),
        SagaFilter(saga_name=name, completed=False, order="stalest"),
        SagaFilter(order="stalest"),
        SagaFilter(saga_name=name, completed=True, order="stalest"),
        SagaFilter(completed=True, order="stalest", updated_before=LATER),
        SagaFilter(timeout_due_before=LATER),
        SagaFilter(outbox_pending=True, order="stalest"),
    ]


@pytest.fixture
def filled(place, run):
    """Half of the sagas are completed, a tenth has a timeout, many share a moment, few have messages to send."""

    async def fill():
        async with place.opened():
            pass

    run(fill())
    values = []
    for number in range(ROWS):
        moment = f"'{(START + timedelta(seconds=number // 7)).replace(tzinfo=None)}'"
        done = number % 2
        timeout = moment if number % 10 == 0 else "NULL"
        document = place.store()._codec.encode(
            place.State(
                metadata=SagaMetadata(
                    saga_id=f"id-{number:05}", version=0, created_at=START, updated_at=START, is_completed=bool(done)
                )
            )
        )
        values.append(
            f"('{place.name}', 'id-{number:05}', 'order-{number}', 0, {done}, {moment}, {moment}, "
            f"{moment if done else 'NULL'}, NULL, {timeout}, {number % 500 == 0:d}, '{document.decode()}')"
        )
    place.execute(f"INSERT INTO {place.table} VALUES {', '.join(values)}", f"ANALYZE TABLE {place.table}")
    return place


async def rows_read(store, work):
    """How many rows or index entries the server reads for some work, by its own count."""

    async def count(_, session):
        ((_, rows),) = [(None, (await session.run(b"SHOW SESSION STATUS LIKE 'Handler_read%'"))[0].rows)]
        return sum(int(value) for _, value in rows)

    before = await store._engine.run(count)
    await work()
    return await store._engine.run(count) - before


@pytest.mark.parametrize("number", range(8))
def test_a_page_reads_no_more_than_it_returns(run, filled, number):
    saga_filter = filters(filled)[number]
    parts = 4 if saga_filter.order == "stalest" and saga_filter.completed is None else 2

    async def test():
        async with filled.store(pool_size=1) as store:
            cursor = None
            for _ in range(4):
                page = None

                async def fetch(cursor=cursor):
                    nonlocal page
                    page = await store.find(saga_filter, limit=PAGE, cursor=cursor)

                read = await rows_read(store, fetch)
                assert page.items
                # Merging reads what it has collected a few times more; SHOW STATUS reads a few rows of its own.
                assert read <= parts * (PAGE + 1) * 4 + 60, read
                cursor = page.cursor
                if cursor is None:
                    break

    run(test())


def test_pages_cover_all_in_order(run, filled):
    async def test():
        async with filled.store() as store:
            for saga_filter in filters(filled):
                seen, cursor = [], None
                while True:
                    page = await store.find(saga_filter, limit=400, cursor=cursor)
                    seen += [record.correlation_id for record in page.items]
                    cursor = page.cursor
                    if cursor is None:
                        break
                assert len(seen) == len(set(seen)) == await store.count(saga_filter)

    run(test())


def test_purging_reads_only_what_it_deletes(run, filled):
    async def test():
        async with filled.store(pool_size=1) as store:
            before = START + timedelta(seconds=20)

            async def purge():
                assert await store.delete_completed_before(filled.name, before) == 70

            assert await rows_read(store, purge) < 70 * 4 + 60

    run(test())


def test_purging_leaves_out_what_somebody_holds(run, filled):
    async def test():
        async with filled.store() as store, filled.holding("id-00001", "id-00003"):
            assert await store.delete_completed_before(filled.name, LATER, batch_size=500) == ROWS // 2 - 2
        async with filled.store() as store:
            assert await store.delete_completed_before(filled.name, LATER, batch_size=10**9) == 2

    run(test())


def test_groups_find_their_rows_by_their_keys(run, filled):
    async def test():
        async with filled.store(pool_size=1) as store:
            sql = store._engine._operations.sql
            keys = b", ".join(b"('%b', 'id-%05d')" % (filled.name.encode(), number) for number in range(0, 900, 9))
            orders = b", ".join(b"('%b', 'order-%d')" % (filled.name.encode(), number) for number in range(0, 900, 9))
            for template, given, index in (
                (sql.select_group_by_id, keys, "PRIMARY"),
                (sql.select_group_by_correlation_id, orders, "saga_correlation_id"),
                (sql.lock_group, keys, "PRIMARY"),
            ):
                statement = template.filled(given).replace(b"BEGIN;\n", b"").decode()
                plan = filled.execute(f"EXPLAIN {statement}")[0]
                assert "range" in plan
                assert index in plan

    run(test())


def test_every_order_is_covered():
    assert set(SagaOrder.__args__) == {"newest", "stalest", "due"}

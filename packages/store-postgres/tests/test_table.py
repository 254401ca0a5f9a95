"""What the table promises: HOT updates, queries on an index, documents that come back exactly."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest

from postgres_helpers import SAGA, OrderState, connected, follow, store_on
from saga_bus.store import CursorPosition, SagaFilter, SagaMetadata, SagaQuery, SagaState
from saga_bus.store.checks import microseconds
from saga_bus.store_postgres._documents import exact_text
from saga_bus.store_postgres._queries import count_statement, find_statement

ROWS = 3000
STATE = """jsonb_build_object('metadata', jsonb_build_object(
    'saga_id', 'id-' || n, 'version', 0, 'created_at', now(), 'updated_at', now()))"""


async def statistic(connection, store, column):
    await connection.execute("SELECT pg_stat_clear_snapshot()")
    return await connection.fetchval(f"SELECT {column} FROM pg_stat_user_tables WHERE relname = $1", store._table_name)


def test_updates_of_running_sagas_are_hot(url):
    updates = 20

    async def run():
        async with store_on(url) as store, connected(url) as connection:
            states = [OrderState(note="n" * 700) for _ in range(200)]
            await asyncio.gather(*(store.insert(SAGA, f"order-{n}", state) for n, state in enumerate(states)))
            for version in range(updates):
                states = [follow(state, f"{version:0700}") for state in states]
                await asyncio.gather(*(store.update(SAGA, state, version) for state in states))
            expected = updates * len(states)
            # Sessions report what they did when they end, or after a second.
            await store.close()
            async with asyncio.timeout(30):
                while (done := await statistic(connection, store, "n_tup_upd")) < expected:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            hot = await statistic(connection, store, "n_tup_hot_upd")
            assert done == expected
            assert hot >= 0.95 * expected, f"{hot} of {expected}"

    asyncio.run(run())


async def filled(store, connection):
    """A table of many sagas: every tenth is completed, every fiftieth has a timeout or waiting messages."""
    await connection.execute(
        f"""INSERT INTO {store._quoted} (saga_name, saga_id, correlation_id, version, is_completed, created_at,
                updated_at, timeout_expires_at, outbox_pending, state)
            SELECT '{SAGA}' || n % 3, 'id-' || n, 'c-' || n, 0, n % 10 = 0, now() - n * interval '1 minute',
                   now() - n * interval '1 minute', CASE WHEN n % 50 = 1 THEN now() - n * interval '1 hour' END,
                   n % 50 = 2, {STATE}
            FROM generate_series(1, {ROWS}) AS n"""
    )
    await connection.execute(f"ANALYZE {store._quoted}")


NOW = SagaMetadata.fresh().updated_at
YESTERDAY = NOW - timedelta(days=1)
FILTERS = [
    (SagaFilter(), "ix_newest"),
    (SagaFilter(saga_name=f"{SAGA}1"), "ix_newest"),  # of few names, either index on it is good
    (SagaFilter(completed=False, order="stalest"), "ix_running"),
    (SagaFilter(completed=False, order="stalest", updated_before=YESTERDAY), "ix_running"),
    (SagaFilter(saga_name=f"{SAGA}1", completed=False, order="stalest"), "ix_running"),
    (SagaFilter(completed=True, order="stalest"), "ix_completed"),
    (SagaFilter(saga_name=f"{SAGA}1", completed=True, order="stalest"), "ix_completed"),
    (SagaFilter(order="stalest"), "ix_running"),
    (SagaFilter(timeout_due_before=NOW), "ix_due"),
    (SagaFilter(outbox_pending=True), "ix_pending"),
]


def test_every_order_is_read_from_an_index(url):
    async def run():
        async with store_on(url) as store, connected(url) as connection:
            await filled(store, connection)
            for where, index in FILTERS:
                page = await store.find(where, limit=10)
                order = where.order or ("newest" if where.timeout_due_before is None else "due")
                last = microseconds(YESTERDAY)
                for after in (None, CursorPosition(last, f"{SAGA}1", "id-5")):
                    statement, parameters = find_statement(store._quoted, SagaQuery(where, order, 11, after))
                    plan = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *parameters)
                    assert index in plan, f"{where}: {plan}"
                    assert "Seq Scan" not in plan, f"{where}: {plan}"
                assert len(page.items) == 10

    asyncio.run(run())


@pytest.mark.parametrize("where", [where for where, _ in FILTERS])
def test_pages_hold_what_the_count_says(url, where):
    async def run():
        async with store_on(url) as store, connected(url) as connection:
            await connection.execute(
                f"""INSERT INTO {store._quoted} (saga_name, saga_id, correlation_id, version, is_completed, created_at,
                        updated_at, timeout_expires_at, outbox_pending, state)
                    SELECT '{SAGA}' || n % 3, 'id-' || n, 'c-' || n, 0, n % 4 = 0, now() - n % 5 * interval '1 day',
                           now() - n % 7 * interval '9 hours',
                           CASE WHEN n % 3 = 1 THEN now() - n * interval '1 hour' END,
                           n % 5 = 2, {STATE}
                    FROM generate_series(1, 200) AS n"""
            )
            seen, cursor = [], None
            while True:
                page = await store.find(where, limit=7, cursor=cursor)
                seen += [record.correlation_id for record in page.items]
                cursor = page.cursor
                if cursor is None:
                    break
            assert len(seen) == len(set(seen)) == await store.count(where) > 0

    asyncio.run(run())


def test_the_hot_path_reads_by_the_keys(url):
    async def run():
        async with store_on(url) as store, connected(url) as connection:
            await filled(store, connection)
            sql = store._statements
            group = json.dumps([{"number": n, "extra": "1", "saga_name": "x", "saga_id": "y"} for n in range(64)])
            for statement, parameters in (
                (sql.get_one["saga_id"], ("x", "y")),
                (sql.get_one["correlation_id"], ("x", "y")),
                (sql.get_many["saga_id"], (["x"] * 64, ["y"] * 64)),
                (sql.get_many["correlation_id"], (["x"] * 64, ["y"] * 64)),
                (sql.update_many, (group,)),
                (sql.select_versions, (["x"] * 64, ["y"] * 64)),
                (sql.delete_version, ("x", "y", 1)),
            ):
                plan = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *parameters)
                assert "Seq Scan" not in plan, plan
            for moment in (YESTERDAY, NOW):
                plan = await connection.fetchval(
                    f"EXPLAIN (FORMAT JSON) {sql.purge}", f"{SAGA}1", moment.isoformat(), 1000
                )
                assert "ix_completed" in plan, plan  # of few names, either index on it is good
                assert "Seq Scan" not in plan, plan
            statement, parameters = count_statement(store._quoted, SagaFilter(timeout_due_before=NOW))
            assert "ix_due" in await connection.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *parameters)

    asyncio.run(run())


class AnyState(SagaState, kw_only=True):
    data: dict


NUMBERS = [
    -0.0,
    0.0,
    1e16,
    -1e16,
    1e300,
    1e-9,
    -1.5e-10,
    5e-324,
    1.7976931348623157e308,
    1.0,
    100.0,
    2**63 - 1,
    -(2**63),
    0.1,
]


def test_numbers_come_back_as_they_were(url):
    async def run():
        async with store_on(url) as store:
            store.register("Any", AnyState)
            for number in NUMBERS:
                state = AnyState(data={"n": number, "list": [number, 1], "text": "1e16, -0.0"})
                await store.insert("Any", f"number-{number!r}", state)
                found = (await store.get_by_id("Any", state.metadata.saga_id)).data["n"]
                assert (type(found), repr(found)) == (type(number), repr(number))

    asyncio.run(run())


def test_only_what_jsonb_changes_is_kept_twice(url):
    async def run():
        async with store_on(url) as store, connected(url) as connection:
            store.register("Any", AnyState)
            await store.insert("Any", "plain", AnyState(data={"n": 1.5, "id": "0192e3e5-1e57-7e2d-8e5a-2e3d4e5f6071"}))
            exact = AnyState(data={"n": 1e16})
            await store.insert("Any", "exact", exact)
            kept = f"SELECT correlation_id FROM {store._quoted} WHERE exact_state IS NOT NULL"
            assert await connection.fetch(kept) == [("exact",)]
            await store.update("Any", AnyState(metadata=exact.metadata.next(), data={"n": 2}), 0)
            assert await connection.fetch(kept) == []
            assert (await store.get_by_correlation_id("Any", "exact")).data == {"n": 2}

    asyncio.run(run())


@pytest.mark.parametrize(
    ("document", "kept"),
    [
        (b'{"a":1e16}', True),
        (b'{"a": 1E+16 }', True),
        (b"[1.5e300]", True),
        (b'{"a":-0.0}', True),
        (b'{"a":5e-324}', True),
        (b'{"a":[-1e-10,2]}', True),
        (b'{"a":1e-7}', False),
        (b'{"a":-1.5,"b":100}', False),
        (b'{"a":"6e1a2e3b-4e5f"}', False),
    ],
)
def test_which_documents_are_kept_twice(document, kept):
    assert exact_text(document) == (document.decode() if kept else None)
    json.loads(document)

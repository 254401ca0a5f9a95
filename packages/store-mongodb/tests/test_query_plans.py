"""Every page is read from the index that gives its order."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from mongodb_helpers import SAGA, OrderState, client_of, store_on
from saga_bus.store import CursorPosition, SagaFilter, SagaMetadata, SagaQuery
from saga_bus.store.checks import microseconds
from saga_bus.store.query import order_of
from saga_bus.store_mongodb._queries import conditions_of, page_of

NOW = SagaMetadata.fresh().updated_at
YESTERDAY = NOW - timedelta(days=1)
FILTERS = [
    (SagaFilter(), "saga_newest"),
    (SagaFilter(saga_name=SAGA), "saga_newest_of_name"),
    (SagaFilter(saga_name=SAGA, completed=False, updated_before=NOW), "saga_newest_of_name"),
    (SagaFilter(order="stalest"), "saga_stalest"),
    (SagaFilter(completed=False, order="stalest"), "saga_stalest"),
    (SagaFilter(saga_name=SAGA, completed=False, order="stalest", updated_before=NOW), "saga_stalest"),
    (SagaFilter(completed=True, order="stalest"), "saga_stalest"),
    (SagaFilter(saga_name=SAGA, completed=True, order="stalest"), "saga_completed_of_name"),
    (SagaFilter(timeout_due_before=NOW + timedelta(days=9)), "saga_due"),
    (SagaFilter(saga_name=SAGA, timeout_due_before=NOW + timedelta(days=9)), "saga_due"),
    (SagaFilter(timeout_due_before=NOW + timedelta(days=9), order="newest"), "saga_newest"),
    (SagaFilter(outbox_pending=True), "saga_pending"),
    (SagaFilter(saga_name=SAGA, outbox_pending=True), "saga_pending"),
]


def state_of(number):
    metadata = SagaMetadata(
        saga_id=f"id-{number}",
        version=0,
        created_at=NOW - timedelta(days=number % 5),
        updated_at=NOW - timedelta(hours=9 * (number % 7)),
        is_completed=number % 4 == 0,
        timeout_expires_at=NOW + timedelta(hours=number) if number % 3 == 1 else None,
        outbox=({"id": "m"},) if number % 5 == 2 else (),
    )
    return OrderState(metadata=metadata)


async def fill(store):
    store.register("Other", OrderState)
    await asyncio.gather(
        *(store.insert(SAGA if number % 3 else "Other", f"c-{number}", state_of(number)) for number in range(60))
    )


def stages(plan):
    """The names of a plan's stages, and the indexes that they walk."""
    if isinstance(plan, dict):
        for key, value in plan.items():
            if key in ("stage", "indexName") and isinstance(value, str):
                yield value
            else:
                yield from stages(value)
    elif isinstance(plan, list):
        for item in plan:
            yield from stages(item)


def test_pages_hold_what_the_count_says(url):
    async def run():
        async with store_on(url) as store:
            await fill(store)
            for where, _ in FILTERS:
                seen, cursor = [], None
                while True:
                    page = await store.find(where, limit=7, cursor=cursor)
                    seen += [record.correlation_id for record in page.items]
                    cursor = page.cursor
                    if cursor is None:
                        break
                assert len(seen) == len(set(seen)) == await store.count(where) > 0, where

    asyncio.run(run())


def test_each_page_walks_the_index_of_its_order(url):
    async def run():
        async with store_on(url) as store, client_of(url) as client:
            await fill(store)
            sagas = client.get_default_database()[store._names[1]]
            is_real = (
                "secantus" not in str(await client.admin.command("buildInfo")).lower()
                and (await client.admin.command("hello")).get("setName") != "secantus"
            )
            for where, index in FILTERS:
                for after in (None, CursorPosition(microseconds(YESTERDAY), SAGA, "id-5")):
                    page = page_of(SagaQuery(where, order_of(where), 11, after))
                    assert page.hint == index
                    cursor = sagas.find(page.where, page.fields).sort(page.sort).hint(page.hint).limit(11)
                    plan = (await cursor.explain())["queryPlanner"]["winningPlan"]
                    if is_real:  # SecantusDB walks the index and sorts nevertheless
                        assert index in stages(plan), f"{where}: {plan}"
                        assert "SORT" not in stages(plan), f"{where}: {plan}"
            plan = (await sagas.find(conditions_of(SagaFilter(timeout_due_before=NOW))).explain())["queryPlanner"]
            if is_real:
                assert "COLLSCAN" not in stages(plan["winningPlan"])

    asyncio.run(run())


def test_the_hot_path_reads_by_the_keys(url):
    async def run():
        async with store_on(url) as store, client_of(url) as client:
            await fill(store)
            sagas = client.get_default_database()[store._names[1]]
            for where in (
                {"_id": f"{SAGA}/id-1"},
                {"_id": {"$in": [f"{SAGA}/id-1", f"{SAGA}/id-3"]}},
                {"saga_name": SAGA, "correlation_id": "c-1"},
                {"saga_name": SAGA, "correlation_id": {"$in": ["c-1", "c-3"]}},
            ):
                plan = (await sagas.find(where).explain())["queryPlanner"]["winningPlan"]
                assert "COLLSCAN" not in stages(plan), f"{where}: {plan}"

    asyncio.run(run())

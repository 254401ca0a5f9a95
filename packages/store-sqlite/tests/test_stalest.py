"""The index of running sagas knows only the hour of an update; what is found must not show it."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from saga_bus.store import SagaFilter, SagaMetadata, SagaState
from saga_bus.store_sqlite import SqliteSagaStore

HOUR = timedelta(hours=1)


def state(saga_id, created_at, updated_at, version=0, *, completed=False):
    return SagaState(
        metadata=SagaMetadata(
            saga_id=saga_id, version=version, created_at=created_at, updated_at=updated_at, is_completed=completed
        )
    )


async def pages(store, where):
    found, cursor = [], None
    while True:
        page = await store.find(where, limit=1, cursor=cursor)
        found += [record.state.metadata.saga_id for record in page.items]
        cursor = page.cursor
        if cursor is None:
            return found


@pytest.mark.parametrize("start", [datetime(1969, 12, 31, 22, 30, tzinfo=UTC), datetime(2026, 5, 1, 8, tzinfo=UTC)])
def test_updates_within_an_hour_and_beyond_it_are_found_in_their_order(tmp_path, start):
    async def run():
        async with SqliteSagaStore(tmp_path / "x.db") as store:
            await store.create_schema()
            for saga_id in "abcde":
                await store.insert("OrderSaga", saga_id, state(saga_id, start, start))
            for saga_id, after, version in (
                ("a", 2 * HOUR, 1),  # moves to another hour
                ("b", timedelta(minutes=20), 1),  # stays in its own
                ("b", timedelta(minutes=25), 2),
                ("c", timedelta(minutes=10), 1),
                ("d", HOUR, 1),
                ("d", HOUR + timedelta(microseconds=1), 2),
            ):
                await store.update("OrderSaga", state(saga_id, start, start + after, version), version - 1)
            completed = state("e", start, start + timedelta(minutes=15), 1, completed=True)
            await store.update("OrderSaga", completed, 0)
            assert await pages(store, SagaFilter(order="stalest")) == ["c", "e", "b", "d", "a"]
            assert await pages(store, SagaFilter(order="stalest", completed=False)) == ["c", "b", "d", "a"]
            for moment, number in ((25, 2), (26, 3), (60, 3), (61, 4), (121, 5)):
                bound = SagaFilter(order="stalest", updated_before=start + timedelta(minutes=moment))
                assert (await store.count(bound), len(await pages(store, bound))) == (number, number)
                after = SagaFilter(updated_after=start + timedelta(minutes=moment))
                assert await store.count(after) == 5 - number - (moment == 25)
            reopened = state("e", start, start + timedelta(minutes=15), 2)
            await store.update("OrderSaga", reopened, 1)
            assert await pages(store, SagaFilter(order="stalest", completed=False)) == ["c", "e", "b", "d", "a"]

    asyncio.run(run())
    with closing(sqlite3.connect(tmp_path / "x.db")) as connection:
        wrong = "updated_hour * 3600000000 > updated_at OR (updated_hour + 1) * 3600000000 <= updated_at"
        assert connection.execute(f"SELECT count(*) FROM saga_instances WHERE {wrong}").fetchone() == (0,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)

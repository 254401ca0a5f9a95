"""One SQLite file for two stores, and the way from Prisma to the PostgreSQL store."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from postgres_helpers import connected
from saga_bus.store import ConcurrencyError, DuplicateSagaError, SagaFilter, SagaState
from saga_bus.store_postgres import PostgresSagaStore
from saga_bus.store_prisma import PrismaSagaStore
from saga_bus.store_sqlite import SqliteSagaStore

NAME = "OrderSaga"
PAGE = Path(__file__).parents[3] / "docs" / "stores" / "prisma.md"


class OrderState(SagaState, kw_only=True):
    note: str = ""
    share: float = 0.1


def following(state, **changes):
    state.metadata = state.metadata.next(**changes)
    return state


@pytest.mark.parametrize("creator", ["prisma", "sqlite"])
def test_the_sqlite_store_and_this_one_share_a_table(on_sqlite, tmp_path, creator):
    types = {NAME: OrderState}

    async def main():
        other = SqliteSagaStore(tmp_path / "sagas.db", table="Saga 0 é", state_types=types)
        async with on_sqlite.connected() as client, other:
            prisma = PrismaSagaStore(prisma=client, model="saga0", state_types=types)
            first, second = (prisma, other) if creator == "prisma" else (other, prisma)
            await first.create_schema()
            await second.create_schema()
            await prisma.check_schema()
            await other.check_schema()
            for writer, reader in ((prisma, other), (other, prisma)):
                state = OrderState(note="line\u2028end \U0001f600 \x85", share=-0.0)
                await writer.insert(NAME, f"order {id(writer)}", state)
                with pytest.raises(DuplicateSagaError):
                    await reader.insert(NAME, f"order {id(writer)}", OrderState())
                found = await reader.get_by_correlation_id(NAME, f"order {id(writer)}")
                assert found == state
                await reader.update(NAME, following(found, is_completed=True), 0)
                with pytest.raises(ConcurrencyError):
                    await writer.update(NAME, following(state), 0)
                assert await writer.get_by_id(NAME, found.metadata.saga_id) == found
            late = datetime.now(UTC) + timedelta(hours=1)
            for where in (
                SagaFilter(completed=True, order="stalest", updated_before=late),
                SagaFilter(saga_name=NAME, updated_after=late - timedelta(hours=2)),
                SagaFilter(order="stalest"),
            ):
                assert (await prisma.find(where)).items == (await other.find(where)).items
                page = await prisma.find(where, limit=1)
                assert (await other.find(where, cursor=page.cursor)).items == (await other.find(where)).items[1:]
            assert await prisma.delete_completed_before(NAME, late) == 2
            assert await other.count(SagaFilter()) == 0
            await second.drop_schema()

    asyncio.run(main())


def test_the_way_to_the_postgres_store(on_postgres):
    """The statement that the documentation names moves all sagas as they are."""
    (statement,) = re.findall(r"^```sql\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    old, new = "Saga 3 é", "moved_from_prisma"
    statement = statement.replace("saga_instances", f'"{old}"').replace("INTO sagas", f"INTO {new}")
    types = {NAME: OrderState}
    due = datetime(2030, 1, 1, 0, 0, 0, 1, tzinfo=UTC)
    states = [OrderState(note=f"{number} é", share=share) for number, share in enumerate((0.1, -0.0, 1e16, 1e22))]
    states[0].metadata = states[0].metadata.next(timeout=timedelta(days=1), timeout_expires_at=due)
    states[1].metadata = states[1].metadata.next(is_completed=True)

    async def main():
        store = PostgresSagaStore(on_postgres.url, table=new, state_types=types)
        async with on_postgres.connected() as client, store, connected(on_postgres.url) as connection:
            prisma = PrismaSagaStore(prisma=client, model="saga3", state_types=types)
            await prisma.create_schema()
            await store.create_schema()
            try:
                for number, state in enumerate(states):
                    await prisma.insert(NAME, f"order-{number}", state)
                await connection.execute(statement)
                for number, state in enumerate(states):
                    found = await store.get_by_correlation_id(NAME, f"order-{number}")
                    assert found == state
                    assert str(found.share) == str(state.share)  # -0.0 too
                for where in (
                    SagaFilter(timeout_due_before=due + timedelta(microseconds=1)),
                    SagaFilter(timeout_due_before=due),
                    SagaFilter(completed=True),
                    SagaFilter(order="stalest"),
                ):
                    assert (await prisma.find(where)).items == (await store.find(where)).items
            finally:
                await prisma.drop_schema()
                await store.drop_schema()

    asyncio.run(main())

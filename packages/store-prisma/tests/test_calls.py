"""What each operation sends: how many calls, and which."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from saga_bus.store import ConcurrencyError, SagaFilter, UntypedSagaState
from saga_bus.store_prisma import PrismaSagaStore, create_schema, drop_schema

NAME = "OrderSaga"


@asynccontextmanager
async def recorded(clients):
    """A store, and what its client sends to the engine."""
    async with clients.connected() as client:
        await create_schema(client, model="saga1")
        engine, sent = client._engine, []
        query = engine.query

        async def recording(content, **options):
            sent.append(json.loads(content)["query"])
            return await query(content, **options)

        engine.query = recording
        try:
            yield PrismaSagaStore(prisma=client, model="saga1"), sent
        finally:
            engine.query = query
            await drop_schema(client, model="saga1")


def operations(sent):
    found = [re.search(r"result: (\w+?)(?:Saga1)?\b", query)[1] for query in sent]
    sent.clear()
    return found


def following(state, **changes):
    state.metadata = state.metadata.next(**changes)
    return state


def test_the_calls_of_each_operation(on_sqlite):
    async def main():
        async with recorded(on_sqlite) as (store, sent):
            state = UntypedSagaState()
            saga_id = state.metadata.saga_id
            await store.insert(NAME, "1", state)
            assert operations(sent) == ["createMany"]
            await store.get_by_id(NAME, saga_id)
            await store.get_by_correlation_id(NAME, "1")
            assert operations(sent) == ["findUnique", "findUnique"]
            await store.update(NAME, following(state), 0)
            (update,) = sent
            assert operations(sent) == ["updateMany"]
            where = update[update.index("where:") :]
            assert all(part in where for part in (f'"{NAME}"', f'"{saga_id}"', "version: 0"))
            with pytest.raises(ConcurrencyError) as caught:
                await store.update(NAME, UntypedSagaState(metadata=state.metadata), 0)
            assert caught.value.actual_version == 1
            assert operations(sent) == ["updateMany", "groupBy"]
            await store.find(SagaFilter())
            await store.count(SagaFilter())
            await store.find(SagaFilter(order="stalest"))
            assert operations(sent) == ["findMany", "aggregate", "findMany", "findMany"]
            with pytest.raises(ConcurrencyError):
                await store.delete(NAME, saga_id, 7)
            assert operations(sent) == ["deleteMany", "groupBy"]
            await store.delete(NAME, saga_id, 1)
            await store.delete(NAME, saga_id)
            assert operations(sent) == ["deleteMany", "deleteMany"]

    asyncio.run(main())


def test_a_purge_deletes_by_its_conditions_again(on_sqlite):
    async def main():
        async with recorded(on_sqlite) as (store, sent):
            for number in range(3):
                await store.insert(NAME, f"{number}", following(UntypedSagaState(), is_completed=True))
            sent.clear()
            late = datetime.now(UTC) + timedelta(hours=1)
            assert await store.delete_completed_before(NAME, late, batch_size=2) == 3
            deletes = [query for query in sent if "deleteMany" in query]
            for query in deletes:
                assert "is_completed: true" in query
                assert "updated_at" in query
            assert operations(sent) == ["groupBy", "deleteMany"] * 2 + ["groupBy"]

    asyncio.run(main())


@pytest.mark.parametrize("place", ["on_sqlite", "on_postgres"])
def test_reads_of_many_tasks_are_few_calls(request, place):
    clients = request.getfixturevalue(place)

    async def main():
        async with recorded(clients) as (store, sent):
            states = [UntypedSagaState(data={"number": number}) for number in range(30)]
            for number, state in enumerate(states):
                await store.insert(NAME if number % 2 else "Other\u2028Saga", f"order {number}\u2028", state)
            sent.clear()

            async def get(number, state):
                name = NAME if number % 2 else "Other\u2028Saga"
                other = "Other\u2028Saga" if number % 2 else NAME
                by_id, by_correlation, nothing = await asyncio.gather(
                    store.get_by_id(name, state.metadata.saga_id),
                    store.get_by_correlation_id(name, f"order {number}\u2028"),
                    store.get_by_correlation_id(other, f"order {number}\u2028"),
                )
                assert by_id == by_correlation == state
                assert nothing is None

            await asyncio.gather(*(get(number, state) for number, state in enumerate(states)))
            assert len(sent) <= 6
            assert {"findMany"} <= set(operations(sent)) <= {"findMany", "findUnique"}

    asyncio.run(main())


def test_the_update_is_one_statement_in_the_database(on_private_postgres, private_postgres):
    """Prisma's calls for many rows could as well look for the rows first, and update them afterwards."""

    async def main():
        async with recorded(on_private_postgres) as (store, _):
            state = UntypedSagaState()
            await store.insert(NAME, "1", state)
            log = private_postgres.log_file
            before = log.stat().st_size
            await store.update(NAME, following(state), 0)
            await store.delete(NAME, state.metadata.saga_id, 1)
            lines = log.read_bytes()[before:].decode()
            statements = re.findall(r"execute [^:]*: (\w+) (.*)", lines)
            assert [verb for verb, _ in statements] == ["UPDATE", "DELETE"]
            assert all('"version" = $' in rest.partition("WHERE")[2] for _, rest in statements)

    asyncio.run(main())

"""Creating, checking, migrating and dropping the schema."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from datetime import timedelta

import asyncpg
import pytest

from postgres_helpers import connected, new_table, with_user
from saga_bus.store import InvalidSagaError, SagaFilter, SagaState, SagaStoreError, SchemaError
from saga_bus.store_postgres import PostgresSagaStore, check_schema, create_schema, drop_schema, get_schema_sql
from saga_bus.store_postgres import _schema as schema_work
from saga_bus.store_postgres._errors import sqlstate_of

NAMES = ["order", "Sagas", 'quote"d', "it's", "with space", "ünïcode", "n" * 60, "a.b", "%s", "{table}", "$1", "back\\"]

OBJECTS = """\
SELECT c.relname, c.relkind::text, pg_get_indexdef(c.oid), c.reloptions::text,
       (SELECT array_agg(format('%s %s %s %s %s', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                                a.attcollation, pg_get_expr(d.adbin, d.adrelid)) ORDER BY a.attnum)
        FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = c.oid AND a.attnum > 0)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 ORDER BY 1"""


def new_schema():
    return f"s_{uuid.uuid4().hex[:12]}"


async def objects(url, schema):
    async with connected(url) as connection:
        return [str(tuple(row)).replace(schema, "SCHEMA") for row in await connection.fetch(OBJECTS, schema)]


async def dropped(url, schema):
    async with connected(url) as connection:
        await connection.execute(f'DROP SCHEMA IF EXISTS "{schema.replace(chr(34), chr(34) * 2)}" CASCADE')


async def use(url, **options):
    async with PostgresSagaStore(url, **options) as store:
        state = SagaState()
        await store.insert("OrderSaga", "order-1", state)
        await store.update("OrderSaga", SagaState(metadata=state.metadata.next()), 0)
        found = await store.get_by_id("OrderSaga", state.metadata.saga_id)
        assert (await store.find(SagaFilter())).items[0].correlation_id == "order-1"
        return found.metadata.version


@pytest.mark.parametrize("name", NAMES)
def test_any_table_and_schema_name(url, name):
    schema = f"{name[:40]}{uuid.uuid4().hex[:8]}"

    async def run():
        for _ in range(2):
            await create_schema(url, table=name, schema=schema)
        await check_schema(url, table=name, schema=schema)
        assert await use(url, table=name, schema=schema) == 1
        await drop_schema(url, table=name, schema=schema)
        assert await objects(url, schema) == []
        await dropped(url, schema)

    asyncio.run(run())


@pytest.mark.parametrize("name", ["saga_instances", *NAMES])
def test_the_printed_schema_is_the_created_one(url, name):
    async def run():
        created, printed = new_schema(), new_schema()
        await create_schema(url, table=name, schema=created)
        async with connected(url) as connection:
            await connection.execute(get_schema_sql(table=name, schema=printed))
        assert await objects(url, printed) == await objects(url, created)
        assert await use(url, table=name, schema=printed) == 1
        await dropped(url, created)
        await dropped(url, printed)

    asyncio.run(run())


@pytest.mark.parametrize("names", [{"table": "saga_bus_schema"}, {"table": ""}, {"table": "x" * 64}, {"schema": "a\0"}])
def test_a_bad_name_is_refused(names):
    with pytest.raises(InvalidSagaError):
        get_schema_sql(**names)
    with pytest.raises(InvalidSagaError):
        PostgresSagaStore("postgresql://localhost/x", **names)


def test_two_long_names_that_begin_alike_do_not_collide(url):
    async def run():
        schema, names = new_schema(), ["n" * 60 + "a", "n" * 60 + "b"]
        for name in names:
            await create_schema(url, table=name, schema=schema)
            assert await use(url, table=name, schema=schema) == 1
        counts = [sum(f'"{name}"' in line or name in line for line in await objects(url, schema)) for name in names]
        assert counts[0] == counts[1] == 1 + 2 + len(schema_work.INDEXES)
        await dropped(url, schema)

    asyncio.run(run())


def test_tables_share_a_schema_and_its_record(url):
    async def run():
        schema = new_schema()
        for table in ("first", "second"):
            await create_schema(url, table=table, schema=schema)
            await use(url, table=table, schema=schema)
        await drop_schema(url, table="first", schema=schema)
        with pytest.raises(SchemaError, match="'first'"):
            await check_schema(url, table="first", schema=schema)
        await check_schema(url, table="second", schema=schema)
        await drop_schema(url, table="second", schema=schema)
        assert await objects(url, schema) == []
        await dropped(url, schema)

    asyncio.run(run())


def test_a_missing_table_says_what_to_run(url):
    async def run():
        for work in (use(url, table=new_table()), check_schema(url, table=new_table())):
            with pytest.raises(SchemaError, match=r"run create_schema\(\)"):
                await work
        with pytest.raises(SchemaError, match=r"run create_schema\(\)"):
            await use(url, schema=new_schema())
        await drop_schema(url, table=new_table())

    asyncio.run(run())


def test_a_dropped_table_is_missed_and_made_again(url):
    async def run():
        schema = new_schema()
        await create_schema(url, schema=schema)
        async with connected(url) as connection:
            await connection.execute(f"DROP TABLE {schema}.saga_instances")
        with pytest.raises(SchemaError, match="create_schema"):
            await check_schema(url, schema=schema)
        await create_schema(url, schema=schema)
        assert await use(url, schema=schema) == 1
        await dropped(url, schema)

    asyncio.run(run())


def test_somebody_elses_table_is_left_alone(url):
    async def run():
        table = new_table()
        async with connected(url) as connection:
            await connection.execute(f"CREATE TABLE {table} (x int)")
            with pytest.raises(SchemaError, match="did not make"):
                await create_schema(url, table=table)
            await drop_schema(url, table=table)
            await connection.execute(f"DROP TABLE {table}")

    asyncio.run(run())


def test_versions(url, monkeypatch):
    done = []

    async def migrate(connection, schema, table):
        done.append((schema, table))

    async def run():
        schema = new_schema()
        await create_schema(url, schema=schema)
        monkeypatch.setattr(schema_work, "MIGRATIONS", (migrate,))
        with pytest.raises(SchemaError, match="has schema version 1, the package needs 2"):
            await check_schema(url, schema=schema)
        await create_schema(url, schema=schema)
        await create_schema(url, schema=schema)
        assert done == [(schema, "saga_instances")]
        await check_schema(url, schema=schema)
        monkeypatch.setattr(schema_work, "MIGRATIONS", ())
        for work in (check_schema(url, schema=schema), create_schema(url, schema=schema)):
            with pytest.raises(SchemaError, match="newer than this package"):
                await work
        await dropped(url, schema)

    asyncio.run(run())


CREATE = """
import asyncio, sys
import asyncpg
from saga_bus.store_postgres import check_schema, create_schema

async def run():
    async with asyncpg.create_pool(sys.argv[1], min_size=1) as pool:
        print("ready", flush=True)
        for line in sys.stdin:
            await create_schema(pool, schema=line.strip())
            await check_schema(pool, schema=line.strip())
            print("done", flush=True)

asyncio.run(run())
"""


def test_ten_processes_create_at_once(url):
    command = [sys.executable, "-c", CREATE, url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    schemas = [new_schema() for _ in range(3)]
    processes = [subprocess.Popen(command, **pipes, text=True) for _ in range(10)]
    said = [[process.stdout.readline()] for process in processes]
    for schema in schemas:
        for process in processes:
            process.stdin.write(f"{schema}\n")
            process.stdin.flush()
        for process, lines in zip(processes, said, strict=True):
            lines.append(process.stdout.readline())
    ends = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]
    for schema in schemas:
        asyncio.run(dropped(url, schema))
    assert ends == [("", 0)] * 10
    assert said == [["ready\n", *["done\n"] * 3]] * 10


async def refused(work):
    with pytest.raises(SagaStoreError) as caught:
        await work
    assert sqlstate_of(caught.value) == "42501"


def test_a_role_without_the_right_to_create_can_do_all_the_rest(url):
    async def run():
        schema, role = new_schema(), f"r_{uuid.uuid4().hex[:8]}"
        as_role = with_user(url, role, "r1ght-s3cret")
        await create_schema(url, schema=schema)
        made = await objects(url, schema)
        async with connected(url) as connection:
            await connection.execute(
                f"CREATE ROLE {role} LOGIN PASSWORD 'r1ght-s3cret'; GRANT USAGE ON SCHEMA {schema} TO {role};"
                f"GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.saga_instances TO {role};"
                f"GRANT SELECT ON {schema}.saga_bus_schema TO {role}"
            )
            try:
                await refused(create_schema(as_role, table="another", schema=schema))
                await refused(create_schema(as_role, schema=new_schema()))
                await refused(drop_schema(as_role, schema=schema))
                await check_schema(as_role, schema=schema)
                await create_schema(as_role, schema=schema)  # nothing is missing
                await do_all_but_create(as_role, schema)
                assert await objects(url, schema) == made
            finally:
                await dropped(url, schema)
                await connection.execute(f"DROP ROLE {role}")

    asyncio.run(run())


async def do_all_but_create(url, schema):
    async with PostgresSagaStore(url, schema=schema) as store, connected(url) as connection:
        assert (await store.ping()).warnings == ()
        states = [SagaState() for _ in range(4)]
        await asyncio.gather(*(store.insert("OrderSaga", f"order-{n}", state) for n, state in enumerate(states)))
        ended = [SagaState(metadata=state.metadata.next(is_completed=True)) for state in states]
        await asyncio.gather(*(store.update("OrderSaga", state, 0) for state in ended))
        one, other, bound_one = (state.metadata.saga_id for state in states[:3])
        assert (await store.get_by_id("OrderSaga", one)).metadata.version == 1
        assert (await store.get_by_correlation_id("OrderSaga", "order-1")).metadata.saga_id == other
        await store.delete("OrderSaga", one)
        await store.delete("OrderSaga", other, 1)
        async with connection.transaction():
            bound = store.bind(connection)
            assert (await bound.get_by_id("OrderSaga", bound_one)).metadata.version == 1
            await bound.insert("OrderSaga", "order-4", SagaState())
            await bound.delete("OrderSaga", bound_one, 1)
        page = await store.find(SagaFilter())
        assert [record.correlation_id for record in page.items] == ["order-4", "order-3"]
        assert await store.count(SagaFilter(completed=True)) == 1
        assert await store.delete_completed_before("OrderSaga", states[0].metadata.created_at + timedelta(days=1)) == 1
        assert await store.count(SagaFilter()) == 1


def test_a_pool_serves_the_helpers_too(url):
    async def run():
        schema = new_schema()
        async with asyncpg.create_pool(url, min_size=0) as pool:
            await create_schema(pool, schema=schema)
            await check_schema(pool, schema=schema)
            await drop_schema(pool, schema=schema)
            assert not pool.is_closing()
        await dropped(url, schema)

    asyncio.run(run())

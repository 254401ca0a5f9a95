"""Creating, checking, migrating and dropping, under any name and from many processes at once."""

import asyncio
import subprocess
import sys

import aiomysql
import pytest

from providers.mysql import connection_options, execute
from saga_bus.store import InvalidSagaError, SagaStoreError, SchemaError
from saga_bus.store.identifiers import quote_identifier
from saga_bus.store_mysql import (
    MySqlSagaStore,
    _schema,
    check_schema,
    create_schema,
    drop_schema,
    get_schema_sql,
)

ODD_NAMES = [
    "select",
    "Order",
    "MiXeD_CaSe",
    'quo"te',
    "back`tick",
    "apo'strophe",
    "per%cent %s {0} ?",
    "semi;colon -- /*",
    "Ünïcödé-表",
    "x" * 60,
    "ä" * 64,
]


def quoted(name):
    return quote_identifier(name, style="mysql")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_of_tables_and_databases(run, place, name):
    database = f"{name[:50]}_{place.table[-4:]}"

    async def test():
        place.execute(f"CREATE DATABASE {quoted(database)}")
        try:
            store = MySqlSagaStore(place.url, table=name, schema=database, state_types={place.name: place.State})
            async with store:
                await store.create_schema()
                await store.create_schema()
                await store.check_schema()
                await place.insert(store, *"abc")
                await asyncio.gather(*(store.update(place.name, place.state(key, version=1), 0) for key in "abc"))
                assert (await store.get_by_correlation_id(place.name, "order-b")).metadata.version == 1
                with pytest.raises(SagaStoreError, match="taken"):
                    await store.insert(place.name, "order-a", place.state("new"))
                await store.drop_schema()
                await store.drop_schema()
                with pytest.raises(SchemaError, match="create_schema"):
                    await store.check_schema()
        finally:
            place.execute(f"DROP DATABASE {quoted(database)}")

    run(test())


@pytest.mark.parametrize("name", ["", "x" * 65, "blank ", "nul\x00", "line\nbreak", "astral-\U0001f600", 5, None])
def test_bad_names_are_refused(place, name):
    with pytest.raises(InvalidSagaError):
        MySqlSagaStore(place.url, table=name)
    if name is not None:
        with pytest.raises(InvalidSagaError):
            get_schema_sql(table="t", schema=name)


CREATE = """
import asyncio, sys
from saga_bus.store_mysql import create_schema
print("ready", flush=True)
sys.stdin.readline()
asyncio.run(create_schema(sys.argv[1], table=sys.argv[2]))
"""


def test_ten_processes_at_once(run, place):
    command = [sys.executable, "-c", CREATE, place.url, place.table]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(10)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 10, said
    run(check_schema(place.url, table=place.table))


def test_somebody_else_may_be_faster(run, place, monkeypatch):
    own = _schema._create_table

    def too_late(given):
        place.execute(own(given))
        return own(given)

    monkeypatch.setattr(_schema, "_create_table", too_late)
    run(create_schema(place.url, table=place.table))
    run(check_schema(place.url, table=place.table))


def test_a_table_of_somebody_else_that_comes_in_between_is_an_error(run, place, monkeypatch):
    own = _schema._create_table

    def too_late(given):
        place.execute(f"CREATE TABLE {place.table} (a INT)")
        return own(given)

    monkeypatch.setattr(_schema, "_create_table", too_late)
    with pytest.raises(SchemaError, match="choose another name"):
        run(create_schema(place.url, table=place.table))


def test_the_functions_take_a_url_or_a_pool(run, place):
    async def test():
        async with aiomysql.create_pool(**connection_options(place.url), minsize=0) as pool:
            await create_schema(pool, table=place.table)
            await check_schema(place.url, table=place.table)
            await drop_schema(pool, table=place.table)
            with pytest.raises(SchemaError):
                await check_schema(pool, table=place.table)

    run(test())


def test_the_script_makes_what_create_schema_makes(run, place):
    script = get_schema_sql(table=place.table)
    assert script.count(";") == 1
    assert script.endswith(";\n")
    place.execute(script)
    run(check_schema(place.url, table=place.table))
    own = place.execute(f"SHOW CREATE TABLE {place.table}")
    place.execute(f"DROP TABLE {place.table}")
    run(create_schema(place.url, table=place.table))
    assert place.execute(f"SHOW CREATE TABLE {place.table}") == own
    assert f"`db`.`{place.table}`" in get_schema_sql(table=place.table, schema="db")


def test_keys_are_exact_and_long_enough(run, place):
    run(create_schema(place.url, table=place.table))
    columns = place.execute(
        "SELECT column_name, collation_name, character_maximum_length FROM information_schema.columns "
        f"WHERE table_name = '{place.table}' AND column_name LIKE '%\\_id' ORDER BY column_name"
    )
    exact = ("utf8mb4_nopad_bin", "utf8mb4_0900_bin")
    assert [(name, collation in exact, length) for name, collation, length in columns] == [
        ("correlation_id", True, 256),
        ("saga_id", True, 128),
    ]


def test_older_and_newer_schemas(run, place, monkeypatch):
    async def add_column(session, given):
        new = _schema.comment(_schema.package_version())
        await session.run(f"ALTER TABLE {given.quoted} ADD COLUMN more INT NULL, COMMENT = '{new}'".encode())

    async def test():
        async with place.opened() as store:
            await place.insert(store, "a")
            with monkeypatch.context() as newer:
                newer.setattr(_schema, "MIGRATIONS", (add_column,))
                with pytest.raises(SchemaError, match=r"has schema version 1.*run create_schema\(\)"):
                    await store.check_schema()
                await asyncio.gather(*(store.create_schema() for _ in range(5)))
                await store.check_schema()
                assert await store.get_by_id(place.name, "a") is not None
            for work in (store.check_schema, store.create_schema):
                with pytest.raises(SchemaError, match=r"newer.*upgrade saga-bus-store-mysql"):
                    await work()

    run(test())


def test_somebody_elses_table_is_left_alone(run, place):
    async def test():
        place.execute(f"CREATE TABLE {place.table} (a INT)")
        async with place.store() as store:
            for work in (store.create_schema, store.check_schema, store.drop_schema):
                with pytest.raises(SchemaError, match="choose another name"):
                    await work()
            with pytest.raises(SchemaError, match="1054"):
                await store.get_by_id(place.name, "a")
        place.execute(f"INSERT INTO {place.table} VALUES (1)")

    run(test())


def test_times_are_utc_whatever_the_session(run, place):
    async def test():
        options = {**connection_options(place.url), "autocommit": True, "minsize": 0}
        async with aiomysql.create_pool(**options, init_command="SET time_zone = '+09:30'") as pool:
            store = MySqlSagaStore(pool=pool, table=place.table, state_types={place.name: place.State})
            async with store:
                await store.create_schema()
                (state,) = await place.insert(store, "a")
        rows = execute(place.url, f"SELECT created_at, updated_at, completed_at FROM {place.table}")
        assert rows[0][0] == state.metadata.created_at.replace(tzinfo=None)
        assert rows[0][1] == state.metadata.updated_at.replace(tzinfo=None)
        assert rows[0][2] is None

    run(test())

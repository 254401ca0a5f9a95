"""Creating, checking, migrating and dropping the schema."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from saga_bus.store import InvalidSagaError, SagaState, SagaStoreError, SchemaError
from saga_bus.store_sqlite import SqliteSagaStore, check_schema, create_schema, drop_schema, get_schema_sql
from saga_bus.store_sqlite import _schema as schema

NAMES = ["order", "Sagas", 'quote"d', "it's", "with space", "ünïcode", "n" * 60, "a.b", "x]y`z", "?, ?", "100%s"]


def objects(path):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2").fetchall()


def set_version(path, version, table="saga_instances"):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE saga_bus_schema SET version = ? WHERE table_name = ?", (version, table))


async def use(path, **options):
    async with SqliteSagaStore(path, **options) as store:
        state = SagaState()
        await store.insert("OrderSaga", "order-1", state)
        return await store.get_by_id("OrderSaga", state.metadata.saga_id)


@pytest.mark.parametrize("table", NAMES)
def test_any_table_name(tmp_path, table):
    path = tmp_path / "x.db"
    asyncio.run(create_schema(path, table=table))
    asyncio.run(create_schema(path, table=table))
    asyncio.run(check_schema(path, table=table))
    assert asyncio.run(use(path, table=table)) is not None
    asyncio.run(drop_schema(path, table=table))
    assert objects(path) == []


@pytest.mark.parametrize("table", ["saga_instances", *NAMES])
def test_the_printed_schema_is_the_created_one(tmp_path, table):
    asyncio.run(create_schema(tmp_path / "created.db", table=table))
    with closing(sqlite3.connect(tmp_path / "printed.db")) as connection:
        connection.executescript(get_schema_sql(table=table))
    assert objects(tmp_path / "printed.db") == objects(tmp_path / "created.db")
    assert asyncio.run(use(tmp_path / "printed.db", table=table)) is not None


@pytest.mark.parametrize("table", ["sqlite_sagas", "SAGA_BUS_SCHEMA", "", "a\x00b", "x" * 64])
def test_a_bad_table_name_is_refused(table):
    with pytest.raises(InvalidSagaError):
        get_schema_sql(table=table)


def test_tables_share_a_file(tmp_path):
    path = tmp_path / "x.db"

    async def run():
        for table in ("first", "second"):
            await create_schema(path, table=table)
            await use(path, table=table)
        await drop_schema(path, table="first")
        with pytest.raises(SchemaError, match="'first'"):
            await check_schema(path, table="first")
        await check_schema(path, table="second")
        async with SqliteSagaStore(path, table="second") as store:
            assert await store.get_by_correlation_id("OrderSaga", "order-1") is not None

    asyncio.run(run())


def test_the_case_of_a_table_name_does_not_count_as_in_sqlite_itself(tmp_path):
    path = tmp_path / "x.db"
    asyncio.run(create_schema(path, table="Sagas"))
    asyncio.run(create_schema(path, table="SAGAS"))
    assert asyncio.run(use(path, table="sagas")) is not None
    asyncio.run(drop_schema(path, table="sAgAs"))
    assert objects(path) == []


def test_the_file_is_in_wal_mode_and_the_table_strict(tmp_path):
    asyncio.run(create_schema(tmp_path / "x.db"))
    with closing(sqlite3.connect(tmp_path / "x.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        strict = sqlite3.sqlite_version_info >= (3, 37)
        assert ("STRICT" in get_schema_sql()) is strict


def test_a_file_that_left_wal_mode_is_brought_back(tmp_path):
    asyncio.run(create_schema(tmp_path / "x.db"))
    with closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    asyncio.run(use(tmp_path / "x.db"))
    with closing(sqlite3.connect(tmp_path / "x.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_missing_file_is_not_made_by_using_it(tmp_path):
    path = tmp_path / "x.db"
    for work in (use(path), check_schema(path)):
        with pytest.raises(SchemaError, match=r"run create_schema\(\)"):
            asyncio.run(work)
    asyncio.run(drop_schema(path))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_directory_is_named(tmp_path):
    for work in (use(tmp_path / "no" / "x.db"), create_schema(tmp_path / "no" / "x.db")):
        with pytest.raises(SagaStoreError, match="there is no directory"):
            asyncio.run(work)


def test_a_store_that_met_a_missing_schema_works_once_it_is_there(tmp_path):
    async def run():
        async with SqliteSagaStore(tmp_path / "x.db") as store:
            for _ in range(2):
                with pytest.raises(SchemaError):
                    await store.get_by_id("OrderSaga", "1")
                with pytest.raises(SchemaError):
                    await store.insert("OrderSaga", "order-1", SagaState())
            await store.create_schema()
            await store.insert("OrderSaga", "order-1", SagaState())

    asyncio.run(run())


def test_an_empty_database_has_no_schema(tmp_path):
    (tmp_path / "x.db").touch()
    for work in (use(tmp_path / "x.db"), check_schema(tmp_path / "x.db")):
        with pytest.raises(SchemaError, match=r"run create_schema\(\)"):
            asyncio.run(work)


def test_somebody_elses_table_is_left_alone(tmp_path):
    with closing(sqlite3.connect(tmp_path / "x.db")) as connection:
        connection.execute("CREATE TABLE Saga_Instances (x)")
    for work in (create_schema(tmp_path / "x.db"), check_schema(tmp_path / "x.db")):
        with pytest.raises(SchemaError):
            asyncio.run(work)
    asyncio.run(drop_schema(tmp_path / "x.db"))
    assert [name for _, name, *_ in objects(tmp_path / "x.db")] == ["Saga_Instances"]


def test_a_newer_schema_is_refused(tmp_path):
    path = tmp_path / "x.db"
    asyncio.run(create_schema(path))
    set_version(path, schema.package_version() + 1)
    before = objects(path)
    for work in (use(path), check_schema(path), create_schema(path)):
        with pytest.raises(SchemaError, match="upgrade saga-bus-store-sqlite"):
            asyncio.run(work)
    assert objects(path) == before


def add_note(connection, table):
    connection.execute(f'ALTER TABLE "{table}" ADD COLUMN note TEXT')


def add_priority(connection, table):
    connection.execute(f'ALTER TABLE "{table}" ADD COLUMN priority INTEGER')


def break_down(connection, table):
    connection.execute("ALTER TABLE there_is_no_such_table ADD COLUMN note TEXT")


def columns(path):
    with closing(sqlite3.connect(path)) as connection:
        return [row[1] for row in connection.execute("PRAGMA table_info(saga_instances)")]


def test_an_older_schema_is_refused_and_create_schema_migrates_it(tmp_path, monkeypatch):
    path = tmp_path / "x.db"
    asyncio.run(create_schema(path))
    asyncio.run(use(path))
    monkeypatch.setattr(schema, "MIGRATIONS", (add_note, add_priority))
    for work in (use(path), check_schema(path)):
        with pytest.raises(SchemaError, match=r"version 1, the package needs 3: run create_schema\(\) to migrate it"):
            asyncio.run(work)
    for _ in range(2):
        asyncio.run(create_schema(path))
        assert columns(path)[-2:] == ["note", "priority"]
    asyncio.run(check_schema(path))


def test_a_migration_starts_where_the_last_one_ended(tmp_path, monkeypatch):
    path = tmp_path / "x.db"
    asyncio.run(create_schema(path))
    monkeypatch.setattr(schema, "MIGRATIONS", (add_note,))
    asyncio.run(create_schema(path))
    monkeypatch.setattr(schema, "MIGRATIONS", (add_note, add_priority))
    asyncio.run(create_schema(path))
    assert columns(path)[-2:] == ["note", "priority"]


def test_a_migration_that_fails_leaves_the_older_schema(tmp_path, monkeypatch):
    path = tmp_path / "x.db"
    asyncio.run(create_schema(path))
    monkeypatch.setattr(schema, "MIGRATIONS", (add_note, break_down))
    with pytest.raises(SchemaError, match="no such table"):
        asyncio.run(create_schema(path))
    assert "note" not in columns(path)
    monkeypatch.setattr(schema, "MIGRATIONS", ())
    asyncio.run(check_schema(path))


CREATE = """
import asyncio, sys
from saga_bus.store_sqlite import create_schema
print("ready", flush=True)
sys.stdin.readline()
asyncio.run(create_schema(sys.argv[1]))
"""


def test_many_processes_create_it_at_once(tmp_path):
    path = tmp_path / "x.db"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(6)
    ]
    for process in processes:
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    assert [process.communicate() for process in processes] == [(b"", b"")] * 6
    assert [process.returncode for process in processes] == [0] * 6
    asyncio.run(check_schema(path))


def test_many_tasks_create_it_at_once(tmp_path):
    async def run():
        await asyncio.gather(*(create_schema(tmp_path / "x.db") for _ in range(20)))
        await check_schema(tmp_path / "x.db")

    asyncio.run(run())


def test_a_table_that_was_dropped_meanwhile_is_a_schema_error(tmp_path):
    path = tmp_path / "x.db"

    async def run():
        await create_schema(path)
        async with SqliteSagaStore(path) as store:
            await store.insert("OrderSaga", "order-1", SagaState())
            assert await store.get_by_correlation_id("OrderSaga", "order-1") is not None
            await drop_schema(path)
            for call in (
                store.get_by_correlation_id("OrderSaga", "order-1"),
                store.insert("OrderSaga", "order-2", SagaState()),
            ):
                with pytest.raises(SchemaError, match=r"run create_schema\(\)"):
                    await call
            await create_schema(path)
            assert await store.get_by_correlation_id("OrderSaga", "order-1") is None

    asyncio.run(run())


def test_a_schema_on_a_given_connection():
    async def run():
        with closing(sqlite3.connect(":memory:", check_same_thread=False)) as connection:
            with pytest.raises(SchemaError):
                await check_schema(connection)
            await create_schema(connection)
            await check_schema(connection)
            async with SqliteSagaStore(connection=connection) as store:
                await store.insert("OrderSaga", "order-1", SagaState())
            await drop_schema(connection)
            with pytest.raises(SchemaError):
                await check_schema(connection)

    asyncio.run(run())

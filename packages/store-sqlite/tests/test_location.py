"""Paths, URLs and options."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from saga_bus.store import InvalidSagaError, SagaState, open_store
from saga_bus.store_sqlite import SqliteSagaStore
from saga_bus.store_sqlite._location import parse_location


@pytest.mark.parametrize(
    ("database", "path"),
    [
        ("relative.db", "relative.db"),
        (Path("sub") / "x.db", "sub/x.db"),
        ("/absolute/x.db", "/absolute/x.db"),
        ("sqlite:///relative.db", "relative.db"),
        ("sqlite:///sub/../x.db", "x.db"),
        ("sqlite:////absolute/x.db", "/absolute/x.db"),
        ("SQLite:////absolute/x.db", "/absolute/x.db"),
        ("sqlite:////absolute/a%20b%3Fc%25.db", "/absolute/a b?c%.db"),
        ("sqlite:////absolute/a#b.db?table=t", "/absolute/a#b.db"),
        ("/absolute/100%?.db", "/absolute/100%?.db"),
    ],
)
def test_a_path_is_made_absolute(database, path):
    assert parse_location(database).path == (Path.cwd() / path)


@pytest.mark.parametrize("database", [":memory:", "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite://?table=t"])
def test_memory(database):
    assert parse_location(database).path is None
    assert not SqliteSagaStore(database).capabilities.processes


def test_the_default_is_a_file_in_the_working_directory():
    assert repr(SqliteSagaStore()) == f"SqliteSagaStore({str(Path.cwd() / 'sagas.db')!r}, table='saga_instances')"


@pytest.mark.parametrize(
    "database",
    [
        "",
        b"sagas.db",
        7,
        "nul\x00.db",
        "file:sagas.db",
        "postgresql://host/db",
        "sqlite://host/sagas.db",
        "sqlite://sagas.db",
        "sqlite:///%ff.db",
        "sqlite:///nul%00.db",
        "sqlite:///x.db?tabel=t",
        "sqlite:///x.db?table",
        "sqlite:///x.db?table=",
        "sqlite:///x.db?table=a&table=b",
        "sqlite:///x.db?table=sqlite_master",
        "sqlite:///x.db?table=Saga_Bus_Schema",
        "sqlite:///x.db?durability=off",
        "sqlite:///x.db?busy_timeout=soon",
        "sqlite:///x.db?busy_timeout=nan",
        "sqlite:///x.db?busy_timeout=-1",
    ],
)
def test_what_is_no_place_is_refused(database):
    with pytest.raises(InvalidSagaError):
        SqliteSagaStore(database)


@pytest.mark.parametrize(
    "options",
    [
        {"table": ""},
        {"table": "x" * 64},
        {"table": "line\nbreak"},
        {"durability": "FULL"},
        {"busy_timeout": True},
        {"busy_timeout": "5"},
        {"busy_timeout": float("inf")},
        {"connection": object()},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(InvalidSagaError):
        SqliteSagaStore(**options)


def test_a_database_or_a_connection():
    connection = sqlite3.connect(":memory:")
    with pytest.raises(InvalidSagaError, match="not both"):
        SqliteSagaStore(":memory:", connection=connection)
    connection.close()


def test_options_in_the_url_and_the_entry_point(tmp_path):
    url = f"sqlite:///{tmp_path}/a%20b.db?table=t&durability=normal&busy_timeout=2.5"

    async def run():
        async with open_store(url) as store:
            assert isinstance(store, SqliteSagaStore)
            assert (store._settings.durability, store._settings.busy_timeout) == ("normal", 2.5)
            await store.create_schema()
            await store.insert("OrderSaga", "order-1", SagaState())

    asyncio.run(run())
    connection = sqlite3.connect(tmp_path / "a b.db")
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (1,)
    connection.close()


def test_construction_touches_nothing(tmp_path):
    SqliteSagaStore(tmp_path / "missing" / "x.db")
    SqliteSagaStore(tmp_path / "x.db")
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    monkeypatch.chdir(first)
    store = SqliteSagaStore("x.db")
    monkeypatch.chdir(second)

    async def run():
        async with store:
            await store.create_schema()

    asyncio.run(run())
    assert (first / "x.db").exists()
    assert not (second / "x.db").exists()


@pytest.mark.parametrize("name", ["100%.db", "a?b#c.db", "a b.db", "ünïcode-😀.db", "quote'\".db"])
def test_any_file_name(tmp_path, name):
    async def run():
        async with SqliteSagaStore(tmp_path / name) as store:
            await store.create_schema()
            await store.check_schema()

    asyncio.run(run())
    assert name in {path.name for path in tmp_path.iterdir()}

"""The store's own logic: its statements are translated to SQLite's dialect and run there, with the conformance kit.

This shows that every value goes to its column, that groups do what single writes do, whatever form they have, and
what the store makes of counts, rows and duplicates; it shows nothing about SQL Server or its drivers.
"""

import asyncio
import itertools
import re
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial

import pytest
import sqlglot

from saga_bus.store import ConcurrencyError, SagaRow, SagaState, SagaStoreError
from saga_bus.store.conformance import SagaStoreConformance
from saga_bus.store_sqlserver import SqlServerSagaStore
from saga_bus.store_sqlserver._connections import Settings
from saga_bus.store_sqlserver._engines import PoolEngine
from saga_bus.store_sqlserver._operations import Operations
from saga_bus.store_sqlserver._schema import Place

PLACE = Place("saga_instances", "main")
START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
COLUMNS = (
    "saga_name, saga_id, correlation_id, version, is_completed, created_at, updated_at, archived_at, "
    "timeout_expires_at, outbox_pending, state"
)
TABLE = f"""\
CREATE TABLE IF NOT EXISTS saga_instances (
    {COLUMNS}, PRIMARY KEY (saga_name, saga_id), UNIQUE (saga_name, correlation_id)
)"""
IDS = ["a", "a ", "A", "ä", "a\N{SYMBOL FOR SPACE}", "😀" * 128]


@cache
def translated(sql):
    sql = re.sub(r"SET LOCK_TIMEOUT -?\d+;?", "", sql).strip().rstrip(";").strip()
    sql = re.sub(r"CAST\((NULLIF\([^()]*\)|[\w.?]+) AS DATETIME2\(6\)\)", r"\1", sql)
    sql = re.sub(r"CAST\(([01]) AS BIT\)", r"\1", sql).replace("N''", "''")
    sql = re.sub(r"CONVERT\(NVARCHAR\(27\), (\w+), 121\)", r"\1", sql)
    sql = re.sub(r" COLLATE \w+| WITH \([A-Z, ]+\)", "", sql)
    purge = re.fullmatch(r"DELETE TOP \((\d+)\) FROM (\S+)\s+WHERE (.*)", sql, re.DOTALL)
    if purge is not None:
        return f"DELETE FROM {purge[2]} WHERE rowid IN (SELECT rowid FROM {purge[2]} WHERE {purge[3]} LIMIT {purge[1]})"
    given = re.search(r"\(VALUES(.*?)\n *\) AS given (\([^)]*\))", sql, re.DOTALL)
    if given is None:
        return sqlglot.transpile(sql, read="tsql", write="sqlite")[0]
    sql = f"WITH given {given[2]} AS (VALUES {given[1]})\n" + sql.replace(given[0], "given")
    if "OUTPUT" not in sql:
        return sql
    output = re.search(r"OUTPUT inserted\.(\w+), inserted\.(\w+)", sql)
    sql = sql.replace(output[0], "").replace("OPTION (LOOP JOIN, FORCE ORDER)", "")
    join = re.search(r"INNER JOIN (\S+) AS saga\s+ON (.*?)\s+WHERE", sql, re.DOTALL)
    if join is not None:
        sql = sql.replace("UPDATE saga\n", f"UPDATE {join[1]} AS saga\n").replace(join[0], f"WHERE {join[2]} AND")
    return f"{sql}\nRETURNING {output[1]}, {output[2]}"


class Session:
    """Runs T-SQL on SQLite."""

    def __init__(self, path=":memory:", *, is_babelfish=False, groups=None):
        self.connection = sqlite3.connect(path, timeout=60, isolation_level=None)
        self.connection.execute("PRAGMA synchronous=OFF")
        self.is_babelfish = is_babelfish
        self.is_lost = self.is_cut = self.was_victim = False
        self.used_at = time.monotonic()
        self.groups = [] if groups is None else groups  # the texts of those that were written

    def _run(self, statement, parameters):
        assert len(statement.bindings) == len(parameters)
        try:
            cursor = self.connection.execute(translated(statement.sql), list(parameters))
            return cursor.fetchall(), cursor.rowcount
        except sqlite3.IntegrityError as error:
            raise SagaStoreError("duplicate") from RuntimeError("23000", f"{error} (2627) (SQLExecute)")
        except (sqlite3.Error, sqlglot.errors.SqlglotError) as error:
            raise SagaStoreError("SQLite refused") from RuntimeError("42000", f"{error} (102) (SQLExecute)")

    def read(self, statement, parameters=()):
        return self._run(statement, parameters)[0]

    def write(self, statement, parameters=()):
        return self._run(statement, parameters)[1]

    def write_group(self, statement, parameters):
        rows = self._run(statement, parameters)[0]
        self.groups.append(statement.sql)
        return rows

    def answers(self):
        return True

    def close(self):
        self.connection.close()


# -- the conformance kit ---------------------------------------------------------------------------------------------


class TranslatedStore(SqlServerSagaStore):
    capabilities = replace(SqlServerSagaStore.capabilities, schema=False, transactions=False, processes=False)

    def __init__(self, opens):
        super().__init__("mssql://nowhere/nothing?driver=none")
        self._operations = Operations(PLACE)
        self._engine = PoolEngine(opens, Settings(4, 10, 10, 30), PLACE, self._operations)


class TranslatedConformance(SagaStoreConformance):
    is_babelfish = False

    @pytest.fixture(autouse=True)
    def in_a_folder(self, tmp_path):
        self.folder, self.groups = tmp_path, []

    def open_store(self, namespace):
        path = self.folder / namespace
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(TABLE)
        return TranslatedStore(partial(Session, path, is_babelfish=self.is_babelfish, groups=self.groups))

    def test_what_the_kit_does_at_the_same_time_goes_in_groups(self):
        async def use():
            async with self.open_store("groups") as store:
                states = [SagaState() for _ in range(9)]
                await asyncio.gather(*(store.insert("S", f"c{n}", each) for n, each in enumerate(states)))
                for each in states:
                    each.metadata = each.metadata.next()
                await asyncio.gather(*(store.update("S", each, 0) for each in states))

        asyncio.run(use())
        # The first of each nine goes alone, and the others together.
        assert [re.findall(r"INSERT|UPDATE|JOIN", text) for text in self.groups] == [
            ["INSERT"],
            ["UPDATE"] if self.is_babelfish else ["UPDATE", "JOIN", "JOIN"],
        ]


class TestSqlServersGroups(TranslatedConformance):
    pass


class TestBabelfishsGroups(TranslatedConformance):
    is_babelfish = True


# -- groups beside single writes -------------------------------------------------------------------------------------


@pytest.fixture
def database():
    """Makes a session on an empty table."""
    opened = []

    def make(**options):
        opened.append(Session(**options))
        opened[-1].connection.execute(TABLE)
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def rows_of(session):
    sql = f"SELECT {COLUMNS} FROM saga_instances ORDER BY saga_name, saga_id"
    with closing(session.connection.execute(sql)) as cursor:
        return cursor.fetchall()


def row(number, *, version=0, saga_id=None, created_at=START):
    flags = [bool(number & bit) for bit in (1, 2, 4, 8)]
    later = START + timedelta(microseconds=number)
    return SagaRow(
        saga_name="Order " if number % 3 else "Order",
        saga_id=IDS[number % len(IDS)] if saga_id is None else saga_id,
        version=version,
        document=f'{{"number": {number}, "version": {version}}}'.encode(),
        is_completed=flags[0],
        created_at=created_at,
        updated_at=later + timedelta(days=version),
        archived_at=later + timedelta(days=10) if flags[1] else None,
        timeout_expires_at=later + timedelta(days=20) if flags[2] else None,
        outbox_pending=flags[3],
    )


def new(count):
    """Rows and correlation ids of new sagas."""
    ids = (IDS[number] if number < len(IDS) else f"{number}" for number in itertools.count())
    return [
        (row(number, saga_id=saga_id), f"order-{number} ") for number, saga_id in zip(range(count), ids, strict=False)
    ]


@pytest.mark.parametrize("count", [2, 3, 5, 17, 32])
def test_a_group_of_inserts_writes_what_single_ones_write(database, count):
    operations, alone, together = Operations(PLACE), database(), database()
    for item in new(count):
        operations.insert(*item, alone)
    assert operations.insert_group(new(count), together) == [True] * count
    assert rows_of(together) == rows_of(alone)
    assert len(rows_of(alone)) == count


def test_a_group_of_inserts_with_a_duplicate_writes_nothing(database):
    operations, session = Operations(PLACE), database()
    items = new(5)
    operations.insert(*items[3], session)
    with pytest.raises(SagaStoreError, match="duplicate"):
        operations.insert_group(items, session)
    assert len(rows_of(session)) == 1


def update_of(number, saga):
    """The saga's next version; of every fourth one an update that expects another version than is there."""
    version = 4 if number % 4 == 2 else 1
    fields = {name: getattr(row(number + 7, version=version), name) for name in saga.__struct_fields__}
    return SagaRow(**fields | {"saga_name": saga.saga_name, "saga_id": saga.saga_id}), version - 1


def has_updated(operations, update, session):
    try:
        operations.update(*update, session)
    except ConcurrencyError:
        return False
    return True


@pytest.mark.parametrize("is_babelfish", [False, True])
@pytest.mark.parametrize("count", [3, 5, 17, 32])
def test_a_group_of_updates_writes_what_single_ones_write(database, count, is_babelfish):
    operations, alone, together = Operations(PLACE), database(), database(is_babelfish=is_babelfish)
    for item in new(count):
        operations.insert(*item, alone)
        operations.insert(*item, together)
    updates = [update_of(number, saga) for number, (saga, _) in enumerate(new(count))]
    updates[1] = (row(1, version=1, saga_id="nobody"), 0)
    outcomes = [has_updated(operations, each, alone) for each in updates]
    assert operations.update_group(updates, together) == outcomes
    assert rows_of(together) == rows_of(alone)
    assert outcomes[:3] == [True, False, False]


@pytest.mark.parametrize("is_babelfish", [False, True])
def test_a_group_leaves_a_saga_alone_whose_beginning_was_changed(database, is_babelfish):
    """A single write sets it, which rewrites the entries of indexes, and a group does not."""
    operations, session = Operations(PLACE), database(is_babelfish=is_babelfish)
    items = new(3)
    for item in items:
        operations.insert(*item, session)
    moved = row(0, version=1, saga_id=items[0][0].saga_id, created_at=START - timedelta(seconds=1))
    kept = row(1, version=1, saga_id=items[1][0].saga_id)
    assert operations.update_group([(moved, 0), (kept, 0)], session) == [False, True]

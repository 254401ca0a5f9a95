"""The store's own logic: its statements are translated to SQLite's dialect and run there, with the conformance kit.

The kit's calls go through the drivers to an endpoint that speaks their protocol. This shows that every value goes
through a driver to its column and back, that groups do what single writes do, whatever form they have, and what the
store makes of counts, rows and duplicates; it shows nothing about SQL Server itself.
"""

import asyncio
import itertools
import re
import sqlite3
import struct
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from threading import local

import pytest
import sqlglot

from saga_bus.store import ConcurrencyError, SagaRow, SagaState
from saga_bus.store.conformance import SagaStoreConformance
from saga_bus.store_sqlserver import SqlServerSagaStore
from saga_bus.store_sqlserver._location import parse_location
from saga_bus.store_sqlserver._odbc import load
from saga_bus.store_sqlserver._operations import Operations
from saga_bus.store_sqlserver._schema import Place

pytestmark = pytest.mark.usefixtures("pyodbc")

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


def connected(path):
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")
    return connection


# -- the conformance kit ---------------------------------------------------------------------------------------------


def request_of(body):
    """The statement and the parameters of a request, a batch or a call of sp_prepexec."""
    (place,) = struct.unpack_from("<I", body)
    if body[place : place + 2] != b"\xff\xff":
        return body[place:].decode("utf-16-le"), []
    values = list(_values(body, place + 6))
    return re.sub(r"@P\d+", "?", values[2]), values[3:]  # behind the handle and the types of the parameters


def _values(body, place):
    while place < len(body):
        place += 1 + 2 * body[place] + 1  # its name, its status
        kind = body[place]
        if kind in (0x26, 0x68):  # numbers and bits
            size, start = body[place + 2], place + 3
            yield int.from_bytes(body[start : start + size], "little", signed=kind == 0x26)
        elif kind == 0x63:  # ntext
            size, start = struct.unpack_from("<I", body, place + 10)[0], place + 14
            yield body[start : start + size].decode("utf-16-le")
        elif body[place + 1 : place + 3] != b"\xff\xff":  # nvarchar
            size, start = struct.unpack_from("<H", body, place + 8)[0], place + 10
            yield body[start : start + size].decode("utf-16-le")
        else:  # nvarchar(max), in parts
            raw, start = b"", place + 16
            while size := struct.unpack_from("<I", body, start)[0]:
                raw += body[start + 4 : start + 4 + size]
                start += 4 + size
            size = 4
            yield raw.decode("utf-16-le")
        place = start + size


class StandIn:
    """Answers a driver's requests from a SQLite file."""

    def __init__(self, endpoint, path, *, is_babelfish):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(TABLE)
            connection.execute("CREATE TABLE business_rows (name PRIMARY KEY)")
        self.path, self.made, self.own = path, endpoint, local()
        self.groups = []  # the texts of those that were written
        self.endpoint = endpoint(self.answer)
        self.endpoint.is_babelfish = is_babelfish
        self.endpoint.transact = self.transact

    @property
    def connection(self):
        """One for each client, who has a thread of his own."""
        if not hasattr(self.own, "connection"):
            self.own.connection = connected(self.path)
        return self.own.connection

    def transact(self, step):
        if self.connection.in_transaction != (step == "BEGIN"):
            self.connection.execute(step)

    def answer(self, _):
        sql, parameters = request_of(self.endpoint.body)
        settled = self.made.settled()
        if "@@TRANCOUNT" in sql:
            return self.made.numbers("transactions", int(self.connection.in_transaction))
        try:
            cursor = self.connection.execute(translated(sql), parameters)
            rows = cursor.fetchall()
        except sqlite3.IntegrityError as error:
            return settled + self.made.error(2627, str(error)) + settled
        except (sqlite3.Error, sqlglot.errors.SqlglotError) as error:
            return self.made.error(102, str(error))
        if "LOCK_TIMEOUT 50" in sql:
            self.groups.append(sql)
            return settled + (self.made.table(*rows) if "OUTPUT" in sql else self.made.counted(len(rows))) + settled
        return self.made.table(*rows) if cursor.description else self.made.counted(cursor.rowcount)


class KitStore(SqlServerSagaStore):
    capabilities = replace(SqlServerSagaStore.capabilities, schema=False, processes=False)


class DriversTransaction:
    def __init__(self, place, connection):
        self.place, self.connection = place, connection

    async def commit(self):
        await asyncio.to_thread(self.connection.commit)

    async def rollback(self):
        await asyncio.to_thread(self.connection.rollback)

    async def put_row(self, key):
        await asyncio.to_thread(self._put, "INSERT INTO business_rows VALUES (?)", key)

    def _put(self, sql, key):
        # A cursor that is closed later, by whatever thread drops it, would talk over the bound store's statements.
        self.connection.execute(sql, key).close()

    async def has_row(self, key):
        with closing(connected(self.place.path)) as other:
            return other.execute("SELECT COUNT(*) FROM business_rows WHERE name = ?", [key]).fetchone() == (1,)


class Conformance(SagaStoreConformance):
    is_babelfish = False

    @pytest.fixture(autouse=True)
    def in_a_folder(self, tmp_path, endpoint, url_of):
        self.folder, self.endpoint, self.url_of, self.places = tmp_path, endpoint, url_of, {}

    def open_store(self, namespace):
        if namespace not in self.places:
            self.places[namespace] = StandIn(self.endpoint, self.folder / namespace, is_babelfish=self.is_babelfish)
        port = self.places[namespace].endpoint.port
        return KitStore(self.url_of(port), table="saga_instances", schema="main", pool_size=4)

    @asynccontextmanager
    async def open_transaction(self, namespace):
        place = self.places[namespace]
        text = parse_location(self.url_of(place.endpoint.port)).connection_string()
        with closing(load().connect(text, autocommit=False, timeout=10)) as connection:
            yield DriversTransaction(place, connection)
            connection.rollback()

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
        assert [re.findall(r"INSERT|UPDATE|JOIN", text) for text in self.places["groups"].groups] == [
            ["INSERT"],
            ["UPDATE"] if self.is_babelfish else ["UPDATE", "JOIN", "JOIN"],
        ]


@pytest.mark.parametrize("driver", ["microsoft"], indirect=True)
class TestMicrosoftsDriver(Conformance):
    pass


@pytest.mark.parametrize("driver", ["freetds"], indirect=True)
class TestFreeTdsAndBabelfishsGroups(Conformance):
    is_babelfish = True


# -- groups beside single writes -------------------------------------------------------------------------------------


class Session:
    """Runs T-SQL on SQLite, in memory."""

    def __init__(self, *, is_babelfish=False):
        self.connection = connected(":memory:")
        self.connection.execute(TABLE)
        self.is_babelfish = is_babelfish

    def _run(self, statement, parameters):
        assert len(statement.bindings) == len(parameters)
        return self.connection.execute(translated(statement.sql), list(parameters))

    def read(self, statement, parameters):
        return self._run(statement, parameters).fetchall()

    write_group = read

    def write(self, statement, parameters):
        return self._run(statement, parameters).rowcount


@pytest.fixture
def database():
    """Makes a session on an empty table."""
    opened = []

    def make(**options):
        opened.append(Session(**options))
        return opened[-1]

    yield make
    for each in opened:
        each.connection.close()


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
    with pytest.raises(sqlite3.IntegrityError):
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

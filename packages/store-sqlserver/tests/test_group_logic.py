"""What the groups mean: each is translated to SQLite's dialect, run there, and compared with single writes.

This shows that every value of a row goes to its column, that the conditions are those of a single write, and that
the rows that fill a group up change nothing; it shows nothing about SQL Server itself.
"""

import itertools
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from saga_bus.store import ConcurrencyError, SagaRow
from saga_bus.store_sqlserver._operations import Operations
from saga_bus.store_sqlserver._schema import Place

PLACE = Place("saga_instances", "main")
START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
COLUMNS = (
    "saga_name, saga_id, correlation_id, version, is_completed, created_at, updated_at, archived_at, "
    "timeout_expires_at, outbox_pending, state"
)
IDS = ["a", "a ", "A", "ä", "a\N{SYMBOL FOR SPACE}", "😀" * 128]


def translated(sql):
    sql = re.sub(r"SET LOCK_TIMEOUT -?\d+;?", "", sql).strip().rstrip(";").strip()
    sql = re.sub(r"CAST\((NULLIF\([^()]*\)|[\w.?]+) AS DATETIME2\(6\)\)", r"\1", sql)
    sql = re.sub(r"CAST\(([01]) AS BIT\)", r"\1", sql).replace("N''", "''")
    sql = re.sub(r" COLLATE \w+| WITH \([A-Z, ]+\)", "", sql)
    given = re.search(r"\(VALUES(.*?)\n *\) AS given (\([^)]*\))", sql, re.DOTALL)
    if given is None:
        return sql
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

    def __init__(self, connection, *, is_babelfish=False):
        self.connection = connection
        self.is_babelfish = is_babelfish

    def write(self, statement, parameters):
        assert statement.sql.count("?") == len(parameters)
        return self.connection.execute(translated(statement.sql), list(parameters)).rowcount

    def write_group(self, statement, parameters):
        assert len(statement.bindings) == len(parameters)
        return self.connection.execute(translated(statement.sql), list(parameters)).fetchall()

    def read(self, statement, parameters):
        return self.connection.execute(translated(statement.sql), list(parameters)).fetchall()


@pytest.fixture
def database():
    """Makes a session on an empty table."""
    opened = []

    def make(**options):
        connection = sqlite3.connect(":memory:")
        keys = "PRIMARY KEY (saga_name, saga_id), UNIQUE (saga_name, correlation_id)"
        connection.execute(f"CREATE TABLE saga_instances ({COLUMNS}, {keys})")
        opened.append(closing(connection))
        return Session(connection, **options)

    yield make
    for each in opened:
        each.__exit__(None, None, None)


def rows_of(session):
    return session.connection.execute(f"SELECT {COLUMNS} FROM saga_instances ORDER BY saga_name, saga_id").fetchall()


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
    found = {}
    for number in itertools.count():
        each = row(number, saga_id=IDS[number % len(IDS)] + (f"-{number}" if number >= len(IDS) else ""))
        found.setdefault((each.saga_name, each.saga_id), (each, f"order-{number} "))
        if len(found) == count:
            return list(found.values())
    return None


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

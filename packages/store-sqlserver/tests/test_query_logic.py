"""What the searches mean: each is translated to SQLite's dialect, run there, and compared with a plain model.

This shows that conditions, orders and places between pages are right, and nothing about SQL Server itself.
"""

import functools
import itertools
import random
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
import sqlglot

from saga_bus.store import CursorPosition, SagaFilter, SagaQuery
from saga_bus.store.checks import microseconds
from saga_bus.store.query import order_of
from saga_bus.store_sqlserver._queries import count_statement, find_statement
from saga_bus.store_sqlserver._schema import Place
from saga_bus.store_sqlserver._statements import Statements
from saga_bus.store_sqlserver._values import key_of, moment_text, moment_value, stored_key

PLACE = Place("saga_instances", "main")
START = datetime(2026, 1, 1, tzinfo=UTC)
COLUMNS = (
    "saga_name, saga_id, correlation_id, is_completed, created_at, updated_at, archived_at, timeout_expires_at, "
    "outbox_pending, state"
)
MOMENTS = {"newest": "created_at", "stalest": "updated_at", "due": "timeout_expires_at"}


def rows():
    chance = random.Random(7)

    def moment():
        return START + timedelta(microseconds=chance.randrange(6))  # many rows at the same moment

    for number in range(160):
        yield {
            "saga_name": chance.choice(["Order", "Order ", "Refund"]),
            "saga_id": f"{number % 50}{' ' * (number // 50)}",
            "correlation_id": f"c{number}",
            "is_completed": chance.random() < 0.4,
            "created_at": moment(),
            "updated_at": moment(),
            "archived_at": moment() if chance.random() < 0.3 else None,
            "timeout_expires_at": moment() if chance.random() < 0.5 else None,
            "outbox_pending": chance.random() < 0.3,
            "state": "{}",
        }


ROWS = list({(row["saga_name"], row["saga_id"]): row for row in rows()}.values())
BETWEEN = START + timedelta(microseconds=3)


def filters():
    for completed, archived, outbox in itertools.product((None, True, False), repeat=3):
        for order in ("newest", "stalest"):
            yield SagaFilter(completed=completed, archived=archived, outbox_pending=outbox, order=order)
    for name in ("Order", "Order ", "Nobody"):
        for order in ("newest", "stalest"):
            yield SagaFilter(saga_name=name, order=order)
            yield SagaFilter(saga_name=name, order=order, created_after=START, updated_before=BETWEEN)
    yield SagaFilter(created_before=BETWEEN, updated_after=START)
    for order in ("due", "newest", "stalest", None):
        yield SagaFilter(timeout_due_before=BETWEEN, order=order)
        yield SagaFilter(timeout_due_before=BETWEEN, completed=True, order=order)


def matches(row, where):
    return all(
        (
            where.saga_name in (None, row["saga_name"]),
            where.completed in (None, row["is_completed"]),
            where.archived in (None, row["archived_at"] is not None),
            where.outbox_pending in (None, row["outbox_pending"]),
            where.created_after is None or row["created_at"] > where.created_after,
            where.created_before is None or row["created_at"] < where.created_before,
            where.updated_after is None or row["updated_at"] > where.updated_after,
            where.updated_before is None or row["updated_at"] < where.updated_before,
            where.timeout_due_before is None
            or (
                not row["is_completed"]
                and row["timeout_expires_at"] is not None
                and row["timeout_expires_at"] < where.timeout_due_before
            ),
        )
    )


def expected(where):
    order = order_of(where)
    found = [row for row in ROWS if matches(row, where)]
    found.sort(
        key=lambda row: (row[MOMENTS[order]], stored_key(row["saga_name"]), stored_key(row["saga_id"])),
        reverse=order == "newest",
    )
    return [(row["saga_name"], row["saga_id"], microseconds(row[MOMENTS[order]])) for row in found]


@functools.cache
def translated(sql):
    sql = sql.replace("CAST(? AS DATETIME2(6))", "?")
    sql = re.sub(r"CONVERT\(NVARCHAR\(27\), (\w+), 121\)", r"\1", sql)
    (found,) = sqlglot.transpile(sql, read="tsql", write="sqlite")
    return found


@pytest.fixture(scope="module")
def database():
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"CREATE TABLE saga_instances ({COLUMNS})")
        for row in ROWS:
            values = [moment_text(value) if isinstance(value, datetime) else value for value in row.values()]
            values[:3] = [stored_key(value) for value in values[:3]]
            connection.execute(f"INSERT INTO saga_instances ({COLUMNS}) VALUES ({', '.join('?' * 10)})", values)
        yield connection


def page(database, where, limit, after):
    statement, values = find_statement(PLACE, SagaQuery(where, order_of(where), limit, after))
    found = database.execute(translated(statement.sql), values).fetchall()
    return [(key_of(name), key_of(saga_id), moment_value(moment)) for name, saga_id, _, moment, _ in found]


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_pages_have_all_rows_once_and_in_order(database, limit):
    for where in filters():
        found, after = [], None
        while items := page(database, where, limit, after):
            found += items
            name, saga_id, moment = items[-1]
            after = CursorPosition(moment, name, saga_id)
            assert len(found) <= len(ROWS), where
        assert found == expected(where), where


def test_counts(database):
    for where in filters():
        statement, values = count_statement(PLACE, where)
        assert database.execute(translated(statement.sql), values).fetchone() == (len(expected(where)),), where


def test_the_reads_of_a_group_keep_their_numbers(database):
    keys = [(row["saga_name"], row["saga_id"]) for row in ROWS[:3]] + [("Order", "nobody")]
    sql = (
        Statements(PLACE)
        .select_group(4, by_correlation_id=False)
        .sql.replace(" WITH (READCOMMITTEDLOCK, READPAST)", "")
    )
    parameters = [stored_key(part) for key in keys for part in key]
    found = database.execute(translated(sql), parameters).fetchall()
    assert sorted(number for number, _ in found) == [0, 1, 2]


def test_which_key_is_taken(database):
    row = ROWS[0]
    name, saga_id, correlation_id = (stored_key(row[key]) for key in ("saga_name", "saga_id", "correlation_id"))
    sql = translated(Statements(PLACE).select_taken.sql)
    for given, taken in (
        ((name, saga_id, name, "free"), [1]),
        ((name, "free", name, correlation_id), [2]),
        ((name, saga_id, name, correlation_id), [1, 2]),
        ((name, "free", name, "free"), []),
    ):
        assert [number for (number,) in database.execute(sql, given)] == taken

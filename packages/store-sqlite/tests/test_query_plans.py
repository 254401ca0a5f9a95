"""Every usual query walks an index in its order: no scan of the table, and no sorting but within one hour."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from itertools import product

import pytest

from saga_bus.store import CursorPosition, SagaFilter, SagaQuery
from saga_bus.store_sqlite import get_schema_sql
from saga_bus.store_sqlite._queries import count_statement, find_statement
from saga_bus.store_sqlite._statements import Statements

TABLE = "saga_instances"
NOW = datetime(2026, 5, 1, tzinfo=UTC)
AFTER = CursorPosition(moment=1_700_000_000_000_000, saga_name="OrderSaga", saga_id="1")

NEWEST = {
    "all": {},
    "running": {"completed": False},
    "completed": {"completed": True},
    "archived": {"archived": True},
    "since": {"created_after": NOW},
    "until": {"created_before": NOW},
    "pending": {"outbox_pending": True},
    "pending and running": {"outbox_pending": True, "completed": False},
}
STALEST = {
    "all": {},
    "running": {"completed": False},
    "completed": {"completed": True},
    "stuck": {"completed": False, "updated_before": NOW},
    "any stuck": {"updated_before": NOW},
    "old": {"completed": True, "updated_before": NOW},
    "pending": {"outbox_pending": True, "updated_before": NOW},
    "pending and running": {"outbox_pending": True, "completed": False},
}
DUE = {"due": {"timeout_due_before": NOW}, "due and not pending": {"timeout_due_before": NOW, "outbox_pending": False}}

FINDS = [
    pytest.param(order, {**fields, **named}, after, id=f"{order}-{name}{'-named' * bool(named)}{'-next' * bool(after)}")
    for order, choices in (("newest", NEWEST), ("stalest", STALEST), ("due", DUE))
    for (name, fields), named, after in product(choices.items(), ({}, {"saga_name": "OrderSaga"}), (None, AFTER))
]


@pytest.fixture(params=["never analyzed", "analyzed"], scope="module")
def connection(request):
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(get_schema_sql())
        connection.executemany(
            f"INSERT INTO {TABLE} VALUES ('OrderSaga', :n, :n, 0, :n % 2, :n, :n, 0, NULL, NULL, :n % 3 = 0, '{{}}')",
            [{"n": number} for number in range(2000)],
        )
        if request.param == "analyzed":
            connection.execute("ANALYZE")
        yield connection


def plan(connection, sql, parameters):
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]


def walked(steps):
    return [step for step in steps if step.startswith(("SCAN ", "SEARCH ")) and step != "SCAN CONSTANT ROW"]


@pytest.mark.parametrize(("order", "fields", "after"), FINDS)
def test_find_walks_an_index_in_order(connection, order, fields, after):
    query = SagaQuery(SagaFilter(order=order, **fields), order, 101, after)
    steps = plan(connection, *find_statement(TABLE, query))
    assert walked(steps)
    assert all(" USING INDEX " in step for step in walked(steps)), steps
    sorts = [step for step in steps if "TEMP B-TREE" in step]
    if any("ix_running" in step for step in steps):  # which has the hour, so an hour's sagas are sorted
        assert sorts in (
            ["USE TEMP B-TREE FOR RIGHT PART OF ORDER BY"],
            ["USE TEMP B-TREE FOR LAST 3 TERMS OF ORDER BY"],
        )
    else:
        assert not sorts
    if after is not None:  # it starts where the last page ended
        assert all(step.startswith("SEARCH") for step in walked(steps)), steps


@pytest.mark.parametrize(
    ("order", "fields", "searched"),
    [
        ("newest", {}, "(saga_name=? AND (created_at,saga_id)<"),
        ("stalest", {"completed": True}, "(saga_name=? AND (updated_hour,updated_at,saga_id)>"),
    ],
)
def test_a_page_of_one_name_reads_nothing_of_the_others(connection, order, fields, searched):
    where = SagaFilter(order=order, saga_name="OrderSaga", **fields)
    (step,) = plan(connection, *find_statement(TABLE, SagaQuery(where, order, 101, AFTER)))
    assert searched in step


COUNTS = {
    "all": {},
    "one name": {"saga_name": "OrderSaga"},
    "running": {"completed": False},
    "running of one name": {"completed": False, "saga_name": "OrderSaga"},
    "completed": {"completed": True},
    "what a purge would delete": {"completed": True, "saga_name": "OrderSaga", "updated_before": NOW},
    "stuck": {"completed": False, "updated_before": NOW},
    "any stuck": {"updated_before": NOW},
    "pending": {"outbox_pending": True},
    "pending and stuck": {"outbox_pending": True, "updated_before": NOW},
    "due": {"timeout_due_before": NOW},
    "due of one name": {"timeout_due_before": NOW, "saga_name": "OrderSaga"},
}


@pytest.mark.parametrize("fields", COUNTS.values(), ids=COUNTS.keys())
def test_count_reads_only_an_index(connection, fields):
    steps = plan(connection, *count_statement(TABLE, SagaFilter(**fields)))
    running = "ix_running (updated_hour<?)"  # of which SQLite looks up the rows of the bound's own hour alone
    assert all(" USING COVERING INDEX " in step or running in step for step in walked(steps)), steps


def test_a_purge_finds_its_batch_on_an_index(connection):
    steps = plan(connection, Statements(TABLE).purge, ("OrderSaga", 0, 1, 100))
    assert any("ix_completed_of_name (saga_name=? AND updated_hour<?)" in step for step in steps), steps
    assert not any("TEMP B-TREE" in step or step.startswith("SCAN saga") for step in steps), steps


def test_single_sagas_are_found_on_the_unique_indexes(connection):
    statements = Statements(TABLE)
    for sql, columns in (
        (statements.select_by_id, "saga_name=? AND saga_id=?"),
        (statements.select_version, "saga_name=? AND saga_id=?"),
        (statements.select_by_correlation_id, "saga_name=? AND correlation_id=?"),
        (statements.delete, "saga_name=? AND saga_id=?"),
        (statements.delete_version, "saga_name=? AND saga_id=?"),
        (statements.update, "saga_name=? AND saga_id=?"),
    ):
        (step,) = walked(plan(connection, sql, ["1"] * sql.count("?")))
        assert f"({columns}" in step, step

"""Every statement parses as T-SQL, keeps to what both servers have, and binds what it asks for."""

import itertools
import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
import sqlglot
from sqlglot import exp

from saga_bus.store import CursorPosition, InvalidSagaError, SagaFilter, SagaQuery
from saga_bus.store_sqlserver import _health, _schema, _sessions, get_schema_sql
from saga_bus.store_sqlserver._engines import _TRANSACTIONS
from saga_bus.store_sqlserver._queries import count_statement, find_statement
from saga_bus.store_sqlserver._schema import Place
from saga_bus.store_sqlserver._statements import Statements
from saga_bus.store_sqlserver._values import COUNT, IDENTIFIER, Statement, moment_text, moment_value

PLACES = [
    Place("saga_instances", "dbo"),
    Place("order", "Select"),
    Place("Mixed Case ]with[ {brackets} 'and' \"quotes\"", "a;b--c"),
    Place("t" * 60, "s" * 60),
]
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
# What Babelfish lacks, what needs certain SET options, and what is not the same on both.
FORBIDDEN = re.compile(r"\b(MERGE|WAITFOR|OPENJSON|sys\.indexes|sys\.key_constraints|NOLOCK|GO)\b", re.IGNORECASE)


def filters():
    yield SagaFilter()
    yield SagaFilter(saga_name="OrderSaga", archived=True, outbox_pending=False)
    yield SagaFilter(created_after=MOMENT, created_before=MOMENT, updated_after=MOMENT, updated_before=MOMENT)
    for completed, order in itertools.product((None, True, False), ("newest", "stalest")):
        yield SagaFilter(completed=completed, order=order)
    for order in ("due", "newest", "stalest"):
        yield SagaFilter(timeout_due_before=MOMENT, outbox_pending=True, order=order)


def searches(place):
    positions = (None, CursorPosition(1_767_323_045_678_901, "OrderSaga", "order "))
    for where, after in itertools.product(filters(), positions):
        order = where.order or "newest"
        yield find_statement(place, SagaQuery(where, order, 101, after))
    for where in filters():
        yield count_statement(place, where)


def fixed(place):
    sql = Statements(place)
    yield from (sql.delete, sql.delete_version, sql.select_version, sql.select_by_id, sql.select_by_correlation_id)
    yield from (sql.select_taken, sql.purge(1000, waits=False), sql.purge(1000, waits=True))
    for archived, timeout in itertools.product((True, False), repeat=2):
        yield sql.insert(archived=archived, timeout=timeout)
        for created in (True, False):
            yield sql.update(archived=archived, timeout=timeout, created=created)
    for size, by_correlation_id in itertools.product((1, 2, 32), (True, False)):
        yield sql.select_group(size, by_correlation_id=by_correlation_id)
    yield from groups_of_writes(sql)
    yield from (_schema._HAS_SCHEMA, _schema._HAS_TABLE, _schema._LOCK, _TRANSACTIONS)
    yield from (_sessions._BABELFISH, _sessions._NOTHING)
    yield from (_health._ROUND_TRIP, _health._DATABASE, _health._SESSION, _health._COLLATIONS)
    for text, bindings in (
        (_schema._SELECT_VERSION, (IDENTIFIER,)),
        (_schema._INSERT_VERSION, (IDENTIFIER, COUNT)),
        (_schema._UPDATE_VERSION, (COUNT, IDENTIFIER)),
        (_schema._DELETE_VERSION, (IDENTIFIER,)),
        (_schema._COUNT_VERSIONS, ()),
    ):
        yield _schema._on(place, text, *bindings)
    for text in (*_schema._table_statements(place), _schema._CREATE_VERSION_TABLE, _schema._DROP_TABLE):
        sql_text = text.format(versions=place.quoted_version_table, table=place.quoted) if "{v" in text[:30] else text
        yield Statement(sql_text.replace("{table}", place.quoted), ())


def groups_of_writes(sql):
    for size in (2, 4, 32):
        yield sql.insert_group(size)
        yield sql.update_group(size, on_babelfish=False)
        yield sql.update_group(size, on_babelfish=True)


def written_by(statement):
    """The tree of a group's own write, between the two statements that set the lock timeout."""
    before, write, after = parsed(statement.sql)
    assert [tree.sql("tsql") for tree in (before, after)] == ["SET LOCK_TIMEOUT 50", "SET LOCK_TIMEOUT -1"]
    return write


def parsed(sql):
    # The grammar takes TOP for a table here; the rest of the statement is read as it is.
    sql = re.sub(r"^DELETE TOP \(\d+\) ", "DELETE ", sql)
    trees = sqlglot.parse(sql, dialect="tsql", error_level=sqlglot.ErrorLevel.RAISE)
    assert trees
    return trees


def without_names(sql, place):
    return (
        sql.replace(place.quoted_version_table, "[v]").replace(place.quoted, "[t]").replace(place.quoted_schema, "[s]")
    )


@pytest.mark.parametrize("place", PLACES, ids=range(len(PLACES)))
def test_every_statement_parses_and_binds_each_of_its_parameters(place):
    searched = list(searches(place))
    for statement in (*fixed(place), *(statement for statement, _ in searched)):
        bare = without_names(statement.sql, place)
        assert not FORBIDDEN.search(bare), bare
        assert bare.count("?") == len(statement.bindings), bare
        if "EXECUTE" not in bare:
            tree = written_by(statement) if "LOCK_TIMEOUT" in bare else parsed(statement.sql)[0]
            assert not isinstance(tree, exp.Command), bare
            assert len(list(tree.find_all(exp.Placeholder))) == len(statement.bindings)
    for statement, values in searched:
        assert len(values) == len(statement.bindings)
        assert all(type(value) is str for value in values)


@pytest.mark.parametrize("place", PLACES, ids=range(len(PLACES)))
def test_the_table_is_named_in_full_everywhere(place):
    sql = Statements(place)
    alone = (sql.insert(archived=True, timeout=True), sql.delete, sql.select_by_id, sql.purge(5, waits=False))
    for tree in (*(parsed(each.sql)[0] for each in alone), *map(written_by, groups_of_writes(sql))):
        for table in tree.find_all(exp.Table):
            if table.name == "saga" and not table.db:
                continue  # the alias that a group of updates writes to
            assert (table.db, table.name) == (place.schema, place.table)


@pytest.mark.parametrize("place", PLACES, ids=range(len(PLACES)))
def test_the_schema_script_parses(place):
    script = get_schema_sql(table=place.table, schema=place.schema)
    assert place.quoted in script
    assert not FORBIDDEN.search(without_names(script, place).replace(place.table, "").replace(place.schema, ""))
    created = [tree for tree in parsed(script) if tree is not None for tree in tree.find_all(exp.Create)]
    kinds = [tree.kind for tree in created]
    assert kinds.count("NONCLUSTERED INDEX") == len(_schema.INDEXES)
    assert kinds.count("TABLE") == 2


def test_keys_fit_the_servers_limits():
    """Nonclustered index keys have up to 1,700 bytes, clustered ones 900; a row behind them has its own 8 bytes."""
    sizes = {"saga_name": 514, "saga_id": 514, "correlation_id": 1026}
    (table,) = [text for text in _schema._table_statements(PLACES[0]) if text.startswith("CREATE TABLE")]
    widths = {name: 2 * int(width) for name, width in re.findall(r"(\w+) +NVARCHAR\((\d+)\)", table)}
    assert widths == sizes
    keys = [("saga_name", "saga_id"), ("saga_name", "correlation_id"), *(index.columns for index in _schema.INDEXES)]
    for columns in keys:
        assert sum(sizes.get(column, 8) for column in columns) + 8 <= 1_700
    assert table.count("COLLATE Latin1_General_100_BIN2") == 3
    assert "CLUSTERED (row_id)" in table


def test_names_of_constraints_and_indexes_fit_and_differ():
    names = []
    for text in _schema._table_statements(Place("T" * 128, "dbo")):
        names += re.findall(r"(?:CONSTRAINT|INDEX) \[([^\]]+)\]", text)
    assert len(names) == len(set(names)) == 4 + len(_schema.INDEXES)
    assert all(len(name) <= 63 for name in names)


@pytest.mark.parametrize("size", [1, 2, 32])
def test_a_group_passes_over_locked_rows(size):
    sql = Statements(PLACES[0]).select_group(size, by_correlation_id=False).sql
    assert sql.count("READCOMMITTEDLOCK, READPAST") == size
    assert len(Statements(PLACES[0]).select_group(32, by_correlation_id=True).bindings) == 64  # of 2,100


@pytest.mark.parametrize("on_babelfish", [False, True])
def test_a_group_of_updates_is_one_statement_that_finds_each_row_as_a_single_one_does(on_babelfish):
    statement = Statements(PLACES[0]).update_group(32, on_babelfish=on_babelfish)
    assert isinstance(written_by(statement), exp.Update)
    assert len(statement.bindings) == 32 * 11  # of 2,100
    saga = r"\[saga_instances\]" if on_babelfish else "saga"
    compared = re.findall(rf"{saga}\.(\w+) = (?:CAST\()?new\.(\w+)", statement.sql)
    assert compared == [
        ("saga_name", "saga_name"),
        ("saga_id", "saga_id"),
        ("version", "expected_version"),
        ("created_at", "created_at"),
    ]


def test_a_group_of_updates_seeks_each_row_and_passes_over_locked_ones():
    sql = Statements(PLACES[0])
    assert sql.update_group(2, on_babelfish=False).sql.count("FORCESEEK, READCOMMITTEDLOCK, READPAST") == 1
    # There the join would make another statement of it, in which the new values are not to be had.
    assert not re.search("JOIN|WITH|OPTION", sql.update_group(2, on_babelfish=True).sql)


def test_a_group_of_inserts_tells_an_id_of_unknown_characters_from_none():
    """Most collations of databases have no weight for an emoji, so that it equals the empty text."""
    assert Statements(PLACES[0]).insert_group(2).sql.count("WHERE saga_id COLLATE Latin1_General_100_BIN2 <> N''") == 1


@pytest.mark.parametrize("on_babelfish", [False, True])
def test_a_group_of_updates_sets_what_a_single_one_sets(on_babelfish):
    sql = Statements(PLACES[0])
    single = sql.update(archived=True, timeout=True, created=False).sql
    group = sql.update_group(2, on_babelfish=on_babelfish).sql
    sets = [re.split(r"OUTPUT|WHERE", text)[0] for text in (single, group)]
    columns = [sorted(re.findall(r"(\w+) = ", text)) for text in sets]
    assert columns[0] == columns[1]
    assert len(columns[0]) == 7


def test_a_group_of_inserts_writes_what_a_single_one_writes():
    sql = Statements(PLACES[0])
    columns = []
    for statement in (sql.insert(archived=True, timeout=True), sql.insert_group(2)):
        (insert,) = [tree for tree in parsed(statement.sql) if isinstance(tree, exp.Insert)]
        columns.append([column.name for column in insert.this.expressions])
    assert columns[0] == columns[1]
    assert len(columns[0]) == 11
    selected = re.split(r"\bFROM\b", sql.insert_group(2).sql.split("SELECT")[1])[0]
    assert re.findall(r"\w+_\w+|version|state", re.sub("DATETIME2", "", selected)) == columns[0]
    assert len(sql.insert_group(32).bindings) == 32 * 11


def test_the_purge_checks_again_in_the_delete_itself():
    for waits in (True, False):
        sql = Statements(PLACES[0]).purge(7, waits=waits).sql
        assert sql.startswith("DELETE TOP (7) FROM")
        assert "is_completed = CAST(1 AS BIT) AND updated_at <" in sql
        assert ("READPAST" in sql) == (not waits)


def test_a_page_by_staleness_merges_running_and_completed_sagas():
    statement, values = find_statement(PLACES[0], SagaQuery(SagaFilter(order="stalest"), "stalest", 11, None))
    assert statement.sql.count("TOP (11)") == 3
    assert "is_completed = CAST(0 AS BIT)" in statement.sql
    assert "is_completed = CAST(1 AS BIT)" in statement.sql
    assert values == []


def test_no_parameter_is_ever_null():
    statement = Statements(PLACES[0]).update(archived=False, timeout=False, created=False)
    assert "archived_at = NULL, timeout_expires_at = NULL" in statement.sql


def test_moments_outside_of_the_servers_years_are_moved_inside():
    early = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))
    late = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=timezone(timedelta(hours=-5)))
    assert moment_text(early) == "0001-01-01T00:00:00.000000"
    assert moment_text(late) == "9999-12-31T23:59:59.999999"
    assert moment_text(MOMENT) == "2026-01-02T03:04:05.678901"
    for text in ("2026-01-02 03:04:05.678901", "2026-01-02 03:04:05.6789010"):
        assert moment_value(text) == 1_767_323_045_678_901
    assert moment_value("1970-01-01 00:00:00") == 0


def test_a_bad_name_is_refused_before_anything_is_written():
    with pytest.raises(InvalidSagaError):
        get_schema_sql(table="a\x00b")

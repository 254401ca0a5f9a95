"""The demo, run as a user runs it, and each of its promises checked by other means than its own."""

import asyncio
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import psutil
import pytest

from demo.cases import cases, plan_cases
from demo.cli import main
from demo.coordinator import Coordinator, DemoError, Figures
from demo.event_log import ColumnNames, EventLogError, read_event_log
from demo.orders import orders, plan_orders
from demo.verification import Verdict, verify
from demo.worker import open_store
from saga_bus.core import InMemoryTransport, create_bus
from saga_bus.store_inmemory import InMemorySagaStore

ROOT = Path(__file__).parent
TIMEOUT = 60  # seconds


def command(*arguments):
    return [sys.executable, "-m", "demo", *map(str, arguments)]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run_demo(*arguments):
    return subprocess.run(
        command(*arguments), env=environment(), capture_output=True, text=True, timeout=TIMEOUT, check=False
    )


def call_demo(*arguments):
    """The demo in this process, for what ends before any worker starts: exit code, output, errors."""
    with redirect_stdout(StringIO()) as output, redirect_stderr(StringIO()) as errors:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse
            code = end.code
    return code, output.getvalue(), errors.getvalue()


def start_demo(*arguments):
    """Start a demo and return it when a tenth of its events is handled."""
    process = subprocess.Popen(
        command(*arguments), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while line := process.stdout.readline():
        if " conflicts" in line:
            return process
    raise AssertionError(process.stderr.read())


def table_of(output):
    """The printed table, label to text."""
    return {
        cells[0].strip(): cells[1].strip() for row in output.splitlines() if len(cells := row.split("│")[1:-1]) == 2
    }


def stored_states(database):
    connection = sqlite3.connect(database)
    try:
        return [json.loads(state) for (state,) in connection.execute("SELECT state FROM saga_instances")]
    finally:
        connection.close()


def tamper(database, correlation_id, change):
    """Change a stored state behind the store's back."""
    connection = sqlite3.connect(database)
    with connection:
        where = "WHERE correlation_id = ?"
        (text,) = connection.execute(f"SELECT state FROM saga_instances {where}", (correlation_id,)).fetchone()
        state = json.loads(text)
        change(state)
        connection.execute(f"UPDATE saga_instances SET state = ? {where}", (json.dumps(state), correlation_id))
    connection.close()


def write_log(path, rows, header=("case_id", "activity", "timestamp")):
    path.write_text("".join(",".join(row) + "\n" for row in (header, *rows)), encoding="utf-8")
    return path


# -- made-up orders --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run with a kill: its output and its database."""
    database = tmp_path_factory.mktemp("demo") / "orders.sqlite"
    return run_demo("--sagas", 60, "--seed", 7, "--db", database), database


def test_orders_survive_the_kill_of_a_worker(finished):
    run, database = finished
    assert (run.returncode, run.stderr) == (0, "")
    table = table_of(run.stdout)
    plans = plan_orders(60, 7).plans
    states = {state["order_id"]: state for state in stored_states(database)}
    assert states.keys() == {plan.correlation_id for plan in plans}
    for plan in plans:
        state = states[plan.correlation_id]
        assert Counter(state["applied"]) == Counter(plan.event_ids())
        assert state["metadata"]["version"] == len(state["applied"]) - 1
        assert state["metadata"]["is_completed"] is True
        assert f"{state['status']}, {state['paid_cents']} cents paid, to {state['address']}" in plan.ending
    assert table["Sagas"] == str(len(states)) == "60"
    assert table["Events"] == str(sum(len(state["applied"]) for state in states.values()))
    assert re.fullmatch(r"[1-4], after \d+ events", table["Worker killed"])
    assert int(table["Events delivered again"]) >= 1
    assert [table[label] for label in ("Lost updates", "Events applied twice", "Sagas left unfinished")] == ["0"] * 3
    assert Counter(state["status"] for state in states.values()).keys() == {"shipped", "cancelled"}


def test_the_printed_commands_look_into_the_file(finished):
    run, database = finished
    sql = re.search(r'^  sqlite3 \S+ "(.+)"$', run.stdout, re.MULTILINE)[1]
    connection = sqlite3.connect(database)
    counted = dict(connection.execute(sql))
    connection.close()
    assert counted == Counter(state["status"] for state in stored_states(database))
    python = shlex.split(re.search(r"^  (python3 .+)$", run.stdout, re.MULTILINE)[1])
    shown = subprocess.run([sys.executable, *python[1:]], capture_output=True, text=True, check=True)
    longest = json.loads(shown.stdout)
    assert longest in stored_states(database)
    assert len(longest["applied"]) == max(len(state["applied"]) for state in stored_states(database))


def test_without_a_kill_nobody_takes_over(tmp_path):
    run = run_demo("--sagas", 20, "--workers", 2, "--no-kill", "--db", tmp_path / "orders.sqlite")
    assert run.returncode == 0, run.stderr
    table = table_of(run.stdout)
    assert [table[label] for label in ("Worker killed", "Events delivered again")] == ["none", "0"]


class SlowStore(InMemorySagaStore):
    """Lets other tasks run between load and save, as a database does."""

    async def _get_by_correlation_id(self, saga_name, correlation_id):
        document = await super()._get_by_correlation_id(saga_name, correlation_id)
        await asyncio.sleep(0)
        return document


async def deliver(store, plans, transport=None):
    """Give a bus of one process the events of sagas, those of one stage at once; return what it counted."""
    transport = transport or InMemoryTransport()
    async with create_bus(transport=transport, store=store, sagas=[orders, cases]) as bus:
        for plan in plans:
            for stage in plan.stages:
                await asyncio.gather(*(bus.publish(event, message_id=event.event_id) for event in stage))
                await transport.drain()
        assert transport.dead_letters == []
        return bus.counts


def test_racing_events_are_retried_and_each_is_applied_once():
    plan = next(plan for plan in plan_orders(50, 1).plans if len(plan.stages[1]) == 3)

    async def scenario():
        async with SlowStore() as store:
            first = await deliver(store, [plan])
            again = await deliver(store, [plan])
            return first, again, await store.get_by_correlation_id("OrderSaga", plan.correlation_id)

    first, again, state = asyncio.run(scenario())
    assert first["retried"] >= 2
    assert (first["handled"], first["duplicate"]) == (len(plan.event_ids()), 0)
    assert (again["handled"], again["duplicate"]) == (0, len(plan.event_ids()))
    assert sorted(state.applied) == sorted(plan.event_ids())
    assert state.ending() == plan.ending


# -- the check -------------------------------------------------------------------------------------------


def drive(database, workload, *, workers=2, on_progress=lambda figures: None):
    async def scenario():
        coordinator = Coordinator(
            database, workload, workers=workers, kill=False, on_progress=on_progress, on_news=lambda text: None
        )
        return await coordinator.run()

    return asyncio.run(scenario())


async def apply_all(database, workload):
    async with open_store(database) as store:
        await store.create_schema()
        await deliver(store, workload.plans)


def test_the_check_finds_what_was_tampered_with(tmp_path):
    database, workload = tmp_path / "orders.sqlite", plan_orders(3, 1)
    asyncio.run(apply_all(database, workload))
    first, second, third = (plan.correlation_id for plan in workload.plans)

    def found():
        return asyncio.run(verify(database, workload))

    assert found() == Verdict(sagas=3)
    tamper(database, first, lambda state: state["applied"].pop())
    assert found() == Verdict(sagas=3, lost=1, differing=[first])
    tamper(database, second, lambda state: state["applied"].append(state["applied"][0]))
    verdict = found()
    assert (verdict.lost, verdict.doubled, sorted(verdict.differing)) == (1, 1, [first, second])
    tamper(database, third, lambda state: state["metadata"].update(is_completed=False))
    assert found().unfinished == 1
    tamper(database, third, lambda state: state.update(address="nowhere"))
    assert sorted(found().differing) == [first, second, third]
    connection = sqlite3.connect(database)
    with connection:
        connection.execute("DELETE FROM saga_instances WHERE correlation_id = ?", (third,))
    connection.close()
    verdict = found()
    assert (verdict.sagas, verdict.lost, verdict.unfinished) == (2, 1 + len(workload.plans[2].event_ids()), 1)
    assert not verdict.is_good()


# -- what goes wrong on the way --------------------------------------------------------------------------


def own_workers():
    """The workers that this process started and that still run."""
    return [child for child in psutil.Process().children() if "demo.worker" in child.cmdline()]


def test_a_worker_that_dies_by_itself_ends_the_run(tmp_path):
    database = tmp_path / "orders.sqlite"
    asyncio.run(create_schema(database))
    killed = []

    def kill_one(figures: Figures):
        if not killed:
            killed.append(own_workers()[0])
            killed[0].kill()

    with pytest.raises(DemoError, match=r"worker \d ended with exit code -9"):
        drive(database, plan_orders(500, 1), on_progress=kill_one)
    assert own_workers() == []


def test_an_error_in_a_worker_ends_the_run(tmp_path):
    with pytest.raises(DemoError, match=r"worker \d failed: SchemaError: .*create_schema"):
        drive(tmp_path / "empty.sqlite", plan_orders(5, 1))


async def create_schema(database):
    async with open_store(database) as store:
        await store.create_schema()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_no_worker_outlives_the_coordinator(tmp_path, sent, code):
    database = tmp_path / "orders.sqlite"
    with start_demo("--sagas", 6_000, "--workers", 2, "--db", database) as demo:
        workers = psutil.Process(demo.pid).children()
        demo.send_signal(sent)
        _, errors = demo.communicate(timeout=TIMEOUT)
    assert demo.returncode == code
    assert len(workers) == 2
    assert psutil.wait_procs(workers, timeout=TIMEOUT)[1] == []
    if sent == signal.SIGINT:
        assert errors.splitlines() == [f"demo: interrupted; all workers are ended, what was saved is in {database}"]
    connection = sqlite3.connect(database)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "1"], "add --no-kill"),
        (["--workers", "0"], "at least 1"),
        (["--sagas", "x"], "invalid"),
        (["--case-column", "x"], "needs --events"),
        (["--events", "log.csv", "--sagas", "5"], "the file says how many"),
        (["--db", "no/such/folder/orders.sqlite"], "cannot be made: No such file or directory"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    code, _, errors = call_demo("--db", tmp_path / "orders.sqlite", *arguments)
    assert code == 2
    assert message in errors
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_left_alone(tmp_path):
    database = tmp_path / "precious.sqlite"
    database.write_text("mine")
    run = run_demo("--sagas", 5, "--db", database)
    assert run.returncode == 2
    assert "exists and is left alone" in run.stderr
    assert database.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [database]


# -- real event logs -------------------------------------------------------------------------------------

ROWS = [
    *(
        (f"case-{case}", f"step {step}", f"2026-03-{1 + step:02} 10:00:00+01:00")
        for case in range(8)
        for step in range(9)
    ),
    ("out of order", "last", "2026-03-09 10:00:00+01:00"),
    ("out of order", "first", "2026-03-01T10:00:00Z"),
    ("same time", "earlier line", "2026-03-01 10:00:00+00:00"),
    ("same time", "later line", "2026-03-01 11:00:00.000+01:00"),
    ("Ünïcode", "été", "2026-03-01 10:00:00 +0100"),
]


@pytest.mark.parametrize("kill", [True, False])
def test_an_event_log_agrees_with_its_file(tmp_path, kill):
    log = write_log(tmp_path / "log.csv", ROWS, ("case:concept:name", "concept:name", "time:timestamp"))
    database = tmp_path / "cases.sqlite"
    run = run_demo("--events", log, "--db", database, *([] if kill else ["--no-kill"]))
    assert (run.returncode, run.stderr) == (0, "")
    assert "11 of 11 sagas agree with the file (event count and last activity)" in run.stdout
    assert "zone" not in run.stdout
    states = {state["case_id"]: state for state in stored_states(database)}
    assert {case: len(state["applied"]) for case, state in states.items()} == Counter(row[0] for row in ROWS)
    last = {case: state["last_activity"] for case, state in states.items()}
    assert (last["case-3"], last["out of order"], last["same time"]) == ("step 8", "last", "later line")
    assert sorted(line for state in states.values() for line in state["applied"]) == sorted(
        f"line {number}" for number in range(2, len(ROWS) + 2)
    )
    assert (table_of(run.stdout)["Worker killed"] != "none") is kill


def test_columns_by_option_and_times_without_zone(tmp_path):
    log = write_log(
        tmp_path / "log.csv", [("a", "x", "2026-03-01 10:00"), ("a", "y", "2026-03-01")], ("k", "what", "at")
    )
    columns = ["--case-column", "k", "--activity-column", "what", "--time-column", "at"]
    run = run_demo("--events", log, "--db", tmp_path / "cases.sqlite", "--workers", 2, *columns)
    assert run.returncode == 0, run.stderr
    assert "2 times have no zone; they are taken as UTC" in run.stdout
    (state,) = stored_states(tmp_path / "cases.sqlite")
    assert (state["last_activity"], state["last_time"]) == ("x", "2026-03-01T10:00:00Z")


def test_a_saga_that_disagrees_with_the_file_is_found(tmp_path):
    workload = plan_cases(read_event_log(write_log(tmp_path / "log.csv", ROWS), ColumnNames()), at_once=4)
    database = tmp_path / "cases.sqlite"
    asyncio.run(apply_all(database, workload))
    assert asyncio.run(verify(database, workload)) == Verdict(sagas=11)
    tamper(database, "same time", lambda state: state.update(last_activity="earlier line"))
    assert asyncio.run(verify(database, workload)) == Verdict(sagas=11, differing=["same time"])


HEADER = b"case_id,activity,timestamp\n"
GOOD = b"a,x,2026-03-01 10:00:00+00:00\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (HEADER, "has a header but no events"),
        (
            b"case_id,what,timestamp\n" + GOOD,
            "no column 'concept:name' or 'activity' for the activity; found: 'case_id', 'what', 'timestamp'",
        ),
        (b"case_id,case_id,activity,timestamp\n", "2 columns 'case_id'"),
        (HEADER + GOOD + b"a,x\n", "line 3: 2 fields, but the header has 3"),
        (HEADER + GOOD + b"a,x,2026-03-01,y\n", "line 3: 4 fields"),
        (HEADER + b'a,"two\nlines",2026-03-01\n' + b"a,x,yesterday\n", "line 4: 'yesterday' is no time"),
        (HEADER + GOOD + b"a,x,0001-01-01 00:00:00+05:00\n", "line 3: '0001-01-01 00:00:00+05:00' is no time"),
        (HEADER + GOOD + b"a,x,\n", "line 3: '' is no time"),
        (HEADER + GOOD + b"\n ,x,2026-03-01\n", "line 4: the case is empty"),
        (HEADER + GOOD + b"a,,2026-03-01\n", "line 3: the activity is empty"),
        (HEADER + b"c" * 257 + b",x,2026-03-01\n", "line 2: the case cannot be a correlation id"),
        (HEADER + b"a,x\x00y,2026-03-01\n", "line 2: the activity holds a NUL"),
        (HEADER + GOOD + b'a,"x,2026-03-01\n', "line 3: unexpected end of data"),
        (HEADER + GOOD + b"a,caf\xe9,2026-03-01\n", "line 3: not UTF-8 (byte 0xe9)"),
        ((HEADER + GOOD).decode().encode("utf-16"), "line 1: not UTF-8"),
    ],
)
def test_a_broken_log_is_refused(tmp_path, content, message):
    (tmp_path / "log.csv").write_bytes(content)
    with pytest.raises(EventLogError) as caught:
        read_event_log(tmp_path / "log.csv", ColumnNames())
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (HEADER + GOOD + b"a,x,never\n", "line 3: 'never' is no time"),
        (b"id,activity,timestamp\n" + GOOD, "Name it with --case-column"),
    ],
)
def test_a_broken_log_ends_with_code_2_and_nothing_written(tmp_path, content, message):
    log = tmp_path / "log.csv"
    if content is not None:
        log.write_bytes(content)
    code, output, errors = call_demo("--events", log, "--db", tmp_path / "cases.sqlite")
    assert code == 2
    assert errors.startswith("demo: ")
    assert message in errors
    assert output == ""
    assert not (tmp_path / "cases.sqlite").exists()


def test_a_byte_order_mark_and_blank_lines_are_fine(tmp_path):
    (tmp_path / "log.csv").write_bytes(b"\xef\xbb\xbf" + HEADER + b"\n" + GOOD.replace(b"\n", b"\r\n") + b"\n")
    (row,) = read_event_log(tmp_path / "log.csv", ColumnNames()).rows
    assert (row.line, row.case, row.time) == (3, "a", datetime(2026, 3, 1, 10, tzinfo=UTC))

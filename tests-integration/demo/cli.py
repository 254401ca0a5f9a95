"""The command line."""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo.cases import plan_cases
from demo.coordinator import Coordinator, DemoError, Figures
from demo.event_log import ColumnNames, EventLogError, read_event_log
from demo.orders import plan_orders
from demo.report import print_table, watching
from demo.verification import Verdict, verify
from demo.worker import open_store
from demo.workload import Workload
from saga_bus.store import SagaStoreError

__all__ = ["main"]

_GOOD, _BAD, _USAGE, _INTERRUPTED = 0, 1, 2, 130
_DIFFERING_SHOWN = 5


class _UsageError(Exception):
    """The arguments cannot be followed; nothing was done."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo.

    Args:
        arguments: The command line without the program; the process's own when left out.

    Returns:
        The exit code: 0 when nothing was lost, 1 when something was or a worker failed, 2 for bad arguments
        or a bad file, 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        workload = _workload(options)
        database = _new_file(options.db)
    except (_UsageError, EventLogError) as error:
        _complain(str(error))
        return _USAGE
    try:
        return _run(workload, database, options)
    except KeyboardInterrupt:
        _complain(f"interrupted; all workers are ended, what was saved is in {database}")
        return _INTERRUPTED
    except (DemoError, SagaStoreError) as error:
        _complain(f"{error}\nWhat was saved is in {database}")
        return _BAD


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="demo",
        description="Worker processes race on the same sagas in one SQLite file; one of them is killed halfway; "
        "at the end nothing may be lost.",
    )
    parser.add_argument("--sagas", type=_positive, help="how many orders to make up (default: 2000)")
    parser.add_argument("--workers", type=_positive, default=4, help="how many processes (default: %(default)s)")
    parser.add_argument(
        "--db", type=Path, metavar="PATH", help="a new SQLite file (default: in a new temporary folder)"
    )
    parser.add_argument("--no-kill", action="store_true", help="let all workers live")
    parser.add_argument("--seed", type=int, default=1, help="makes other orders up (default: %(default)s)")
    log = parser.add_argument_group("with a real event log instead of made-up orders")
    log.add_argument("--events", type=Path, metavar="FILE.csv", help="a saga per case, an event per row")
    log.add_argument("--case-column", metavar="NAME", help="default: case:concept:name or case_id")
    log.add_argument("--activity-column", metavar="NAME", help="default: concept:name or activity")
    log.add_argument("--time-column", metavar="NAME", help="default: time:timestamp or timestamp")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _workload(options: argparse.Namespace) -> Workload[Any]:
    if options.workers == 1 and not options.no_kill:
        raise _UsageError("with one worker nobody could take over from it: add --no-kill")
    columns = ColumnNames(options.case_column, options.activity_column, options.time_column)
    if options.events is None:
        if columns != ColumnNames():
            raise _UsageError("a column name needs --events")
        return plan_orders(options.sagas or 2000, options.seed)
    if options.sagas is not None:
        raise _UsageError("--sagas is for made-up orders: with --events the file says how many there are")
    log = read_event_log(options.events, columns)
    workload = plan_cases(log, at_once=options.workers)
    _say(f"{options.events}: {len(log.rows):,} events of {len(workload.plans):,} cases")
    if log.zoneless:
        _say(f"{log.zoneless:,} times have no zone; they are taken as UTC")
    return workload


def _new_file(wanted: Path | None) -> Path:
    database = wanted or Path(tempfile.mkdtemp(prefix="saga-bus-demo-")) / "demo.sqlite"
    try:
        database.touch(exist_ok=False)
    except FileExistsError as error:
        raise _UsageError(f"{database} exists and is left alone: name a new file") from error
    except OSError as error:
        raise _UsageError(f"{database} cannot be made: {error.strerror}") from error
    return database.absolute()


def _run(workload: Workload[Any], database: Path, options: argparse.Namespace) -> int:
    figures, verdict = asyncio.run(_drive_and_verify(workload, database, options))
    print_table(figures, verdict)
    for correlation_id in verdict.differing[:_DIFFERING_SHOWN]:
        _complain(f"saga {correlation_id!r} is not what was sent")
    if options.events is not None:
        agreeing = len(workload.plans) - len(verdict.differing)
        _say(
            f"{agreeing:,} of {len(workload.plans):,} sagas agree with the file (event count and last activity): "
            + ("all of them." if not verdict.differing else "NOT ALL.")
        )
    _say(_how_to_look(database, workload))
    return _GOOD if verdict.is_good() else _BAD


async def _drive_and_verify(
    workload: Workload[Any], database: Path, options: argparse.Namespace
) -> tuple[Figures, Verdict]:
    async with open_store(database) as store:
        await store.create_schema()
    events = workload.event_count()
    _say(f"{options.workers} workers, {len(workload.plans):,} sagas, {events:,} events\nSaving to {database}")
    with watching(events) as observer:
        coordinator = Coordinator(
            database,
            workload,
            workers=options.workers,
            kill=not options.no_kill,
            on_progress=observer.progress,
            on_news=observer.news,
        )
        figures = await coordinator.run()
    return figures, await verify(database, workload)


def _how_to_look(database: Path, workload: Workload[Any]) -> str:
    # Single quotes around, double quotes inside: what is printed can be pasted into a shell as it is.
    sql = (
        f"SELECT json_extract(state, '$.{workload.telling_field}'), count(*) FROM saga_instances GROUP BY 1 ORDER BY 2"
    )
    python = (
        f"import sqlite3; print(sqlite3.connect({json.dumps(str(database))}).execute("
        '"SELECT state FROM saga_instances ORDER BY version DESC").fetchone()[0])'
    )
    return (
        f"The sagas are in {database}\nLook into it:\n"
        f'  sqlite3 {shlex.quote(str(database))} "{sql}"\n'
        f"  python3 -c {shlex.quote(python)}"
    )


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _complain(text: str) -> None:
    sys.stderr.write(f"demo: {text}\n")
    sys.stderr.flush()

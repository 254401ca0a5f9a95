"""The command line."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import backends, bus
from bench.figures import LOCKED_CALLERS, grown
from bench.operations import OPERATIONS, BenchmarkError
from bench.report import print_report
from bench.runner import Plan, run
from bench.subjects import Locking

__all__ = ["main"]

_ALL = (*OPERATIONS[:-1], "walk", OPERATIONS[-1])  # the walk sees exactly the rows that the report names
_SECONDS = 0.15
_CALLERS = (1, 32)
_MEMORY_CALLERS = 64
_FILE_WIDTH = 120  # of the tables where the output is no terminal


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and save.

    Args:
        arguments: The command line, that of the process when left out.

    Returns:
        The exit code: 0, or 1 when a subject failed or a store's memory grew; bad options exit with 2.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if "--bus" in given:
        return bus.main([argument for argument in given if argument != "--bus"])
    parser = _parser()
    options = parser.parse_args(given)
    with tempfile.TemporaryDirectory(prefix="saga-bus-bench-", dir=options.directory) as directory:
        plan = _plan(parser, options, Path(directory))
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        try:
            with progress:
                report = run(plan, _Bar(progress))
        except BenchmarkError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    if options.plot is not None:
        from bench.plot import save_plot  # noqa: PLC0415 - matplotlib takes a second to import

        save_plot(report, options.plot)
    console = Console()
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    print_report(report, console, targets=options.targets)
    for each in grown(report):
        growth = f"grew by {each.growth_mb:.1f} MB, {each.most_mb:.1f} at most are no leak"
        print(f"bench: {each.store} {each.variant}, {each.callers} callers: memory {growth}", file=sys.stderr)
    return 1 if grown(report) else 0


class _Bar:
    """Tells a progress bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None)

    def total(self, steps: int) -> None:
        self._progress.update(self._task, total=steps)

    def doing(self, what: str) -> None:
        self._progress.update(self._task, description=what)

    def step(self) -> None:
        self._progress.advance(self._task)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Measure the stores beside the raw drivers of their databases, in the same run.",
    )
    parser.add_argument(
        "--store", action="append", type=_names("store", backends.names()), metavar="NAME[,NAME]", help="default: all"
    )
    parser.add_argument("--variants", type=_words, help="only these, such as normal,full of sqlite; default: all")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--operations",
        type=_names("operation", _ALL),
        metavar="NAME[,NAME]",
        help=f"of {', '.join(_ALL)}; default: all",
    )
    what.add_argument(
        "--memory",
        type=_number,
        metavar="CYCLES",
        help="instead, read the memory of the store's process, and of its first peer's, after each tenth of so many",
    )
    what.add_argument(
        "--locked",
        action="store_true",
        help="instead, measure cycles while a row is locked elsewhere that a caller waits for; default: all stores "
        "that have locks",
    )
    parser.add_argument(
        "--callers",
        type=_numbers,
        help=f"callers at the same time; default: 1,32, or {_MEMORY_CALLERS} with --memory and {LOCKED_CALLERS} with "
        "--locked",
    )
    parser.add_argument("--rows", type=_numbers, default=(1000,), help="stored sagas before; default: 1000")
    parser.add_argument("--active", type=_number, help="how many of them are used, the newest; default: all")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=_seconds, default=_SECONDS, help=f"time of a round; default: {_SECONDS}")
    length.add_argument("--ops", type=_number, help="operations of a round, instead of a time")
    parser.add_argument("--repeat", type=_number, default=3, help="rounds, whose median counts; default: 3")
    parser.add_argument("--directory", type=_directory, help="where the databases are made; default: the system's")
    parser.add_argument("--json", type=_output, metavar="FILE", help="save every figure")
    parser.add_argument("--plot", type=_output, metavar="FILE.png", help="save a figure; needs matplotlib")
    parser.add_argument("--targets", action="store_true", help="print which targets this run meets")
    parser.add_argument("--bus", action="store_true", help="measure the bus instead; --bus --help tells its options")
    return parser


def _plan(parser: argparse.ArgumentParser, options: argparse.Namespace, directory: Path) -> Plan:
    able = [name for name in backends.names() if not options.locked or _has_locks(name)]
    stores = tuple(dict.fromkeys(name for names in options.store or [able] for name in names))
    for name in stores:
        if name not in able:
            parser.error(f"argument --locked: {name} has no way to hold a row locked")
    plan = Plan(
        stores=stores,
        variants=options.variants,
        rows=options.rows,
        active=options.active,
        callers=options.callers or _default_callers(options),
        operations=_operations(options),
        memory=options.memory,
        locked=options.locked,
        seconds=options.seconds if options.ops is None else None,
        ops=options.ops,
        repeat=options.repeat,
        directory=directory,
    )
    if plan.memory is not None and len(plan.callers) > 1:
        parser.error("argument --memory: a process is fresh once, so there is one number of callers")
    least = min((*plan.rows, plan.active or plan.rows[0]))
    most = max(plan.callers) + plan.locked  # the one that waits
    if most > least:
        parser.error(f"{most} callers need as many sagas, so that none is shared; there are {least}")
    known = {variant for name in stores for variant in backends.load(name).variants}
    for variant in plan.variants or ():
        if variant not in known:
            parser.error(f"argument --variants: unknown variant {variant!r}: one of {', '.join(sorted(known))}")
    if options.plot is not None and not plan.operations:
        parser.error("argument --plot: it draws operations, and there are none")
    if options.plot is not None and find_spec("matplotlib") is None:
        parser.error("argument --plot: matplotlib is not installed")
    return plan


def _has_locks(name: str) -> bool:
    return isinstance(backends.load(name), Locking)


def _default_callers(options: argparse.Namespace) -> tuple[int, ...]:
    if options.memory:
        return (_MEMORY_CALLERS,)
    return (LOCKED_CALLERS,) if options.locked else _CALLERS


def _operations(options: argparse.Namespace) -> tuple[str, ...]:
    if options.memory or options.locked:
        return ()
    return tuple(name for name in _ALL if name in (options.operations or _ALL))


def _words(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name")
    return words


def _names(what: str, known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        for word in _words(text):
            if word not in known:
                raise argparse.ArgumentTypeError(f"unknown {what} {word!r}: one of {', '.join(known)}")
        return _words(text)

    return parse


def _number(text: str) -> int:
    number = int(text.replace("_", "")) if text.replace("_", "").isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return number


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_number(word.strip()) for word in text.split(",")))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no time from 0 to 3600 seconds")
    return seconds


def _directory(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no directory")
    return Path(text)


def _output(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: no such directory, or it is one")
    return path

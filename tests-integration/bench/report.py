"""The tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.figures import STORE, Figure, MemoryFigure, Report

__all__ = ["print_report"]


def print_report(report: Report, console: Console, *, targets: bool) -> None:
    """Print the figures.

    Args:
        report: The figures.
        console: Where.
        targets: Whether to print the targets too.
    """
    _print_header(report, console)
    for store, variant, rows in dict.fromkeys((each.store, each.variant, each.rows) for each in report.figures):
        figures = [each for each in report.figures if (each.store, each.variant, each.rows) == (store, variant, rows)]
        console.print(_figures(f"{store} {variant}, {rows:,} sagas stored", figures))
    for rows, callers in dict.fromkeys((each.rows, each.callers) for each in report.memory):
        processes = [each for each in report.memory if (each.rows, each.callers) == (rows, callers)]
        cycles = f"{processes[0].operations:,} cycles of {callers} callers"
        console.print(_memory(f"Resident memory during {cycles}, {rows:,} sagas stored", processes))
    if report.locked:
        console.print(_locked(report))
    if report.walks:
        console.print(_walks(report))
    if report.growth:
        console.print(_growth(report))
    if targets:
        console.print(_targets(report))


def _print_header(report: Report, console: Console) -> None:
    machine, parameters = report.machine, report.parameters
    disk = f"a page and its fsync take {report.fsync['p50_us']:.0f} us (p50), {report.fsync['p99_us']:.0f} us (p99)"
    lines = (
        f"{machine['date']}  {machine['python']}  {machine['system']}",
        f"{machine['cpus']} x {machine['processor']}, load {machine['load']:.1f} at the start",
        "  ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        f"{machine['filesystem']} in {machine['directory']}: {disk}",
        _what(parameters),
    )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _what(parameters: dict[str, Any]) -> str:
    if parameters["memory"]:
        return "each subject's process has done nothing before"
    length = f"{parameters['ops']} operations" if parameters["ops"] else f"{parameters['seconds']} s"
    rounds = f"{parameters['repeat']} rounds of {length} each, medians"
    if parameters["locked"]:
        return f"{rounds}; as many without a locked row"
    return f"{rounds}; memory: peak resident set of the subject's process"


def _table(title: str, columns: Iterable[str], *, words: int) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < words else "right", no_wrap=True)
    return table


def _figures(title: str, figures: list[Figure]) -> Table:
    columns = ("operation", "callers", "subject", "per second", "CPU us", "p50 us", "p99 us", "peak MB", "store is")
    table = _table(title, columns, words=3)
    for operation, callers in dict.fromkeys((each.operation, each.callers) for each in figures):
        group = [each for each in figures if (each.operation, each.callers) == (operation, callers)]
        ratios = next(each.ratios for each in group if each.subject == STORE)
        for each in group:
            own = each.subject == STORE
            table.add_row(
                operation if own else "",
                str(callers) if own else "",
                each.subject,
                f"{each.per_second:,.0f}",
                f"{each.cpu_us:,.1f}",
                f"{each.p50_us:,.1f}",
                f"{each.p99_us:,.1f}",
                f"{each.peak_mb:,.0f}",
                "" if own else f"{ratios[each.subject]:.2f} x",
                style="bold" if own else None,
            )
        table.add_section()
    return table


def _memory(title: str, processes: list[MemoryFigure]) -> Table:
    table = _table(title, ("store", "subject", "MB after each tenth", "grew by MB", "at most"), words=2)
    for each in processes:
        own = each.subject == STORE
        table.add_row(
            f"{each.store} {each.variant}",
            each.subject,
            " ".join(f"{mb:.1f}" for mb in each.tenths_mb),
            f"{each.growth_mb:,.1f}",
            f"{each.most_mb:,.1f}" if own else "",
            style="bold" if own else None,
        )
    return table


def _locked(report: Report) -> Table:
    columns = ("store", "sagas", "callers", "p99 us", "p99 us, a row locked", "ratio")
    table = _table("Cycles of other sagas while a row is locked elsewhere that a caller waits for", columns, words=3)
    for each in report.locked:
        table.add_row(
            f"{each.store} {each.variant}",
            f"{each.rows:,}",
            str(each.callers),
            f"{each.free_p99_us:,.1f}",
            f"{each.locked_p99_us:,.1f}",
            f"{each.ratio:.2f}",
        )
    return table


def _walks(report: Report) -> Table:
    columns = ("store", "subject", "sagas", "sagas per second", "memory grew by MB", "peak MB")
    table = _table("A walk over all sagas, 1,000 a page", columns, words=2)
    for walk in report.walks:
        table.add_row(
            f"{walk.store} {walk.variant}",
            walk.subject,
            f"{walk.sagas:,}",
            f"{walk.per_second:,.0f}",
            f"{walk.growth_mb:,.1f}",
            f"{walk.peak_mb:,.0f}",
        )
    return table


def _growth(report: Report) -> Table:
    fewest = report.growth[0].fewest
    sizes = sorted({each.most for each in report.growth})
    columns = ("store", "operation", "callers", "subject", *(f"{rows:,}" for rows in sizes))
    table = _table(f"Throughput at so many stored sagas, over that at {fewest:,}", columns, words=4)
    keys = ((each.store, each.variant, each.operation, each.callers, each.subject) for each in report.growth)
    for key in dict.fromkeys(keys):
        store, variant, operation, callers, subject = key
        by_rows = {
            each.most: each.ratio
            for each in report.growth
            if (each.store, each.variant, each.operation, each.callers, each.subject) == key
        }
        cells = (f"{by_rows[rows]:.2f}" for rows in sizes)
        own = subject == STORE
        table.add_row(f"{store} {variant}", operation, str(callers), subject, *cells, style="bold" if own else None)
    return table


def _targets(report: Report) -> Table:
    table = _table("Targets", ("store", "target", "measured", "met?"), words=2)
    table.columns[1].no_wrap = False
    for each in report.targets:
        measured = "not in this run" if each.measured is None else f"{each.measured:,.2f}"
        met = "" if each.met is None else "yes" if each.met else "NO"
        table.add_row(each.store, each.text, measured, met, style="red" if each.met is False else None)
    return table

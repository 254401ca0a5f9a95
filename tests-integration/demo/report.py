"""What the user sees: a progress bar or plain lines, and the table at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from demo.coordinator import Figures
from demo.verification import Verdict

__all__ = ["Observer", "print_table", "watching"]

_PLAIN_STEPS = 10


class Observer(Protocol):
    """Sees how a run goes on."""

    def progress(self, figures: Figures) -> None:
        """Called after every acknowledgement."""
        ...

    def news(self, text: str) -> None:
        """Called when something worth telling happens."""
        ...


@contextmanager
def watching(events: int) -> Iterator[Observer]:
    """Show a run: a progress bar on a terminal, else a line at every tenth.

    Args:
        events: How many events there are.
    """
    console = Console()
    if not console.is_terminal:
        yield _PlainLines()
        return
    bar = Progress(
        TextColumn("Events"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
        TextColumn("{task.fields[conflicts]:,} conflicts"),
        TimeElapsedColumn(),
        console=console,
        expand=True,
    )
    with bar:
        yield _Bar(bar, events)


class _Bar:
    def __init__(self, bar: Progress, events: int) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=events, conflicts=0)

    def progress(self, figures: Figures) -> None:
        self._bar.update(self._task, completed=figures.acknowledged, conflicts=figures.conflicts)

    def news(self, text: str) -> None:
        self._bar.console.print(text, highlight=False)


class _PlainLines:
    def __init__(self) -> None:
        self._steps = 0

    def progress(self, figures: Figures) -> None:
        steps = figures.acknowledged * _PLAIN_STEPS // figures.events
        if steps > self._steps:
            self._steps = steps
            self.news(f"{figures.acknowledged:,} of {figures.events:,} events, {figures.conflicts:,} conflicts")

    def news(self, text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def print_table(figures: Figures, verdict: Verdict) -> None:
    """Print the figures of a run and what the check found.

    Args:
        figures: The run.
        verdict: The check.
    """
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rate = figures.acknowledged / figures.seconds if figures.seconds else 0.0
    rows: list[tuple[str, int | float | str]] = [
        ("Sagas", verdict.sagas),
        ("Events", figures.acknowledged),
        ("Seconds", f"{figures.seconds:.1f}"),
        ("Events per second", round(rate)),
        ("Conflicts retried", figures.conflicts),
    ]
    if figures.unavailable:
        rows.append(("Retried because the file was busy", figures.unavailable))
    rows += [
        ("Worker killed", figures.killed or "none"),
        ("Open sagas taken over by other workers", figures.taken_over),
        ("Events delivered again", figures.redelivered),
        ("  of which applied before, recognised", figures.recognised),
    ]
    for label, value in rows:
        table.add_row(label, value if isinstance(value, str) else f"{value:,}")
    table.add_section()
    for label, count in (
        ("Lost updates", verdict.lost),
        ("Events applied twice", verdict.doubled),
        ("Sagas left unfinished", verdict.unfinished),
        ("Sagas that ended differently than sent", len(verdict.differing)),
    ):
        table.add_row(label, f"{count:,}", style="bold green" if count == 0 else "bold red")
    Console(highlight=False).print(table)

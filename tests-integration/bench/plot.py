"""The figure: throughput by operation, callers and subject, and how it changes with the stored sagas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no display is needed to write a file

from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter

from bench.figures import STORE, Figure, Report

__all__ = ["save_plot"]

_SHORT = {"get_by_id": "by id", "get_by_correlation_id": "by correlation"}
_STORE_COLOUR = "#1b4f9c"
_PEER_COLOURS = ("#c8c8c8", "#e8a33d", "#9b7fc4", "#7fb58a", "#d98c8c", "#8c8c8c")


def save_plot(report: Report, path: Path) -> None:
    """Draw the figures of a run.

    Args:
        report: The figures.
        path: Where; the ending says the format.
    """
    places = list(dict.fromkeys((each.store, each.variant) for each in report.figures))
    callers = sorted({each.callers for each in report.figures})
    columns = len(callers) + bool(report.growth)
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        plot, axes = plt.subplots(
            max(1, len(places)),
            max(1, columns),
            figsize=(max(8.0, 8.0 * columns), 1.2 + 4.2 * max(1, len(places))),
            squeeze=False,
            layout="constrained",
        )
        for row, place in enumerate(places):
            for column, count in enumerate(callers):
                _draw_throughput(axes[row][column], report, place, count)
            if report.growth:
                _draw_growth(axes[row][-1], report, place)
        machine = report.machine
        plot.suptitle(
            f"Operations per second; above a peer's bar: how many times as fast the store is\n"
            f"{machine['cpus']} x {machine['processor']}, {machine['python']}, {machine['filesystem']}, "
            f"fsync {report.fsync['p50_us']:.0f} us, {machine['date'][:10]}",
            fontsize=10,
        )
        plot.savefig(path, dpi=130)
        plt.close(plot)


def _draw_throughput(axes: Any, report: Report, place: tuple[str, str], callers: int) -> None:
    rows = min(each.rows for each in report.figures)
    figures = [
        each
        for each in report.figures
        if (each.store, each.variant) == place and each.callers == callers and each.rows == rows
    ]
    operations = list(dict.fromkeys(each.operation for each in figures))
    subjects = list(dict.fromkeys(each.subject for each in figures))
    ratios = {each.operation: each.ratios for each in figures if each.subject == STORE}
    width = 0.84 / max(1, len(subjects))
    for index, subject in enumerate(subjects):
        for position, operation in enumerate(operations):
            figure = _of(figures, subject, operation)
            bar = axes.bar(
                position + (index - (len(subjects) - 1) / 2) * width,
                figure.per_second,
                width * 0.94,
                color=_colour(subjects, subject),
                label=subject if position == 0 else None,
            )
            text = "" if subject == STORE else _times(ratios[operation][subject])
            axes.bar_label(bar, [text], fontsize=7, padding=1, rotation=90 if len(subjects) > 3 else 0)
    axes.set_yscale("log")
    axes.margins(y=0.18)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_xticks(range(len(operations)), [_SHORT.get(operation, operation) for operation in operations])
    axes.set_title(f"{' '.join(place)}, {rows:,} sagas, {callers} caller{'s' if callers > 1 else ''}", fontsize=9)
    axes.legend(fontsize=7, ncols=3, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08))


def _draw_growth(axes: Any, report: Report, place: tuple[str, str]) -> None:
    mine = [each for each in report.growth if (each.store, each.variant, each.subject) == (*place, STORE)]
    callers = max((each.callers for each in mine), default=1)
    for operation in dict.fromkeys(each.operation for each in mine):
        points = sorted(
            (each.most, each.ratio) for each in mine if each.operation == operation and each.callers == callers
        )
        fewest = mine[0].fewest
        axes.plot(
            [fewest, *(most for most, _ in points)], [1.0, *(ratio for _, ratio in points)], "o-", label=operation
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 1.05 * max(1.0, *(each.ratio for each in mine), 1.0))
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_title(f"{' '.join(place)}, {callers} callers: the store's throughput by stored sagas", fontsize=9)
    axes.legend(fontsize=7, frameon=False, ncols=2)


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 1 else f"{ratio:.1f}x" if ratio < 10 else f"{ratio:,.0f}x"


def _colour(subjects: list[str], subject: str) -> str:
    if subject == STORE:
        return _STORE_COLOUR
    return _PEER_COLOURS[(subjects.index(subject) - 1) % len(_PEER_COLOURS)]


def _of(figures: list[Figure], subject: str, operation: str) -> Figure:
    return next(each for each in figures if (each.subject, each.operation) == (subject, operation))

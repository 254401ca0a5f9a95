"""The figures of a run, and what is computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import msgspec

from bench.locked import MOST_RATIO, Held
from bench.measure import Measured
from bench.memory import most_growth_mb
from bench.subjects import Backend, Locking, Target

__all__ = [
    "LOCKED_CALLERS",
    "STORE",
    "Figure",
    "Growth",
    "LockedFigure",
    "MemoryFigure",
    "Report",
    "TargetResult",
    "WalkFigure",
    "check_targets",
    "grown",
    "growth",
    "summarize",
    "summarize_locked",
    "targets_of",
]

STORE = "store"  # the subject that is the store itself; the others are its peers
LOCKED_CALLERS = 64  # of the target for a locked row

_AT_MOST = ("walk", "locked")  # kinds of targets that are not to be exceeded


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of one subject, the medians of its rounds.

    Args:
        store: The store.
        variant: Its variant.
        rows: The stored sagas.
        subject: "store" or the name of a peer.
        operation: The operation.
        callers: How many callers at the same time.
        per_second: Throughput.
        cpu_us: Processor time of the subject's process for one operation, in microseconds, all threads.
        p50_us: Median latency in microseconds.
        p99_us: 99th percentile of the latency in microseconds.
        peak_mb: The most memory that the subject's process had resident, in MB.
        ratios: For the store, its throughput over each peer's: the median of the rounds' own ratios.
        rounds: The rounds.
    """

    store: str
    variant: str
    rows: int
    subject: str
    operation: str
    callers: int
    per_second: float
    cpu_us: float
    p50_us: float
    p99_us: float
    peak_mb: float
    ratios: dict[str, float]
    rounds: list[Measured]


class WalkFigure(msgspec.Struct, frozen=True, kw_only=True):
    """One walk over all sagas; memory in MB, ``growth_mb`` from before the walk to its peak."""

    store: str
    variant: str
    rows: int
    subject: str
    sagas: int
    per_second: float
    growth_mb: float
    peak_mb: float


class MemoryFigure(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of a process that does nothing but cycles.

    Args:
        store: The store.
        variant: Its variant.
        rows: The stored sagas.
        subject: "store" or the name of a peer.
        callers: How many callers at the same time.
        operations: How many cycles.
        tenths_mb: The resident set after each tenth of them, in MB.
    """

    store: str
    variant: str
    rows: int
    subject: str
    callers: int
    operations: int
    tenths_mb: list[float]

    @property
    def growth_mb(self) -> float:
        """From the first tenth to the last."""
        return self.tenths_mb[-1] - self.tenths_mb[0]

    @property
    def most_mb(self) -> float:
        """How much of it is no growth yet."""
        return most_growth_mb(self.tenths_mb[0])


class LockedFigure(msgspec.Struct, frozen=True, kw_only=True):
    """Cycles of other sagas while another transaction holds a row locked that a caller waits for.

    Args:
        store: The store.
        variant: Its variant.
        rows: The stored sagas.
        callers: How many callers at the same time, beside the one that waits.
        free_p99_us: The 99th percentile of the latency without, in microseconds: the median of the rounds.
        locked_p99_us: The same with it.
        ratio: The second over the first: the median of the rounds' own ratios.
        rounds: The rounds.
    """

    store: str
    variant: str
    rows: int
    callers: int
    free_p99_us: float
    locked_p99_us: float
    ratio: float
    rounds: list[Held]


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """The throughput with ``most`` rows over that with ``fewest``."""

    store: str
    variant: str
    subject: str
    operation: str
    callers: int
    fewest: int
    most: int
    ratio: float


class TargetResult(msgspec.Struct, frozen=True):
    """A target and the figure for it; None for ``measured`` and ``met`` when this run has none."""

    store: str
    text: str
    measured: float | None
    met: bool | None


class Report(msgspec.Struct, kw_only=True):
    """Everything of one run; ``format`` changes when a field changes its meaning."""

    format: int = 1
    machine: dict[str, Any]
    fsync: dict[str, float]
    parameters: dict[str, Any]
    figures: list[Figure] = []
    walks: list[WalkFigure] = []
    memory: list[MemoryFigure] = []
    locked: list[LockedFigure] = []
    growth: list[Growth] = []
    targets: list[TargetResult] = []


def summarize(
    where: tuple[str, str, int], operation: str, callers: int, rounds: dict[str, list[Measured]]
) -> list[Figure]:
    """The figures of one operation from all its rounds.

    Args:
        where: Store, variant and rows.
        operation: The operation.
        callers: How many callers.
        rounds: The rounds of each subject, in the order in which they ran side by side.
    """
    store, variant, rows = where
    return [
        Figure(
            store=store,
            variant=variant,
            rows=rows,
            subject=subject,
            operation=operation,
            callers=callers,
            per_second=median(each.per_second for each in measured),
            cpu_us=median(each.cpu_us for each in measured),
            p50_us=median(each.p50_us for each in measured),
            p99_us=median(each.p99_us for each in measured),
            peak_mb=max(each.peak_mb for each in measured),
            ratios={} if subject != STORE else _ratios(rounds),
            rounds=measured,
        )
        for subject, measured in rounds.items()
    ]


def _ratios(rounds: dict[str, list[Measured]]) -> dict[str, float]:
    own = rounds[STORE]
    return {
        peer: median(mine.per_second / its.per_second for mine, its in zip(own, measured, strict=True))
        for peer, measured in rounds.items()
        if peer != STORE
    }


def summarize_locked(where: tuple[str, str, int], callers: int, rounds: list[Held]) -> LockedFigure:
    """The figure of a store beside itself without a locked row.

    Args:
        where: Store, variant and rows.
        callers: How many callers.
        rounds: The rounds.
    """
    store, variant, rows = where
    return LockedFigure(
        store=store,
        variant=variant,
        rows=rows,
        callers=callers,
        free_p99_us=median(each.free.p99_us for each in rounds),
        locked_p99_us=median(each.locked.p99_us for each in rounds),
        ratio=median(each.ratio for each in rounds),
        rounds=rounds,
    )


def grown(report: Report) -> list[MemoryFigure]:
    """The stores whose processes grew more than they may; what a peer does is not their fault.

    Args:
        report: The figures.
    """
    return [each for each in report.memory if each.subject == STORE and each.growth_mb > each.most_mb]


def growth(figures: Sequence[Figure]) -> list[Growth]:
    """How throughput changes from the fewest stored sagas to the most.

    Args:
        figures: All figures of a run.
    """
    found: dict[tuple[str, str, str, str, int], dict[int, float]] = {}
    for figure in figures:
        key = (figure.store, figure.variant, figure.subject, figure.operation, figure.callers)
        found.setdefault(key, {})[figure.rows] = figure.per_second
    return [
        Growth(
            store=store,
            variant=variant,
            subject=subject,
            operation=operation,
            callers=callers,
            fewest=min(by_rows),
            most=rows,
            ratio=by_rows[rows] / by_rows[min(by_rows)],
        )
        for (store, variant, subject, operation, callers), by_rows in found.items()
        for rows in sorted(by_rows)
        if rows != min(by_rows)
    ]


def targets_of(backend: Backend) -> Iterator[Target]:
    """A backend's own targets, and those that all of its kind have.

    Args:
        backend: The backend.
    """
    yield from backend.targets
    if isinstance(backend, Locking):
        for variant in backend.variants:
            yield Target("locked", MOST_RATIO, "cycle", variant, LOCKED_CALLERS)


def check_targets(backend: Backend, report: Report) -> list[TargetResult]:
    """Compare a backend's targets with the figures.

    Args:
        backend: The backend.
        report: The figures, growth included.
    """
    results = []
    for target in targets_of(backend):
        measured = _measured(backend.name, target, report)
        if measured is None:
            met = None
        else:
            met = measured <= target.bound if target.kind in _AT_MOST else measured >= target.bound
        results.append(TargetResult(backend.name, _text(target), measured, met))
    return results


def _measured(store: str, target: Target, report: Report) -> float | None:
    if target.kind == "walk":
        return _last(
            walk.growth_mb
            for walk in report.walks
            if (walk.store, walk.variant, walk.rows, walk.subject) == (store, target.variant, target.rows, STORE)
        )
    if target.kind == "locked":
        return _last(
            each.ratio
            for each in report.locked
            if (each.store, each.variant, each.callers) == (store, target.variant, target.callers)
        )
    wanted = (store, target.variant, STORE, target.operation, target.callers)
    if target.kind == "growth":
        return _last(
            each.ratio
            for each in report.growth
            if (each.store, each.variant, each.subject, each.operation, each.callers) == wanted
            and each.most == target.rows
        )
    # With the fewest rows: growth has targets of its own.
    figures = [
        figure
        for figure in report.figures
        if (figure.store, figure.variant, figure.subject, figure.operation, figure.callers) == wanted
    ]
    if not figures:
        return None
    figure = min(figures, key=lambda each: each.rows)
    return figure.ratios.get(target.peer) if target.kind == "ratio" else figure.per_second


def _last(values: Any) -> float | None:
    found = list(values)
    return found[-1] if found else None


def _text(target: Target) -> str:
    callers = "1 caller" if target.callers == 1 else f"{target.callers} callers"
    if target.kind == "walk":
        return f"{target.variant}: a walk over {target.rows:,} sagas grows by at most {target.bound:g} MB"
    if target.kind == "locked":
        return (
            f"{target.variant}, {callers}: p99 of a {target.operation} with another row locked at most "
            f"{target.bound:g} x that without"
        )
    if target.kind == "growth":
        return (
            f"{target.variant}, {callers}: {target.operation} at {target.rows:,} sagas at least "
            f"{target.bound:g} x that at the fewest"
        )
    what = f"{target.variant}, {callers}: {target.operation} at least"
    if target.kind == "ratio":
        return f"{what} {target.bound:g} x {target.peer}"
    return f"{what} {target.bound:,.0f} a second"

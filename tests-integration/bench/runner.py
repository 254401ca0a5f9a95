"""A run: the subjects of each store side by side, in rounds that take turns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench import backends
from bench.child import Cycles, Hold, Measure, Prepare, Ready, Resident, Serve, Verify, Walk, Walked
from bench.figures import (
    STORE,
    MemoryFigure,
    Report,
    WalkFigure,
    check_targets,
    growth,
    summarize,
    summarize_locked,
)
from bench.locked import Held
from bench.machine import describe, fsync_latency
from bench.measure import Measured
from bench.operations import WRITES, BenchmarkError
from bench.process import Child, prepare
from bench.subjects import Backend
from providers import UnavailableError, serve

__all__ = ["Plan", "Watcher", "run"]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Args:
        stores: The names of stores.
        variants: Only these variants; None for all.
        rows: Numbers of stored sagas.
        active: How many of them are used; None for all.
        callers: Numbers of concurrent callers.
        operations: Names of operations, in the order in which they run; none with ``memory`` or ``locked``.
        memory: So many cycles, with the memory read meanwhile, instead of operations.
        locked: Whether to measure cycles beside a locked row instead of operations.
        seconds: The time of a round; None with ``ops``.
        ops: The operations of a round instead.
        repeat: How many rounds.
        directory: Where the databases are made.
    """

    stores: tuple[str, ...]
    variants: tuple[str, ...] | None
    rows: tuple[int, ...]
    active: int | None
    callers: tuple[int, ...]
    operations: tuple[str, ...]
    memory: int | None
    locked: bool
    seconds: float | None
    ops: int | None
    repeat: int
    directory: Path

    def parameters(self) -> dict[str, Any]:
        """The plan as plain JSON values, without where it runs."""
        fields = {**self.__dict__}
        del fields["directory"]
        return fields

    def variants_of(self, backend: Backend) -> list[str]:
        """The variants of a backend that are measured."""
        return [variant for variant in backend.variants if self.variants is None or variant in self.variants]

    def subjects_of(self, backend: Backend) -> tuple[str, ...]:
        """The subjects that are measured: the store, and its peers where they are of use."""
        if self.locked:  # a peer with one connection would wait for ever
            return (STORE,)
        return (STORE, *(backend.peers[:1] if self.memory else backend.peers))


class Watcher(Protocol):
    """Is told how far a run has come."""

    def total(self, steps: int) -> None:
        """How many steps there will be."""

    def doing(self, what: str) -> None:
        """What happens now."""

    def step(self) -> None:
        """A step is done."""


def run(plan: Plan, watcher: Watcher) -> Report:
    """Measure everything that a plan names.

    Args:
        plan: The plan.
        watcher: Is told how far it has come.

    Raises:
        BenchmarkError: A subject failed, or gave a wrong result.
    """
    chosen = [backends.load(name) for name in plan.stores]
    with _served(chosen):
        return _run(plan, watcher, chosen)


@contextmanager
def _served(chosen: list[Backend]) -> Iterator[None]:
    """Have the servers up that stores need; the children find their URLs where the tests find them, too."""
    before = dict(os.environ)
    with ExitStack() as stack:
        for backend in chosen:
            server: str | None = getattr(backend, "server", None)
            if server is not None:
                try:
                    os.environ[f"SAGA_TEST_{server.upper()}_URL"] = stack.enter_context(serve(server))
                except UnavailableError as error:
                    raise BenchmarkError(f"{backend.name}: {error}") from error
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def _run(plan: Plan, watcher: Watcher, chosen: list[Backend]) -> Report:
    watcher.total(sum(_steps(plan, backend) for backend in chosen))
    report = Report(
        machine=describe(chosen, plan.directory),
        fsync=fsync_latency(plan.directory),
        parameters=plan.parameters(),
    )
    for backend in chosen:
        for rows in plan.rows:
            _run_rows(plan, watcher, report, backend, rows)
    report.growth = growth(report.figures)
    report.targets = [result for backend in chosen for result in check_targets(backend, report)]
    return report


def _steps(plan: Plan, backend: Backend) -> int:
    walks = "walk" in plan.operations
    each = (len(plan.operations) - walks + plan.locked) * plan.repeat + (plan.memory is not None)
    steps = len(plan.subjects_of(backend)) * (each * len(plan.callers) + walks)
    return len(plan.rows) * (1 + len(plan.variants_of(backend)) * steps)


def _run_rows(plan: Plan, watcher: Watcher, report: Report, backend: Backend, rows: int) -> None:
    watcher.doing(f"{backend.name}: storing {rows:,} sagas")
    template = plan.directory / f"{backend.name}-{rows}"
    prepare(Prepare(backend.name, str(template), rows))
    watcher.step()
    for variant in plan.variants_of(backend):
        with ExitStack() as stack:
            children = {
                subject: stack.enter_context(_child(plan, backend, subject, variant, template, rows))
                for subject in plan.subjects_of(backend)
            }
            for child in children.values():
                child.wait_until_open()
            os.sync()  # so that no round pays for writing out the copies
            _Field(plan, watcher, report, (backend.name, variant, rows), children).run()


def _child(plan: Plan, backend: Backend, subject: str, variant: str, template: Path, rows: int) -> Child:
    directory = plan.directory / f"{template.name}-{variant}-{subject}"
    active = rows if plan.active is None else min(rows, plan.active)
    return Child(Serve(backend.name, subject, variant, str(directory), rows, active), template)


class _Field:
    """The subjects of one store, variant and number of rows, all open."""

    def __init__(
        self,
        plan: Plan,
        watcher: Watcher,
        report: Report,
        where: tuple[str, str, int],
        children: dict[str, Child],
    ) -> None:
        self.plan = plan
        self.watcher = watcher
        self.report = report
        self.where = where
        self.children = children

    def run(self) -> None:
        for callers in self.plan.callers:
            if self.plan.memory is not None:
                self.memory(callers, self.plan.memory)
            elif self.plan.locked:
                self.locked(callers)
        for operation in self.plan.operations:
            if operation == "walk":
                self.walk()
                continue
            for callers in self.plan.callers:
                self.measure(operation, callers)

    def measure(self, operation: str, callers: int) -> None:
        self.watcher.doing(f"{' '.join(map(str, self.where))} {operation}, {callers} callers")
        command = Measure(operation, callers, self.plan.seconds, self.plan.ops)
        rounds: dict[str, list[Measured]] = {subject: [] for subject in self.children}
        for turn in range(self.plan.repeat):
            for subject in self.in_turn(turn):
                rounds[subject].append(self.children[subject].ask(command, Measured))
                self.watcher.step()
        if operation in WRITES:
            self.verify()
        self.report.figures += summarize(self.where, operation, callers, rounds)

    def verify(self) -> None:
        for child in self.children.values():
            child.ask(Verify(), Ready)

    def memory(self, callers: int, operations: int) -> None:
        store, variant, rows = self.where
        for subject, child in self.children.items():
            self.watcher.doing(f"{store} {variant} {rows} {subject}, {operations:,} cycles of {callers} callers")
            resident = child.ask(Cycles(callers, operations), Resident)
            self.watcher.step()
            self.report.memory.append(
                MemoryFigure(
                    store=store,
                    variant=variant,
                    rows=rows,
                    subject=subject,
                    callers=callers,
                    operations=operations,
                    tenths_mb=resident.tenths_mb,
                )
            )
        self.verify()

    def locked(self, callers: int) -> None:
        self.watcher.doing(f"{' '.join(map(str, self.where))} beside a locked row, {callers} callers")
        command, child = Hold(callers, self.plan.seconds, self.plan.ops), self.children[STORE]
        rounds = []
        for _ in range(self.plan.repeat):
            rounds.append(child.ask(command, Held))
            self.watcher.step()
        self.verify()
        self.report.locked.append(summarize_locked(self.where, callers, rounds))

    def in_turn(self, turn: int) -> Iterator[str]:
        """The subjects, another one first in each round: none always runs in the wake of the same other."""
        subjects = list(self.children)
        first = turn % len(subjects)
        yield from subjects[first:] + subjects[:first]

    def walk(self) -> None:
        store, variant, rows = self.where
        self.watcher.doing(f"{' '.join(map(str, self.where))} walk")
        for subject, child in self.children.items():
            walked = child.ask(Walk(), Walked)
            self.watcher.step()
            self.report.walks.append(
                WalkFigure(
                    store=store,
                    variant=variant,
                    rows=rows,
                    subject=subject,
                    sagas=walked.sagas,
                    per_second=walked.sagas / walked.seconds,
                    growth_mb=walked.peak_mb - walked.before_mb,
                    peak_mb=walked.peak_mb,
                )
            )

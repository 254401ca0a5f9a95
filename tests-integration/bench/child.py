"""A fresh process for one subject: it does what it is told on stdin, a JSON line each, and answers on stdout."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from time import perf_counter

import msgspec

from bench import backends
from bench.measure import Measured, drive, memory_mb, peak_memory_mb, reset_peak_memory
from bench.operations import Orders

__all__ = ["Command", "Measure", "Prepare", "Ready", "Serve", "Verify", "Walk", "Walked"]

_WARM_UP = 0.1  # of the time or the operations of a round


class Prepare(msgspec.Struct, tag=True, frozen=True):
    """Store the rows of a backend in a directory, and end."""

    backend: str
    directory: str
    rows: int


class Serve(msgspec.Struct, tag=True, frozen=True):
    """Open a subject; the answer is `Ready`, and then come `Measure`, `Walk` and `Verify`."""

    backend: str
    subject: str
    variant: str
    directory: str
    rows: int
    active: int


class Measure(msgspec.Struct, tag=True, frozen=True):
    """Measure one round of one operation; the answer is a `Measured`."""

    operation: str
    callers: int
    seconds: float | None
    operations: int | None


class Walk(msgspec.Struct, tag=True, frozen=True):
    """Read all sagas once, page by page; the answer is a `Walked`."""


class Verify(msgspec.Struct, tag=True, frozen=True):
    """Check what is stored against what was written; the answer is `Ready`."""


class Ready(msgspec.Struct, frozen=True):
    """What was asked is done; the process has this much memory resident, in MB."""

    memory_mb: float


class Walked(msgspec.Struct, frozen=True):
    """A walk over all sagas.

    Args:
        sagas: How many.
        seconds: How long it took.
        before_mb: The memory resident before.
        peak_mb: The most during the walk.
    """

    sagas: int
    seconds: float
    before_mb: float
    peak_mb: float


Command = Measure | Walk | Verify


async def _prepare(job: Prepare) -> None:
    await backends.load(job.backend).prepare(Path(job.directory), job.rows)


async def _open(job: Serve) -> Orders:
    subject = backends.load(job.backend).subject(job.subject, job.variant, Path(job.directory), job.rows)
    await subject.open()
    return Orders(subject, job.rows, job.active)


async def _answer(orders: Orders, command: Command) -> Measured | Walked | Ready:
    if isinstance(command, Measure):
        return await _measure(orders, command)
    if isinstance(command, Walk):
        return await _walk(orders)
    await orders.verify()
    return Ready(memory_mb())


async def _measure(orders: Orders, command: Measure) -> Measured:
    steps = orders.steps(command.operation, command.callers)
    seconds = None if command.seconds is None else command.seconds * _WARM_UP
    operations = None if command.operations is None else int(command.operations * _WARM_UP) + 1
    await drive(steps, seconds=seconds, operations=operations)
    return await drive(steps, seconds=command.seconds, operations=command.operations)


async def _walk(orders: Orders) -> Walked:
    reset_peak_memory()
    before, started = memory_mb(), perf_counter()
    sagas = await orders.walk()
    return Walked(sagas, perf_counter() - started, before, peak_memory_mb())


def main() -> None:
    """Do the job in the first line of stdin, then every command that follows."""
    job = msgspec.json.decode(sys.stdin.readline(), type=Prepare | Serve)
    with asyncio.Runner() as runner:
        if isinstance(job, Prepare):
            runner.run(_prepare(job))
            return
        orders = runner.run(_open(job))
        _reply(Ready(memory_mb()))
        for line in sys.stdin:
            _reply(runner.run(_answer(orders, msgspec.json.decode(line, type=Command))))
        runner.run(orders.subject.close())


def _reply(answer: Measured | Walked | Ready) -> None:
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

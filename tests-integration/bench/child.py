"""A fresh process for one subject: it does what it is told on stdin, a JSON line each, and answers on stdout."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path
from time import perf_counter

import msgspec

from bench import backends
from bench.locked import Held, measure_held
from bench.measure import Measured, drive_warm, memory_mb, peak_memory_mb, reset_peak_memory
from bench.memory import resident
from bench.operations import Orders
from bench.subjects import Locking

__all__ = [
    "Command",
    "Cycles",
    "Hold",
    "Measure",
    "Prepare",
    "Ready",
    "Resident",
    "Serve",
    "Verify",
    "Walk",
    "Walked",
]


class Prepare(msgspec.Struct, tag=True, frozen=True):
    """Store the rows of a backend in a directory, and end."""

    backend: str
    directory: str
    rows: int


class Serve(msgspec.Struct, tag=True, frozen=True):
    """Open a subject; the answer is `Ready`, and then come commands."""

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


class Cycles(msgspec.Struct, tag=True, frozen=True):
    """Load, change and save sagas, and read the memory meanwhile; the answer is a `Resident`."""

    callers: int
    operations: int


class Hold(msgspec.Struct, tag=True, frozen=True):
    """Measure one round of cycles without and one with a row locked elsewhere; the answer is a `Held`."""

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


class Resident(msgspec.Struct, frozen=True):
    """The memory resident after each tenth of many cycles, in MB."""

    tenths_mb: list[float]


Command = Measure | Cycles | Hold | Walk | Verify
Answer = Measured | Resident | Held | Walked | Ready


async def _prepare(job: Prepare) -> None:
    await backends.load(job.backend).prepare(Path(job.directory), job.rows)


async def _open(job: Serve) -> Orders:
    subject = backends.load(job.backend).subject(job.subject, job.variant, Path(job.directory), job.rows)
    await subject.open()
    return Orders(subject, job.rows, job.active)


async def _answer(job: Serve, orders: Orders, command: Command) -> Answer:
    if isinstance(command, Measure):
        steps = orders.steps(command.operation, command.callers)
        return await drive_warm(steps, seconds=command.seconds, operations=command.operations)
    if isinstance(command, Cycles):
        return Resident(await resident(orders, command.callers, command.operations))
    if isinstance(command, Hold):
        return await _hold(job, orders, command)
    if isinstance(command, Walk):
        return await _walk(orders)
    await orders.verify()
    return Ready(memory_mb())


async def _hold(job: Serve, orders: Orders, command: Hold) -> Held:
    backend = backends.load(job.backend)
    if not isinstance(backend, Locking):
        raise TypeError(f"{job.backend} has no way to hold a row locked")
    hold = partial(backend.locked, Path(job.directory))
    return await measure_held(orders, hold, command.callers, seconds=command.seconds, operations=command.operations)


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
            _reply(runner.run(_answer(job, orders, msgspec.json.decode(line, type=Command))))
        runner.run(orders.subject.close())


def _reply(answer: Answer) -> None:
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

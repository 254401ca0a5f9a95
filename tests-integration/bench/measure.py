"""Timers, percentiles and the memory of this process."""

from __future__ import annotations

import asyncio
import gc
import resource
import sys
from array import array
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter, process_time

import msgspec

__all__ = [
    "Measured",
    "Step",
    "drive",
    "drive_warm",
    "memory_mb",
    "peak_memory_mb",
    "percentile",
    "repeat",
    "reset_peak_memory",
]

Step = Callable[[], Awaitable[None]]

_WARM_UP = 0.1  # of the time or the operations of a round
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class Measured(msgspec.Struct, frozen=True):
    """One round of one operation.

    Args:
        operations: How many were done.
        seconds: How long that took, on the wall.
        per_second: Throughput.
        cpu_us: The processor time of the whole process for one operation, in microseconds.
        p50_us: The median latency in microseconds.
        p99_us: The latency, in microseconds, that one in a hundred exceeds.
        peak_mb: The most memory that the process had resident, in MB (10**6 bytes).
    """

    operations: int
    seconds: float
    per_second: float
    cpu_us: float
    p50_us: float
    p99_us: float
    peak_mb: float


async def drive(steps: list[Step], *, seconds: float | None = None, operations: int | None = None) -> Measured:
    """Call each step again and again, all of them at the same time.

    Args:
        steps: One for each caller.
        seconds: How long.
        operations: How many operations in all instead (rounded up to the same number for each caller).
    """
    each = sys.maxsize if operations is None else -(-operations // len(steps))
    latencies = array("d")
    record = latencies.append
    gc.collect()
    reset_peak_memory()
    cpu, started = process_time(), perf_counter()
    deadline = started + (3600.0 if seconds is None else seconds)

    async def caller(step: Step) -> None:
        after = perf_counter()
        for _ in range(each):
            before = after
            await step()
            after = perf_counter()
            record(after - before)
            if after >= deadline:
                return

    if len(steps) == 1:  # without a task of its own, as a lone caller is
        await caller(steps[0])
    else:
        await asyncio.gather(*(caller(step) for step in steps))
    elapsed, cpu = perf_counter() - started, process_time() - cpu
    peak = peak_memory_mb()
    ordered = sorted(latencies)
    return Measured(
        len(ordered),
        elapsed,
        len(ordered) / elapsed,
        cpu / len(ordered) * 1e6,
        percentile(ordered, 0.50) * 1e6,
        percentile(ordered, 0.99) * 1e6,
        peak,
    )


async def drive_warm(steps: list[Step], *, seconds: float | None = None, operations: int | None = None) -> Measured:
    """`drive`, after a tenth of it that does not count.

    Args:
        steps: One for each caller.
        seconds: How long.
        operations: How many operations in all instead.
    """
    before = None if seconds is None else seconds * _WARM_UP
    count = None if operations is None else int(operations * _WARM_UP) + 1
    await drive(steps, seconds=before, operations=count)
    return await drive(steps, seconds=seconds, operations=operations)


async def repeat(steps: list[Step], operations: int) -> None:
    """Call each step again and again, all of them at the same time, and record nothing, so that nothing grows.

    Args:
        steps: One for each caller.
        operations: How many operations in all (rounded up to the same number for each caller).
    """
    each = -(-operations // len(steps))

    async def caller(step: Step) -> None:
        for _ in range(each):
            await step()

    await asyncio.gather(*(caller(step) for step in steps))


def percentile(ordered: list[float], share: float) -> float:
    """The value that a share of the values does not exceed (nearest rank).

    Args:
        ordered: At least one value, ascending.
        share: From 0 to 1.
    """
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


def reset_peak_memory() -> None:
    """Let the peak start again from the memory in use now, where the system can (Linux)."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")  # proc(5): resets the peak resident set size


def peak_memory_mb() -> float:
    """The peak resident set since `reset_peak_memory` (Linux), else since the process started, in MB."""
    if _STATUS.exists():
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def memory_mb() -> float:
    """The resident set now, in MB; where the system does not say, its peak."""
    return _status("VmRSS") if _STATUS.exists() else peak_memory_mb()


def _status(field: str) -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(f"{_STATUS} has no {field}")

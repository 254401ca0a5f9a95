"""What a figure depends on beside the code: the machine, the versions and the disk."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.measure import percentile
from bench.subjects import Backend

__all__ = ["describe", "fsync_latency"]

_WRITE = 4120  # bytes: a page of SQLite's write-ahead log with its header


def describe(chosen: list[Backend], directory: Path) -> dict[str, Any]:
    """The date, the machine and every version, as plain JSON values."""
    packages = {"saga-bus-store", "msgspec"}.union(*(backend.packages for backend in chosen))
    versions = {name: version(name) for name in sorted(packages)}
    for backend in chosen:
        versions |= backend.versions()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "directory": str(directory),
        "filesystem": _filesystem(directory),
        "versions": versions,
    }


def fsync_latency(directory: Path, times: int = 100) -> dict[str, float]:
    """How long an append of one page and its fsync take here, in microseconds."""
    path = directory / "fsync.bin"
    seconds = []
    with path.open("wb", buffering=0) as file:
        for _ in range(times):
            before = perf_counter()
            file.write(bytes(_WRITE))
            os.fsync(file.fileno())
            seconds.append(perf_counter() - before)
    path.unlink()
    return {"p50_us": statistics.median(seconds) * 1e6, "p99_us": percentile(sorted(seconds), 0.99) * 1e6}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _filesystem(directory: Path) -> str:
    try:
        answer = subprocess.run(["df", "-PT", directory], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.splitlines()[-1].split()[1]

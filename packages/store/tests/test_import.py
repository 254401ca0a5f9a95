"""What importing the core costs and needs."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest

resource = pytest.importorskip("resource")

DRIVERS = ("asyncpg", "aiomysql", "pyodbc", "pymongo", "boto3", "redis", "sqlite3", "prisma")
OTHERS = ("pytest", "hypothesis", "pydantic", "pydantic_core", "saga_bus.store.conformance", "importlib.metadata")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def seconds(code: str) -> float:
    # Processor time: an import from a warm cache waits for nothing, and other processes do not add to it.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    python(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def test_importing_the_core_imports_no_driver_and_no_test_tool() -> None:
    loaded = json.loads(python("import saga_bus.store, json, sys; print(json.dumps(sorted(sys.modules)))"))
    assert "saga_bus.store.base" in loaded
    assert [name for name in (*DRIVERS, *OTHERS) if name in loaded] == []


def test_importing_the_core_takes_less_than_120_ms() -> None:
    # As installed alone, with the declared dependency only: msgspec also takes typing_extensions where it is there.
    alone = "import sys; sys.modules['typing_extensions'] = None; "
    bare, core = [], []
    for _ in range(7):
        bare.append(seconds(alone))
        core.append(seconds(f"{alone}import saga_bus.store"))
        if min(core) - min(bare) < 0.120:
            break
    assert min(core) - min(bare) < 0.120


def test_msgspec_is_the_only_run_time_dependency() -> None:
    needed = [line for line in importlib.metadata.requires("saga-bus-store") or [] if "extra ==" not in line]
    assert [line.split(">")[0].strip() for line in needed] == ["msgspec"]

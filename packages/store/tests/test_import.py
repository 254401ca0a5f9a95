"""What importing the core costs and needs."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

DRIVERS = ("asyncpg", "aiomysql", "pyodbc", "pymongo", "boto3", "redis", "sqlite3", "prisma")
OTHERS = ("pytest", "hypothesis", "pydantic", "pydantic_core", "saga_bus.store.conformance", "importlib.metadata")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_the_core_imports_no_driver_and_no_test_tool() -> None:
    loaded = json.loads(python("import saga_bus.store, json, sys; print(json.dumps(sorted(sys.modules)))"))
    assert "saga_bus.store.base" in loaded
    assert [name for name in (*DRIVERS, *OTHERS) if name in loaded] == []


def test_importing_the_core_loads_msgspec_and_few_modules_of_python() -> None:
    """What an import costs is what it loads."""
    # As installed alone, with the declared dependency only: msgspec also takes typing_extensions where it is there.
    alone = (
        "import json, sys; sys.modules['typing_extensions'] = None; "
        "import asyncio, copy, dataclasses, hashlib, random, msgspec, msgspec.json; "
    )
    shown = "print(json.dumps([name.split('.')[0] for name in sys.modules if name not in {before!r}]))"
    before = set(json.loads(python(f"{alone}print(json.dumps(list(sys.modules)))")))
    loaded = set(json.loads(python(f"{alone}import saga_bus.store; {shown.format(before=before)}")))
    assert loaded == {"saga_bus"}


def test_msgspec_is_the_only_run_time_dependency() -> None:
    needed = [line for line in importlib.metadata.requires("saga-bus-store") or [] if "extra ==" not in line]
    assert [line.split(">")[0].strip() for line in needed] == ["msgspec"]

"""The kit from installed wheels: whole messages, with no async plugin and with any."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tools.lonely import uv

ROOT = Path(__file__).parents[1]

STRANGERS_TESTS = textwrap.dedent(
    """
    import msgspec
    from saga_bus.store.conformance import SagaStoreConformance
    from saga_bus.store_inmemory import InMemorySagaStore

    class Careless(InMemorySagaStore):
        async def _update(self, row, expected_version):
            stored = self._database.by_id.get((row.saga_name, row.saga_id))
            await super()._update(row, stored.row.version if stored else expected_version)

    class TestCareless(SagaStoreConformance):
        async def open_store(self, namespace):
            return Careless("memory://" + namespace)

    async def open_store(namespace):
        return InMemorySagaStore("memory://" + namespace)
    """
)
MODES = {
    "no plugin": ["-p", "no:asyncio", "-p", "no:anyio"],
    "pytest-asyncio, auto mode": [
        "-p",
        "no:anyio",
        "-o",
        "asyncio_mode=auto",
        "-o",
        "asyncio_default_fixture_loop_scope=function",
    ],
    "anyio": ["-p", "no:asyncio"],
}


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stranger's tests and an environment of installed wheels."""
    folder = tmp_path_factory.mktemp("stranger")
    for package in ("store", "store-inmemory"):
        run_uv(folder, "build", "--wheel", "--out-dir", str(folder), str(ROOT / "packages" / package))
    wheels = {path.name.split("-")[0]: path for path in folder.glob("*.whl")}
    run_uv(folder, "venv", "--no-project", "--python", sys.executable, "env")
    run_uv(
        folder,
        *("pip", "install", "--python", str(python(folder))),
        f"{wheels['saga_bus_store']}[conformance]",
        str(wheels["saga_bus_store_inmemory"]),
        *("pytest-asyncio", "anyio"),
    )
    (folder / "test_careless.py").write_text(STRANGERS_TESTS)
    return folder


def run_uv(folder: Path, *arguments: str) -> None:
    done = uv(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr


def python(folder: Path) -> Path:
    return folder / "env" / "bin" / "python"


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python(folder), *arguments], cwd=folder, env={}, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("mode", MODES)
def test_messages_are_whole_under_every_plugin(stranger: Path, mode: str) -> None:
    done = run_python(stranger, "-m", "pytest", "-q", "-W", "error", "-k", "update or insert", *MODES[mode])
    assert done.returncode == 1, done.stdout + done.stderr
    assert (
        "AssertionError: an update from version 0 of 1: expected ConcurrencyError, but nothing was raised"
        in done.stdout
    )
    assert "FAILED test_careless.py::TestCareless::test_update_refuses_a_stale_version" in done.stdout
    assert "async def functions are not natively supported" not in done.stdout


def test_the_command_judges_a_good_store_from_wheels(stranger: Path) -> None:
    command = ("-m", "saga_bus.store.conformance", "test_careless:open_store", "--only", "insert", "--only", "update")
    done = run_python(stranger, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "saga-bus conformance suite 1" in done.stdout

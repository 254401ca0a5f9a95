"""The packages' own tests on built wheels in a fresh environment: ``python -m tools.leg wheels`` or ``lowest``."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.build import build
from tools.lonely import uv
from tools.workspace import ROOT, packages

__all__ = ["is_lowest", "main", "third_party_requirements"]

_WHERE = "import saga_bus.store, sys; print(saga_bus.store.__file__, file=sys.stderr)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, install and test.

    Args:
        arguments: The command line; the program's own when left out.

    Returns:
        pytest's exit code, or 1 when something could not be installed.
    """
    parser = argparse.ArgumentParser(prog="hatch run leg", description="Test the built wheels, not the work tree.")
    parser.add_argument("leg", choices=("wheels", "lowest"), help="the newest or the lowest declared dependencies")
    parser.add_argument("--python", default=sys.executable, help="the interpreter (this one)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="saga-bus-leg-") as scratch:
        return _run(Path(scratch), options.leg, options.python)


def _run(folder: Path, leg: str, interpreter: str) -> int:
    python = folder / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wheels = [_with_extras(build(package, folder)[0], package.project()) for package in packages()]
    # Given on the command line they are direct, and only direct ones are resolved to their lowest version.
    direct = third_party_requirements()
    resolution = "lowest-direct" if leg == "lowest" else "highest"
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{_lowest(need)}\n" for need in direct if leg == "lowest"), encoding="utf-8")
    group = ("--group", f"{ROOT / 'pyproject.toml'}:test")
    for step in (
        ("venv", "--no-project", "--python", interpreter, str(folder / "env")),
        ("pip", "install", "--python", str(python), "--resolution", resolution, *direct, *wheels),
        # What is installed already stays at its version, though a newer one of the tests' tools would ask for more.
        ("pip", "install", "--python", str(python), *group, "--constraint", str(constraints)),
        ("pip", "freeze", "--python", str(python)),
    ):
        done = uv(*step, cwd=folder)
        print(done.stdout, end="", flush=True)
        if done.returncode != 0:
            print(done.stderr, file=sys.stderr)
            return 1
    if leg == "lowest" and (higher := [need for need in direct if not is_lowest(need, done.stdout)]):
        print(f"not at their lowest version: {', '.join(higher)}", file=sys.stderr)
        return 1
    tests = [str(package.folder / "tests") for package in packages()]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = subprocess.run([python, "-c", _WHERE], cwd=ROOT, env=clean, check=True, capture_output=True, text=True)
    if not Path(where.stderr.strip()).is_relative_to(folder):
        print(f"saga_bus.store comes from {where.stderr.strip()}, not from its wheel", file=sys.stderr)
        return 1
    return subprocess.run([python, "-m", "pytest", *tests], cwd=ROOT, env=clean, check=False).returncode


def third_party_requirements() -> list[str]:
    """What the packages declare, their extras included, but for one another."""
    projects = [package.project() for package in packages()]
    needs = {need for project in projects for need in project.get("dependencies", [])}
    needs |= {
        need for project in projects for extra in project.get("optional-dependencies", {}).values() for need in extra
    }
    return sorted(need for need in needs if not need.startswith("saga-bus-"))


def is_lowest(requirement: str, frozen: str) -> bool:
    """Whether the lowest version that fits a requirement is the one that is installed.

    Args:
        requirement: ``name>=version``, with or without an upper bound.
        frozen: What ``pip freeze`` says.
    """
    return re.search(rf"^{re.escape(_lowest(requirement))}(\.0)*$", frozen, re.MULTILINE) is not None


def _lowest(requirement: str) -> str:
    """``name==version`` of ``name[extra]>=version,<bound``."""
    name, _, bounds = requirement.partition(">=")
    return f"{name.partition('[')[0]}=={bounds.partition(',')[0]}"


def _with_extras(wheel: Path, project: dict[str, dict[str, object]]) -> str:
    extras = ",".join(sorted(project.get("optional-dependencies", {})))
    return f"{wheel}[{extras}]" if extras else str(wheel)


if __name__ == "__main__":
    sys.exit(main())

"""A wheel on its own: installed into an empty environment outside the workspace, every module imported."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tools.archives import extras_of, modules_of, siblings_of

__all__ = ["check_alone", "uv"]

_IMPORT_ALL = """
import importlib, sys, traceback
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        print(name, "".join(traceback.format_exception_only(error)).strip().replace("\\n", " "))
"""


def uv(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run uv without any trace of the environment that this program runs in.

    Args:
        *arguments: Its command line.
        cwd: The folder to run it in.
    """
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [sys.executable, "-m", "uv", *arguments], cwd=cwd, env=clean, check=False, capture_output=True, text=True
    )


def check_alone(wheel: Path, wheels: Mapping[str, Path], *, extra: str | None = None) -> list[str]:
    """Install one wheel with just what it declares and import its modules, warnings being errors.

    Args:
        wheel: The file.
        wheels: Every wheel of this repository by its distribution's name; those that it needs come from here.
        extra: Install this extra too, and import the modules that have its name, such as ``nats``, ``_nats`` and
            ``_nats_pull``, or are below a directory of it; without it those are left out.

    Returns:
        One sentence for each problem.
    """
    label = wheel.name if extra is None else f"{wheel.name}[{extra}]"
    needed = [f"{wheel}[{extra}]" if extra else str(wheel)]
    waiting = siblings_of(wheel)
    while waiting:
        sibling = wheels.get(waiting.pop())
        if sibling is None:
            return [f"{label}: needs a distribution that this repository does not build"]
        if str(sibling) not in needed:
            needed.append(str(sibling))
            waiting += siblings_of(sibling)
    with tempfile.TemporaryDirectory(prefix="saga-bus-alone-") as scratch:
        folder = Path(scratch)
        python = folder / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        for arguments in (
            ("venv", "--no-project", "--python", sys.executable, str(folder / "env")),
            ("pip", "install", "--python", str(python), *needed),
            ("pip", "check", "--python", str(python)),
        ):
            done = uv(*arguments, cwd=folder)
            if done.returncode != 0:
                return [f"{label}: uv {' '.join(arguments[:2])} failed: {done.stderr.strip()}"]
        modules = _importable(wheel, extra)
        return [f"{label}: importing {problem}" for problem in _import_problems(python, modules, folder)]


def _importable(wheel: Path, extra: str | None) -> list[str]:
    modules = modules_of(wheel)
    if extra is None:
        extras = extras_of(wheel)
        return [module for module in modules if not any(_needs(module, each) for each in extras)]
    return [module for module in modules if _needs(module, extra)]


def _needs(module: str, extra: str) -> bool:
    parts = [part.removeprefix("_") for part in module.split(".")]
    return any(part == extra or part.startswith(f"{extra}_") for part in parts)


def _import_problems(python: Path, modules: list[str], folder: Path) -> list[str]:
    done = subprocess.run(
        [str(python), "-I", "-W", "error", "-c", _IMPORT_ALL, *modules],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
    )
    problems = [line.replace(" ", " alone failed: ", 1) for line in done.stdout.splitlines()]
    return problems if done.returncode == 0 else [*problems, f"all modules alone failed: {done.stderr.strip()}"]

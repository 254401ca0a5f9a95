"""What every wheel and every sdist must hold, and what none may."""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Iterable
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath

from tools.workspace import Package

__all__ = ["check_sdist", "check_together", "check_wheel", "extras_of", "modules_of", "siblings_of"]

_SDIST_FILES = ("LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "PKG-INFO")


def _files(wheel: Path) -> list[PurePosixPath]:
    with zipfile.ZipFile(wheel) as archive:
        return [PurePosixPath(name) for name in archive.namelist() if not name.endswith("/")]


def check_wheel(wheel: Path, package: Package) -> list[str]:
    """Check one wheel.

    Args:
        wheel: The file.
        package: The package that it was built from.

    Returns:
        One sentence for each problem.
    """
    files = _files(wheel)
    metadata = f"{package.distribution.replace('-', '_')}-{package.project()['version']}.dist-info"
    home = PurePosixPath("saga_bus", package.directory)
    problems = []
    if PurePosixPath("saga_bus/__init__.py") in files:
        problems.append("saga_bus/__init__.py: saga_bus is a namespace that no wheel may own")
    owned = sorted({path.parts[1] for path in files if path.parts[0] == "saga_bus" and len(path.parts) > 2})
    if owned != [package.directory]:
        problems.append(f"it owns {owned or 'nothing'} below saga_bus/, not {package.directory!r} alone")
    strays = sorted({path.parts[0] for path in files} - {"saga_bus", metadata})
    strays += sorted(str(path) for path in files if path.parts[0] == "saga_bus" and len(path.parts) == 2)
    problems += [
        f"{stray}: neither the package nor its metadata" for stray in strays if stray != "saga_bus/__init__.py"
    ]
    problems += [
        f"{path}: missing"
        for path in (home / "__init__.py", home / "py.typed", PurePosixPath(metadata, "licenses", "LICENSE"))
        if path not in files
    ]
    return [f"{wheel.name}: {problem}" for problem in problems]


def check_sdist(sdist: Path, package: Package) -> list[str]:
    """Check one source distribution.

    Args:
        sdist: The file.
        package: The package that it was built from.

    Returns:
        One sentence for each problem.
    """
    with tarfile.open(sdist) as archive:
        files = {PurePosixPath(*PurePosixPath(member.name).parts[1:]) for member in archive if member.isfile()}
    missing = [name for name in _SDIST_FILES if PurePosixPath(name) not in files]
    missing += [str(module) for module in _sources(package) if module not in files]
    if not any(path.parts[0] == "tests" for path in files):
        missing.append("tests/")
    return [f"{sdist.name}: {name}: missing" for name in missing]


def _sources(package: Package) -> list[PurePosixPath]:
    return sorted(PurePosixPath(path.relative_to(package.folder)) for path in package.source.rglob("*.py"))


def check_together(wheels: Iterable[Path]) -> list[str]:
    """Check that no file belongs to two wheels: uninstalling one would break the other.

    Args:
        wheels: The files.

    Returns:
        One sentence for each problem.
    """
    owners: dict[PurePosixPath, str] = {}
    problems = []
    for wheel in wheels:
        for path in _files(wheel):
            first = owners.setdefault(path, wheel.name)
            if first != wheel.name:
                problems.append(f"{wheel.name}: {path} belongs to {first} too")
    return problems


def modules_of(wheel: Path) -> list[str]:
    """The modules of a wheel that can be imported, except those that are programs.

    Args:
        wheel: The file.
    """
    modules = []
    for path in _files(wheel):
        if path.suffix == ".py" and path.parts[0] == "saga_bus" and path.name != "__main__.py":
            parts = path.parent.parts if path.name == "__init__.py" else (*path.parent.parts, path.stem)
            modules.append(".".join(parts))
    return sorted(modules)


def siblings_of(wheel: Path) -> list[str]:
    """The distributions of this repository that a wheel needs, without its extras.

    Args:
        wheel: The file.
    """
    needs = [need.partition(";") for need in _metadata(wheel).get_all("Requires-Dist", [])]
    names = [re.split(r"[^\w.-]", need.strip())[0] for need, _, marker in needs if "extra" not in marker]
    return [name for name in names if name.startswith("saga-bus-")]


def extras_of(wheel: Path) -> set[str]:
    """The extras that a wheel offers.

    Args:
        wheel: The file.
    """
    return set(_metadata(wheel).get_all("Provides-Extra", []))


def _metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())

"""Build every wheel and sdist, then refuse what must not be published: ``python -m tools.build``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.archives import check_sdist, check_together, check_wheel
from tools.lonely import check_alone, uv
from tools.workspace import ROOT, Package, packages

__all__ = ["build", "check", "main"]


def build(package: Package, target: Path) -> tuple[Path, Path]:
    """Build the sdist of a package, and its wheel from that sdist.

    Args:
        package: The package.
        target: The folder for both.

    Returns:
        The wheel and the sdist.

    Raises:
        RuntimeError: The build failed.
    """
    done = uv("build", "--no-sources", "--out-dir", str(target), str(package.folder), cwd=target)
    if done.returncode != 0:
        raise RuntimeError(f"{package.distribution} does not build:\n{done.stderr}")
    stem = f"{package.distribution.replace('-', '_')}-{package.project()['version']}"
    return target / f"{stem}-py3-none-any.whl", target / f"{stem}.tar.gz"


def check(target: Path) -> list[str]:
    """Build every package into a folder and check what came out.

    Args:
        target: The folder.

    Returns:
        One sentence for each problem.
    """
    problems: list[str] = []
    wheels: dict[str, Path] = {}
    for package in packages():
        wheel, sdist = build(package, target)
        wheels[package.distribution] = wheel
        print(f"built {wheel.name} and {sdist.name}", flush=True)
        problems += check_wheel(wheel, package) + check_sdist(sdist, package)
    problems += check_together(wheels.values())
    for package in packages():
        wheel = wheels[package.distribution]
        for extra in (None, *package.project().get("optional-dependencies", {})):
            problems += check_alone(wheel, wheels, extra=extra)
            print(f"installed {wheel.name}{f'[{extra}]' if extra else ''} alone", flush=True)
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Build and check.

    Args:
        arguments: The command line; the program's own when left out.

    Returns:
        0 when everything may be published, else 1.
    """
    parser = argparse.ArgumentParser(prog="hatch run build", description="Build every wheel and sdist and check them.")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "dist", help="the folder for them (dist); older ones in it are removed"
    )
    target: Path = parser.parse_args(arguments).out.resolve()
    for old in (*target.glob("saga_bus_*.whl"), *target.glob("saga_bus_*.tar.gz")):
        old.unlink()
    target.mkdir(parents=True, exist_ok=True)
    try:
        problems = check(target)
    except RuntimeError as error:
        problems = [str(error)]
    for problem in problems:
        print(f"REFUSED {problem}", file=sys.stderr)
    if not problems:
        print(f"all in {target}: each owns one directory, is typed and licensed, and installs and imports alone")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

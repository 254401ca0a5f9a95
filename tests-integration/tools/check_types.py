"""mypy --strict and pyright, each over all packages in one run: ``python -m tools.check_types``."""

from __future__ import annotations

import subprocess
import sys

from tools.workspace import ROOT, packages

__all__ = ["main", "targets"]


def targets() -> list[str]:
    """The sources of all packages, and the test files that only type checkers read."""
    found = [package.source for package in packages()]
    found += sorted((ROOT / "packages").glob("*/tests/typing_*.py"))
    return [str(path.relative_to(ROOT)) for path in found]


def main() -> int:
    """Run both, also when the first one fails.

    Returns:
        0 when both are content, else 1.
    """
    content = True
    for checker, options in (("mypy", []), ("pyright", ["--pythonpath", sys.executable])):
        print(f"{checker} {' '.join(targets())}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", checker, *options, *targets()],
            cwd=ROOT,
            check=False,
            stdout=subprocess.PIPE,
            text=True,
        )
        print(done.stdout, end="", flush=True)
        # pyright is content with nothing, so a path that it cannot read would go unnoticed.
        content &= done.returncode == 0 and "No source files found" not in done.stdout
    return 0 if content else 1


if __name__ == "__main__":
    sys.exit(main())

"""The packages of this repository and the one rule for their names."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "Package", "packages"]

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Package:
    """One folder below ``packages/``.

    Args:
        folder: The folder; its name is the distribution's without ``saga-bus-``.
    """

    folder: Path

    @property
    def distribution(self) -> str:
        """The name to install."""
        return f"saga-bus-{self.folder.name}"

    @property
    def directory(self) -> str:
        """The only directory below ``saga_bus/`` that its wheel may own."""
        return self.folder.name.replace("-", "_")

    @property
    def source(self) -> Path:
        """The root of its modules."""
        return self.folder / "src"

    def project(self) -> dict[str, Any]:
        """The ``[project]`` table of its pyproject.toml."""
        table: dict[str, Any] = tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return table


def packages() -> list[Package]:
    """Every package, sorted by its folder's name."""
    return [Package(path.parent) for path in sorted((ROOT / "packages").glob("*/pyproject.toml"))]

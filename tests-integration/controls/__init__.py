"""Deliberately broken stores, which prove that the conformance kit finds what it says it finds.

Each differs from a sound store in one fault, and must be failed by the cases that name the fault.
"""

from importlib import import_module

from controls.control import Control, hooks_of
from controls.registry import REGISTRY

__all__ = ["CONTROLS", "THEMES", "Control", "hooks_of"]

THEMES = (
    "inserting",
    "reading",
    "updating",
    "deleting",
    "erring",
    "valuing",
    "identifying",
    "searching",
    "retaining",
    "lagging",
    "housing",
    "living",
    "racing",
)
"""The modules of broken stores, by theme."""

for _theme in THEMES:
    import_module(f"controls.{_theme}")

CONTROLS: tuple[Control, ...] = tuple(REGISTRY.controls)
"""Every control."""

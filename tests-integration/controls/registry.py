"""The one registry that the modules of controls share."""

from controls.control import Registry

__all__ = ["REGISTRY", "fails"]

REGISTRY = Registry()
fails = REGISTRY.fails

"""What a negative control is: a store with one fault, and the cases that must find it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from controls.places import MemoryPlaces, SqlitePlaces
from controls.sound import SOUND
from saga_bus.store.conformance.kit import Hooks
from saga_bus.store_sqlite import SqliteSagaStore

__all__ = ["SECRET", "Control", "Registry", "hooks_of"]

StoreT = TypeVar("StoreT", bound=type)

SECRET = "correct-horse-battery"
"""The password of every control's database."""


@dataclass(frozen=True)
class Control:
    """A broken store and the cases that must fail it.

    Args:
        fault: What is wrong with the store, in a few words.
        store: The store; it differs from its sound base in this fault alone.
        cases: The names of the cases that must fail.
        says: What the failure message of the first of them must contain, so that the store is failed for its
            fault and for nothing else.
    """

    fault: str
    store: type[Any]
    cases: tuple[str, ...]
    says: str

    @property
    def base(self) -> type[Any]:
        """The sound store that the broken one differs from."""
        return next(ancestor for ancestor in self.store.__mro__ if ancestor in SOUND)


class Registry:
    """The controls, in the order in which they are defined."""

    def __init__(self) -> None:
        self.controls: list[Control] = []

    def fails(self, *cases: str, says: str) -> Callable[[StoreT], StoreT]:
        """Make a control of a broken store, whose docstring is its fault.

        Args:
            *cases: The names of the cases that must fail.
            says: What the failure message of the first of them must contain.
        """

        def register(store: StoreT) -> StoreT:
            fault = " ".join((store.__doc__ or "").split()).rstrip(".")
            self.controls.append(Control(fault, store, cases, says))
            return store

        return register


def hooks_of(store: type[Any], directory: Path) -> Hooks:
    """What the kit needs to judge a store.

    Args:
        store: A class of in-memory or SQLite stores.
        directory: Where the files of SQLite stores are kept.
    """
    if issubclass(store, SqliteSagaStore):
        places = SqlitePlaces(store, directory)
        return Hooks(open_store=places.open_store, open_transaction=places.open_transaction, secrets=(SECRET,))
    return Hooks(open_store=MemoryPlaces(store).open_store, secrets=(SECRET,))

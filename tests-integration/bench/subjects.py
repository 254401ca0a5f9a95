"""What the harness needs of everything that it measures, and of the module that joins a store to it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from bench.workload import SAGA_NAME, OrderState
from saga_bus.store import BaseSagaStore, SagaFilter

__all__ = ["Backend", "Locking", "StoreSubject", "Subject", "Target"]


class Subject(Protocol):
    """A store, or a raw driver used as its users use it, with orders of `bench.workload` in it."""

    async def open(self) -> None:
        """Connect to the data that `Backend.prepare` made."""

    async def close(self) -> None:
        """Close what was opened."""

    async def insert(self, correlation_id: str, state: OrderState) -> None:
        """Write a new order; an existing one is an error."""

    async def get_by_id(self, saga_id: str) -> OrderState | None:
        """Read an order by its id."""

    async def get_by_correlation_id(self, correlation_id: str) -> OrderState | None:
        """Read an order by its correlation id."""

    async def update(self, state: OrderState, expected_version: int) -> None:
        """Write the next version of an order; another stored version is an error."""

    async def find(self, cursor: Any, limit: int) -> tuple[Sequence[OrderState], Any]:
        """One page, newest created first, and the cursor of the next one (None after the last)."""

    async def totals(self) -> tuple[int, int]:
        """How many orders there are and the sum of their versions, not read the way that is measured."""


@dataclass(frozen=True)
class Target:
    """A figure to reach.

    Args:
        kind: "ratio" of the throughput to a peer's, "throughput" per second, "growth" (throughput at the most
            rows over that at the fewest), "walk" (MB that memory grows during a whole walk), or "locked" (the p99 of
            the latency with another saga's row locked elsewhere, over that without).
        bound: The least value to reach, or the most for "walk" and "locked".
        operation: The operation's name.
        variant: The variant of the store.
        callers: How many concurrent callers.
        peer: The peer's name, for "ratio".
        rows: The stored sagas that the figure needs: exactly for "walk", at least for "growth".
    """

    kind: Literal["ratio", "throughput", "growth", "walk", "locked"]
    bound: float
    operation: str
    variant: str
    callers: int = 1
    peer: str = ""
    rows: int = 0


class Backend(Protocol):
    """A store and its peers; a module of `bench.backends` has one, named ``BACKEND``.

    Attributes:
        name: The store's name on the command line.
        variants: Settings that are measured apart, such as durabilities; at least one.
        peers: The names of the peers, the raw driver first.
        packages: Distributions whose versions belong into the report.
        targets: The figures to reach.
    """

    name: str
    variants: tuple[str, ...]
    peers: tuple[str, ...]
    packages: tuple[str, ...]
    targets: tuple[Target, ...]

    def versions(self) -> dict[str, str]:
        """Further versions for the report, such as the database's."""

    async def prepare(self, directory: Path, rows: int) -> None:
        """Store the orders 0 to ``rows`` - 1; each subject gets its own copy of the directory."""

    def subject(self, name: str, variant: str, directory: Path, rows: int) -> Subject:
        """Make a subject: the store itself for ``name == "store"``, else a peer."""


@runtime_checkable
class Locking(Protocol):
    """A backend that can also hold a row locked, as another program would."""

    def locked(self, directory: Path, saga_id: str) -> AbstractAsyncContextManager[None]:
        """Hold an order's row locked, in a transaction on a connection of its own that changes nothing.

        Args:
            directory: That of the subject whose copy of the data it is.
            saga_id: The order's id.
        """


class StoreSubject:
    """Any of the project's stores as a subject; a backend adds ``totals``."""

    def __init__(self, store: BaseSagaStore[OrderState]) -> None:
        self.store = store
        store.register(SAGA_NAME, OrderState)

    async def open(self) -> None:
        await self.store.__aenter__()

    async def close(self) -> None:
        await self.store.close()

    async def insert(self, correlation_id: str, state: OrderState) -> None:
        await self.store.insert(SAGA_NAME, correlation_id, state)

    async def get_by_id(self, saga_id: str) -> OrderState | None:
        return await self.store.get_by_id(SAGA_NAME, saga_id)

    async def get_by_correlation_id(self, correlation_id: str) -> OrderState | None:
        return await self.store.get_by_correlation_id(SAGA_NAME, correlation_id)

    async def update(self, state: OrderState, expected_version: int) -> None:
        await self.store.update(SAGA_NAME, state, expected_version)

    async def find(self, cursor: Any, limit: int) -> tuple[Sequence[OrderState], Any]:
        page = await self.store.find(SagaFilter(saga_name=SAGA_NAME), limit=limit, cursor=cursor)
        return [record.state for record in page.items], page.cursor

"""The contract: the five operations that a bus needs, and the optional abilities, each declared, never inferred."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

from saga_bus.store.query import Page, SagaFilter

__all__ = [
    "DeletesConditionally",
    "FindsSagas",
    "JoinsTransactions",
    "ManagesSchema",
    "Ping",
    "Pings",
    "PurgesSagas",
    "SagaStore",
    "StoreCapabilities",
    "capabilities_of",
]

StateT = TypeVar("StateT")
StateT_co = TypeVar("StateT_co", covariant=True)


@dataclass(frozen=True, kw_only=True)
class StoreCapabilities:
    """What a store declares that it can do beyond the five operations.

    A declared ability that does not hold is a defect, and the conformance kit fails it.

    Args:
        conditional_delete: ``delete`` takes ``expected_version``.
        query: ``find`` and ``count``.
        retention: ``delete_completed_before``.
        schema: ``create_schema``, ``check_schema`` and ``drop_schema``.
        transactions: ``bind``.
        ping: ``ping``.
        completed_ttl: How long after its last update a completed saga expires by itself, None for never.
        processes: Several processes can work on the same data.
        max_state_bytes: The largest encoded state in bytes, None when there is no limit worth knowing.
        index_lag: How long after a write ``find``, ``count`` and ``delete_completed_before`` may still miss it, or
            see what was there before; zero for never. Reads by key are never late.
    """

    conditional_delete: bool = False
    query: bool = False
    retention: bool = False
    schema: bool = False
    transactions: bool = False
    ping: bool = False
    completed_ttl: timedelta | None = None
    processes: bool = False
    max_state_bytes: int | None = None
    index_lag: timedelta = timedelta(0)


def capabilities_of(store: object) -> StoreCapabilities:
    """What a store declares; a store that declares nothing has the five operations alone.

    Args:
        store: Any store.

    Raises:
        TypeError: ``store.capabilities`` is something else.
    """
    declared = getattr(store, "capabilities", StoreCapabilities())
    if not isinstance(declared, StoreCapabilities):
        raise TypeError(f"{type(store).__qualname__}.capabilities must be StoreCapabilities, not {declared!r}")
    return declared


@runtime_checkable
class SagaStore(Protocol[StateT]):
    """The five operations: all that a bus or a custom store needs.

    A saga is known by its name and its id, and by its name and its correlation id; both are unique and
    compare exactly. Every error is one of `saga_bus.store.errors`; a failed write changes nothing.
    """

    async def get_by_id(self, saga_name: str, saga_id: str) -> StateT | None:
        """Load a saga by its id.

        Args:
            saga_name: 1 to 128 characters.
            saga_id: 1 to 128 characters.

        Returns:
            A new object, or None when there is no such saga.
        """
        ...

    async def get_by_correlation_id(self, saga_name: str, correlation_id: str) -> StateT | None:
        """Load a saga by its correlation id.

        Args:
            saga_name: 1 to 128 characters.
            correlation_id: 1 to 256 characters.

        Returns:
            A new object, or None when there is no such saga.
        """
        ...

    async def insert(self, saga_name: str, correlation_id: str, state: StateT) -> None:
        """Save a new saga; never overwrites one.

        Args:
            saga_name: 1 to 128 characters.
            correlation_id: 1 to 256 characters.
            state: The state, with its id in ``state.metadata.saga_id``.

        Raises:
            DuplicateSagaError: The id or the correlation id is taken.
        """
        ...

    async def update(self, saga_name: str, state: StateT, expected_version: int) -> None:
        """Save the next version of a saga if nobody else did (compare-and-swap).

        Args:
            saga_name: 1 to 128 characters.
            state: The new state; ``state.metadata.version`` must be ``expected_version + 1``.
            expected_version: The version that the state was made from.

        Raises:
            ConcurrencyError: The store holds another version.
            SagaNotFoundError: There is no such saga (any more).
            InvalidSagaError: The version was not raised by exactly one.
        """
        ...

    async def delete(self, saga_name: str, saga_id: str) -> None:
        """Delete a saga and its correlation id; one that is not there is no error.

        Args:
            saga_name: 1 to 128 characters.
            saga_id: 1 to 128 characters.
        """
        ...


@runtime_checkable
class DeletesConditionally(Protocol):
    """The ability ``conditional_delete``."""

    async def delete(self, saga_name: str, saga_id: str, expected_version: int | None = None) -> None:
        """Delete a saga, only at a version if one is given.

        Args:
            saga_name: 1 to 128 characters.
            saga_id: 1 to 128 characters.
            expected_version: The version to delete; None deletes any, and an absent saga is then no error.

        Raises:
            ConcurrencyError: The store holds another version.
            SagaNotFoundError: A version was expected and there is no such saga (any more).
        """
        ...


@runtime_checkable
class FindsSagas(Protocol[StateT_co]):
    """The ability ``query``.

    A store with an ``index_lag`` may answer as it would have before its latest writes; a record matches the filter
    all the same, and a page has no saga twice.
    """

    async def find(self, saga_filter: SagaFilter, *, limit: int = 100, cursor: str | None = None) -> Page[StateT_co]:
        """Find sagas, a page at a time, in the filter's total order.

        Args:
            saga_filter: Which sagas, and in which order.
            limit: The most records of the page; 0 gives an empty one.
            cursor: The cursor of the page before, None for the first page.

        Raises:
            InvalidSagaError: A bad filter or limit, or a cursor that was changed or is of another filter.
        """
        ...

    async def count(self, saga_filter: SagaFilter) -> int:
        """Count sagas.

        Args:
            saga_filter: Which sagas.

        Raises:
            InvalidSagaError: A bad filter.
        """
        ...


@runtime_checkable
class PurgesSagas(Protocol):
    """The ability ``retention``.

    A store with an ``index_lag`` may leave what was completed just now for the next time; what it deletes is old and
    completed at that moment all the same.
    """

    async def delete_completed_before(
        self, saga_name: str, before: datetime, *, batch_size: int = 1000, dry_run: bool = False
    ) -> int:
        """Delete the completed sagas whose last update is strictly older, never one that was reopened meanwhile.

        Args:
            saga_name: 1 to 128 characters.
            before: The moment (aware).
            batch_size: The most sagas that are deleted in one step, so that no step holds locks for long.
            dry_run: Only count them.

        Returns:
            How many were deleted, or would be.
        """
        ...


@runtime_checkable
class ManagesSchema(Protocol):
    """The ability ``schema``."""

    async def create_schema(self) -> None:
        """Create what is missing; safe to call again, and from many processes at once."""
        ...

    async def check_schema(self) -> None:
        """Check that the schema is there and of this package's version.

        Raises:
            SchemaError: It is missing, older or newer; the message says what to run.
        """
        ...

    async def drop_schema(self) -> None:
        """Drop what ``create_schema`` made, sagas included; dropping what is not there is no error."""
        ...


@runtime_checkable
class JoinsTransactions(Protocol):
    """The ability ``transactions``."""

    def bind(self, connection: Any) -> Self:
        """The same store inside the caller's open transaction, which it never commits or rolls back.

        Args:
            connection: The driver's connection or session with the open transaction.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Ping:
    """The answer to ``ping``.

    Args:
        seconds: The time of one round trip.
        warnings: Settings of the server or the client that put saga state at risk.
    """

    seconds: float
    warnings: tuple[str, ...] = ()


@runtime_checkable
class Pings(Protocol):
    """The ability ``ping``."""

    async def ping(self) -> Ping:
        """Make one round trip to the database.

        Raises:
            StoreUnavailableError: There was no answer.
        """
        ...

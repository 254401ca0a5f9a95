"""What a backend author builds on: every rule that all stores share, above a few primitives on flat rows."""

from __future__ import annotations

import asyncio
import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, Self, TypeVar

from saga_bus.store import checks
from saga_bus.store.codec import JsonStateCodec, StateCodec, TypedStateCodec
from saga_bus.store.errors import (
    InvalidSagaError,
    StateEncodeError,
    StateTooLargeError,
    UnsupportedOperationError,
)
from saga_bus.store.lifecycle import OpensOnce
from saga_bus.store.protocol import Ping, StoreCapabilities
from saga_bus.store.query import (
    CursorPosition,
    Page,
    SagaFilter,
    SagaRecord,
    decode_cursor,
    encode_cursor,
    order_of,
)
from saga_bus.store.repository import SagaRepository
from saga_bus.store.rows import FoundRow, SagaQuery, SagaRow
from saga_bus.store.state import UntypedSagaState

__all__ = ["BaseSagaStore"]

StateT = TypeVar("StateT")
RepositoryStateT = TypeVar("RepositoryStateT")

_MOST_ROWS = 2**31 - 2  # with the row that tells of a next page, what the drivers take as a 32-bit limit


class BaseSagaStore(OpensOnce, ABC, Generic[StateT]):
    """The public operations of a store, with every check; a backend adds the primitives.

    A backend sets ``capabilities`` and implements ``_insert``, ``_update``, ``_get_by_id``,
    ``_get_by_correlation_id`` and ``_delete``, and the primitives of the abilities that it declares. A
    primitive gets checked arguments, raises errors of `saga_bus.store.errors` only, and is one round trip.

    Args:
        state_types: The state type of each saga name.
        codec: Replaces the JSON codec; with it, state types are given to the codec.
    """

    capabilities: StoreCapabilities = StoreCapabilities()

    def __init__(self, *, state_types: Mapping[str, type] | None = None, codec: StateCodec | None = None) -> None:
        super().__init__()
        self._codec = JsonStateCodec() if codec is None else codec
        for saga_name, state_type in (state_types or {}).items():
            self.register(saga_name, state_type)

    # -- types -------------------------------------------------------------------------------------------

    def register(self, saga_name: str, state_type: type) -> None:
        """Tell the store the type of a saga's states; telling it again does nothing.

        Args:
            saga_name: 1 to 128 characters.
            state_type: The type that ``get_*`` and ``find`` shall return.

        Raises:
            InvalidSagaError: The name is bad or has another type already.
            UnsupportedOperationError: The codec given to the store takes no types.
        """
        checks.check_saga_name(saga_name)
        if not isinstance(self._codec, TypedStateCodec):
            raise UnsupportedOperationError(
                f"{type(self._codec).__qualname__} takes no state types: it has no register()"
            )
        self._codec.register(saga_name, state_type)

    def repository(self, saga_name: str, state_type: type[RepositoryStateT]) -> SagaRepository[RepositoryStateT]:
        """A statically typed view of one saga's states, without the name argument.

        Args:
            saga_name: 1 to 128 characters.
            state_type: The type of its states; it is registered, where the codec takes types.
        """
        if isinstance(self._codec, TypedStateCodec):  # else it knows its types by itself
            self.register(saga_name, state_type)
        return SagaRepository(self, saga_name)

    # -- the five operations -----------------------------------------------------------------------------

    async def get_by_id(self, saga_name: str, saga_id: str) -> StateT | None:
        """Load a saga by its id.

        Args:
            saga_name: 1 to 128 characters.
            saga_id: 1 to 128 characters.

        Returns:
            A new object, or None when there is no such saga.

        Raises:
            StateDecodeError: The stored document does not fit the saga's state type.
        """
        checks.check_saga_name(saga_name)
        checks.check_saga_id(saga_id)
        if not self._is_open:
            await self._ensure_open()
        document = await self._get_by_id(saga_name, saga_id)
        return None if document is None else self._codec.decode(saga_name, document)

    async def get_by_correlation_id(self, saga_name: str, correlation_id: str) -> StateT | None:
        """Load a saga by its correlation id.

        Args:
            saga_name: 1 to 128 characters.
            correlation_id: 1 to 256 characters.

        Returns:
            A new object, or None when there is no such saga.

        Raises:
            StateDecodeError: The stored document does not fit the saga's state type.
        """
        checks.check_saga_name(saga_name)
        checks.check_correlation_id(correlation_id)
        if not self._is_open:
            await self._ensure_open()
        document = await self._get_by_correlation_id(saga_name, correlation_id)
        return None if document is None else self._codec.decode(saga_name, document)

    async def insert(self, saga_name: str, correlation_id: str, state: StateT) -> None:
        """Save a new saga; never overwrites one.

        Args:
            saga_name: 1 to 128 characters.
            correlation_id: 1 to 256 characters.
            state: The state, with its id in ``state.metadata.saga_id``.

        Raises:
            DuplicateSagaError: The id or the correlation id is taken.
        """
        checks.check_correlation_id(correlation_id)
        row = self._row(saga_name, state)
        if not self._is_open:
            await self._ensure_open()
        await self._insert(row, correlation_id)

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
        checks.check_version("expected version", expected_version)
        row = self._row(saga_name, state)
        if row.version != expected_version + 1:
            raise InvalidSagaError(
                f"saga {saga_name!r} {row.saga_id!r}: an update of version {expected_version} must carry "
                f"version {expected_version + 1}, not {row.version}; use metadata.next()"
            )
        if not self._is_open:
            await self._ensure_open()
        await self._update(row, expected_version)

    async def delete(self, saga_name: str, saga_id: str, expected_version: int | None = None) -> None:
        """Delete a saga and its correlation id.

        Args:
            saga_name: 1 to 128 characters.
            saga_id: 1 to 128 characters.
            expected_version: The version to delete; None deletes any, and an absent saga is then no error.

        Raises:
            ConcurrencyError: The store holds another version.
            SagaNotFoundError: A version was expected and there is no such saga (any more).
        """
        checks.check_saga_name(saga_name)
        checks.check_saga_id(saga_id)
        if expected_version is not None:
            self._require("conditional_delete")
            checks.check_version("expected version", expected_version)
        if not self._is_open:
            await self._ensure_open()
        await self._delete(saga_name, saga_id, expected_version)

    # -- query and retention -----------------------------------------------------------------------------

    async def find(self, saga_filter: SagaFilter, *, limit: int = 100, cursor: str | None = None) -> Page[StateT]:
        """Find sagas, a page at a time, in the filter's total order.

        Args:
            saga_filter: Which sagas, and in which order.
            limit: The most records of the page; 0 gives an empty one.
            cursor: The cursor of the page before, None for the first page.

        Raises:
            InvalidSagaError: A bad filter or limit, or a cursor that was changed or is of another filter.
        """
        self._require("query")
        checks.check_filter(saga_filter)
        checks.check_count("limit", limit, least=0)
        after = None if cursor is None else decode_cursor(saga_filter, cursor)
        if not self._is_open:
            await self._ensure_open()
        if limit == 0:
            return Page((), cursor)
        limit = min(limit, _MOST_ROWS)
        query = SagaQuery(saga_filter, order_of(saga_filter), limit + 1, after)
        rows = await self._find(query)
        items = tuple(
            SagaRecord(row.saga_name, row.correlation_id, self._codec.decode(row.saga_name, row.document))
            for row in rows[:limit]
        )
        if len(rows) <= limit:
            return Page(items)
        last = rows[limit - 1]
        return Page(items, encode_cursor(saga_filter, CursorPosition(last.moment, last.saga_name, last.saga_id)))

    async def count(self, saga_filter: SagaFilter) -> int:
        """Count sagas.

        Args:
            saga_filter: Which sagas.

        Raises:
            InvalidSagaError: A bad filter.
        """
        self._require("query")
        checks.check_filter(saga_filter)
        if not self._is_open:
            await self._ensure_open()
        return await self._count(saga_filter)

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

        Raises:
            InvalidSagaError: A bad name, moment or batch size.
        """
        self._require("retention")
        checks.check_saga_name(saga_name)
        checks.check_moment("before", before)
        checks.check_count("batch size", batch_size, least=1)
        if not self._is_open:
            await self._ensure_open()
        if dry_run:
            return await self._count(SagaFilter(saga_name=saga_name, completed=True, updated_before=before))
        deleted = 0
        while batch := await self._purge(saga_name, before, min(batch_size, _MOST_ROWS)):
            deleted += batch
        return deleted

    # -- schema, transactions, ping ----------------------------------------------------------------------

    async def create_schema(self) -> None:
        """Create what is missing; safe to call again, and from many processes at once.

        Raises:
            SchemaError: What is there is of another version than the package and cannot be brought up to it.
        """
        self._require("schema")
        self._refuse_closed()
        await self._create_schema()

    async def check_schema(self) -> None:
        """Check that the schema is there and of this package's version.

        Raises:
            SchemaError: It is missing, older or newer; the message says what to run.
        """
        self._require("schema")
        self._refuse_closed()
        await self._check_schema()

    async def drop_schema(self) -> None:
        """Drop what ``create_schema`` made, sagas included; dropping what is not there is no error."""
        self._require("schema")
        self._refuse_closed()
        await self._drop_schema()

    def bind(self, connection: Any) -> Self:
        """The same store inside the caller's open transaction, which it never commits or rolls back.

        Args:
            connection: The driver's connection or session with the open transaction.

        Raises:
            UnsupportedOperationError: The store does not declare ``transactions``.
        """
        self._require("transactions")
        self._refuse_closed()
        return self._bind(connection)

    async def ping(self) -> Ping:
        """Make one round trip to the database.

        Returns:
            Its time, and warnings on settings that put saga state at risk.

        Raises:
            StoreUnavailableError: There was no answer.
        """
        self._require("ping")
        if not self._is_open:
            await self._ensure_open()
        started = time.perf_counter()
        warnings = await self._ping()
        return Ping(seconds=time.perf_counter() - started, warnings=tuple(warnings))

    def _copy_with(self, **attributes: Any) -> Self:
        """A store like this one, whatever class it is, with other attributes and a life of its own; for ``_bind``."""
        other = copy.copy(self)
        vars(other).update(attributes, _opening=asyncio.Lock(), _is_open=False)
        return other

    # -- the one way a state becomes a row ---------------------------------------------------------------

    def _row(self, saga_name: str, state: StateT) -> SagaRow:
        checks.check_saga_name(saga_name)
        metadata = checks.metadata_of(state)
        document = self._codec.encode(state)
        self._refuse_too_large(saga_name, metadata.saga_id, document)
        self._refuse_unreadable(saga_name, state, document)
        return SagaRow(
            saga_name,
            metadata.saga_id,
            metadata.version,
            document,
            metadata.is_completed,
            metadata.created_at,
            metadata.updated_at,
            metadata.archived_at,
            metadata.timeout_expires_at,
            bool(metadata.outbox),
        )

    def _refuse_too_large(self, saga_name: str, saga_id: str, document: bytes) -> None:
        # A backend that stores another form than the JSON counts that one, in its primitives, and overrides this.
        limit = self.capabilities.max_state_bytes
        if limit is not None and len(document) > limit:
            raise StateTooLargeError(saga_name=saga_name, saga_id=saga_id, size=len(document), limit=limit)

    def _refuse_unreadable(self, saga_name: str, state: StateT, document: bytes) -> None:
        # A field of the wrong type would be written and never read again; a state of another type than the
        # saga's would come back without the fields that the saga's type does not have.
        try:
            found = self._codec.decode(saga_name, document)
        except Exception as error:
            raise StateEncodeError(f"the state could not be read back: {error}") from error
        if type(found) is not type(state) and UntypedSagaState not in (type(found), type(state)):
            raise StateEncodeError(
                f"saga {saga_name!r} has the state type {type(found).__qualname__}, not {type(state).__qualname__}"
            )

    def _require(self, ability: str) -> None:
        if not getattr(self.capabilities, ability):
            raise UnsupportedOperationError(f"{type(self).__qualname__} does not declare {ability!r}")

    # -- primitives of every backend ---------------------------------------------------------------------

    @abstractmethod
    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        """Write a new saga, or raise `DuplicateSagaError` and change nothing."""

    @abstractmethod
    async def _update(self, row: SagaRow, expected_version: int) -> None:
        """Write a row where the stored version is the expected one, or raise `version_conflict(...)`."""

    @abstractmethod
    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        """Fetch a document by its saga's id."""

    @abstractmethod
    async def _get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        """Fetch a document by its saga's correlation id."""

    @abstractmethod
    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        """Delete a saga, or raise `version_conflict(...)` where the expected version is not None and not there."""

    # -- primitives of the abilities ---------------------------------------------------------------------

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        """Fetch the rows of one page (`query`)."""
        raise NotImplementedError

    async def _count(self, where: SagaFilter) -> int:
        """Count rows (`query`)."""
        raise NotImplementedError

    async def _purge(self, saga_name: str, before: datetime, batch_size: int) -> int:
        """Delete one batch of old completed sagas, each re-checked as it is deleted; 0 ends it (`retention`)."""
        raise NotImplementedError

    async def _create_schema(self) -> None:
        """Create what is missing (`schema`); the store may not be open."""
        raise NotImplementedError

    async def _check_schema(self) -> None:
        """Raise `SchemaError` unless the schema is right (`schema`); the store may not be open."""
        raise NotImplementedError

    async def _drop_schema(self) -> None:
        """Drop everything (`schema`); the store may not be open."""
        raise NotImplementedError

    def _bind(self, connection: Any) -> Self:
        """Make the bound store (`transactions`)."""
        raise NotImplementedError

    async def _ping(self) -> Sequence[str]:
        """Make one round trip and return warnings (`ping`)."""
        raise NotImplementedError

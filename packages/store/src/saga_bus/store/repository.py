"""A statically typed view of one saga's states, with the load-change-save cycle."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Protocol, TypeVar, cast

from saga_bus.store.checks import check_count, metadata_of
from saga_bus.store.errors import ConcurrencyError, SagaNotFoundError
from saga_bus.store.protocol import DeletesConditionally, SagaStore
from saga_bus.store.state import with_metadata

__all__ = ["SagaRepository"]

StateT = TypeVar("StateT")

_FIRST_PAUSE = 0.005  # seconds
_LONGEST_PAUSE = 0.5


class ConditionalSagaStore(SagaStore[Any], DeletesConditionally, Protocol):
    """What a repository needs: the five operations, with the delete of an expected version."""

    async def delete(self, saga_name: str, saga_id: str, expected_version: int | None = None) -> None:
        """Delete a saga; see `DeletesConditionally.delete`."""
        ...


class SagaRepository(Generic[StateT]):
    """One saga's states in a store; made by ``store.repository(saga_name, state_type)``.

    Args:
        store: The store.
        saga_name: The saga's name.
    """

    def __init__(self, store: ConditionalSagaStore, saga_name: str) -> None:
        self._store = store
        self.saga_name = saga_name

    async def get_by_id(self, saga_id: str) -> StateT | None:
        """Load a saga by its id; see `SagaStore.get_by_id`."""
        return cast("StateT | None", await self._store.get_by_id(self.saga_name, saga_id))

    async def get_by_correlation_id(self, correlation_id: str) -> StateT | None:
        """Load a saga by its correlation id; see `SagaStore.get_by_correlation_id`."""
        return cast("StateT | None", await self._store.get_by_correlation_id(self.saga_name, correlation_id))

    async def insert(self, correlation_id: str, state: StateT) -> None:
        """Save a new saga; see `SagaStore.insert`."""
        await self._store.insert(self.saga_name, correlation_id, state)

    async def update(self, state: StateT, expected_version: int) -> None:
        """Save the next version of a saga; see `SagaStore.update`."""
        await self._store.update(self.saga_name, state, expected_version)

    async def delete(self, saga_id: str, expected_version: int | None = None) -> None:
        """Delete a saga; see `DeletesConditionally.delete`."""
        await self._store.delete(self.saga_name, saga_id, expected_version)

    async def mutate(
        self,
        correlation_id: str,
        change: Callable[[StateT], StateT | Awaitable[StateT | None] | None],
        *,
        attempts: int = 10,
    ) -> StateT:
        """Load a saga, change it and save the next version; again from the load if somebody else was faster.

        Args:
            correlation_id: The saga's correlation id.
            change: Changes the state that it gets, or returns a new one; plain or async. It is called once
                for each attempt, so it must have no other effects. It may make the new metadata itself with
                ``metadata.next(...)``; else that is done here.
            attempts: The most attempts, with a growing, jittered pause before each new one.

        Returns:
            The state that was saved.

        Raises:
            SagaNotFoundError: There is no such saga.
            ConcurrencyError: Somebody else was faster at every attempt.
        """
        check_count("attempts", attempts, least=1)
        pause = _FIRST_PAUSE
        while True:
            attempts -= 1
            state = await self.get_by_correlation_id(correlation_id)
            if state is None:
                raise SagaNotFoundError(saga_name=self.saga_name, saga_id=correlation_id)
            metadata = metadata_of(state)
            changed = change(state)
            answer = await cast("Awaitable[StateT | None]", changed) if inspect.isawaitable(changed) else changed
            new = state if answer is None else answer
            if metadata_of(new).version == metadata.version:
                new = with_metadata(new, metadata_of(new).next())
            try:
                await self.update(new, metadata.version)
            except ConcurrencyError:
                if attempts == 0:
                    raise
            else:
                return new
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311 - jitter, not a secret
            pause = min(pause * 2, _LONGEST_PAUSE)

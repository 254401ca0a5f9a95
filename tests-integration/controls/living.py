"""Stores that open, close or declare wrongly."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from controls.control import SECRET
from controls.registry import fails
from saga_bus.store import DuplicateSagaError, Ping, SagaFilter, SagaRow, StoreClosedError, StoreUnavailableError
from saga_bus.store_inmemory import InMemorySagaStore

URL = f"memory://admin:{SECRET}@localhost"


@fails("lifecycle_opens_once_for_racing_tasks", says="StoreUnavailableError: not connected yet")
class OpenBeforeReady(InMemorySagaStore[Any]):
    """A store that is still opening says that it is open already."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._connection: object = None

    async def _ensure_open(self) -> None:
        if not self._is_closed:
            self._is_open = True
            await asyncio.sleep(0)
            self._connection = object()
        await super()._ensure_open()

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        if self._connection is None:
            raise StoreUnavailableError("not connected yet")
        return await super()._get_by_id(saga_name, saga_id)


@fails("lifecycle_closes_twice", says="StoreClosedError: closed already")
class SecondCloseRaises(InMemorySagaStore[Any]):
    """Closing a second time is an error."""

    async def close(self) -> None:
        if self._is_closed:
            raise StoreClosedError("closed already")
        await super().close()


@fails(
    "lifecycle_refuses_use_after_close", says="get_by_id after close: expected StoreClosedError, but nothing was raised"
)
class OpensAgain(InMemorySagaStore[Any]):
    """A closed store opens again when it is used."""

    async def close(self) -> None:
        await super().close()
        self._is_closed = False


@fails("lifecycle_refuses_use_after_close", says="count after close: expected StoreClosedError, but nothing was raised")
class CountsAfterClose(InMemorySagaStore[Any]):
    """A closed store still counts."""

    async def count(self, saga_filter: SagaFilter) -> int:
        return await self._count(saga_filter)


@fails(
    "lifecycle_close_finishes_what_is_in_hand",
    says="a write that was acknowledged while the store was closed, by id: the saga is not there",
)
class CloseDropsWrites(InMemorySagaStore[Any]):
    """Writes that are in hand at close are acknowledged and lost."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        await asyncio.sleep(0)
        if not self._is_closed:
            await super()._insert(row, correlation_id)


@fails("lifecycle_closing_one_client_leaves_others", says="the other client's view: the saga is not there")
class ClosesForAll(InMemorySagaStore[Any]):
    """Closing one client ends what all clients of the place share."""

    async def _close(self) -> None:
        self._database.clear()


@fails("lifecycle_leaves_no_task_behind", says="the tasks that are left after close: expected [], got ['keepalive']")
class TaskLeft(InMemorySagaStore[Any]):
    """A task goes on after close."""

    async def _open(self) -> None:
        self._keepalive = asyncio.create_task(asyncio.sleep(3600), name="keepalive")


@fails(
    "lifecycle_tells_no_secret", says="texts that show a secret: expected [], got [\"PasswordInRepr('memory://admin:"
)
class PasswordInRepr(InMemorySagaStore[Any]):
    """The password stands in the repr."""

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({URL!r})"


@fails("lifecycle_tells_no_secret", says="<the secret>@localhost: duplicate key")
class PasswordInError(InMemorySagaStore[Any]):
    """The password stands in the message of an error."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        try:
            await super()._insert(row, correlation_id)
        except DuplicateSagaError as error:
            error.args = (f"{URL}: duplicate key",)
            raise


@fails(
    "lifecycle_declared_abilities_are_there", says="ping of a store that does not declare ping: expected Unsupported"
)
class UndeclaredPretends(InMemorySagaStore[Any]):
    """An ability that is not declared pretends to work."""

    capabilities = replace(InMemorySagaStore.capabilities, ping=False)

    async def ping(self) -> Ping:
        return Ping(seconds=0.0)


@fails("lifecycle_declared_abilities_are_there", says="the store declares query, but has no method count")
class DeclaredMissing(InMemorySagaStore[Any]):
    """An ability that is declared is missing."""

    count = None  # type: ignore[assignment]


@fails("lifecycle_ping_answers", says="ping returned None, not a Ping")
class PingReturnsNone(InMemorySagaStore[Any]):
    """Ping returns None."""

    async def ping(self) -> Any:
        return None

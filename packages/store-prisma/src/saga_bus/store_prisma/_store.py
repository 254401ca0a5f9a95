"""The Prisma store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Self, TypeVar

from saga_bus.store import (
    BaseSagaStore,
    FoundRow,
    InvalidSagaError,
    SagaFilter,
    SagaQuery,
    SagaRow,
    StateCodec,
    StoreCapabilities,
    StoreUnavailableError,
)
from saga_bus.store_prisma import _schema as schema_work
from saga_bus.store_prisma._client import (
    ModelActions,
    PrismaClient,
    actions_of,
    checked_client,
    default_client,
    model_in_url,
    raw,
)
from saga_bus.store_prisma._health import warnings_about
from saga_bus.store_prisma._in_hand import InHand
from saga_bus.store_prisma._model import Model, model_of
from saga_bus.store_prisma._operations import Operations, called
from saga_bus.store_prisma._statements import DATABASES

__all__ = ["PrismaSagaStore", "check_schema", "create_schema", "drop_schema"]

StateT = TypeVar("StateT")

_DEFAULT_MODEL = "sagainstance"
# A state is one text in a request to the engine, which holds it in memory several times.
_MAX_STATE_BYTES = 16 * 1024 * 1024


class PrismaSagaStore(BaseSagaStore[StateT]):
    """Sagas in a model of a generated Prisma Client for Python (0.15, asyncio).

    A given client is connected by its owner, or by ``async with`` on the store, which then disconnects it too.

    Args:
        url: ``prisma://`` or ``prisma://model``: the client that is generated as ``prisma``; the store makes one,
            connects it on first use and disconnects it. Where the database is says schema.prisma.
        prisma: Instead of a URL, a client; the store disconnects it only if it connected it.
        model: The client's attribute for the model: the model's name in lower case; that of the URL goes before it.
        state_types: The state type of each saga name.
        codec: Replaces the JSON codec.

    Raises:
        InvalidSagaError: A bad argument, or not exactly one of a URL and a client.
        SchemaError: The client has no such model.
    """

    capabilities = StoreCapabilities(
        conditional_delete=True,
        query=True,
        retention=True,
        schema=True,
        transactions=True,
        ping=True,
        processes=True,
        max_state_bytes=_MAX_STATE_BYTES,
    )

    def __init__(
        self,
        url: str | None = None,
        *,
        prisma: PrismaClient | None = None,
        model: str = _DEFAULT_MODEL,
        state_types: Mapping[str, type] | None = None,
        codec: StateCodec | None = None,
    ) -> None:
        super().__init__(state_types=state_types, codec=codec)
        if (url is None) == (prisma is None):
            raise InvalidSagaError("give either a URL or a client")
        self._owns_client = prisma is None
        self._connects = self._owns_client
        self._has_connected = False
        self._in_hand = InHand()
        self._model_name = model if url is None else model_in_url(url) or model
        self._client: PrismaClient | None = None
        if prisma is not None:
            self._client = checked_client(prisma)
            actions_of(self._client, self._model_name)

    def __repr__(self) -> str:
        whose = "its own client" if self._owns_client else "the given client"
        return f"{type(self).__qualname__}({whose}, model={self._model_name!r})"

    # -- life --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._connects = True
        return await super().__aenter__()

    async def _open(self) -> None:
        prisma = self._prisma
        self._has_connected = not prisma.is_connected()
        if not self._has_connected:
            return
        if not self._connects:
            raise StoreUnavailableError(
                "the Prisma client is not connected: await its connect(), or use `async with` on the store"
            )
        await called(prisma.connect())

    async def _close(self) -> None:
        await self._in_hand.join()
        if "_operations" in vars(self):
            await self._operations.join()
        if self._has_connected:
            await called(self._prisma.disconnect())

    def _bind(self, connection: Any) -> Self:
        prisma = checked_client(connection, "bind's argument")
        if not prisma.is_transaction():
            raise InvalidSagaError("bind takes the client that `async with prisma.tx()` yields, not one without a tx")
        actions_of(prisma, self._model_name)
        other = self._copy_with(_client=prisma, _owns_client=False, _connects=False, _in_hand=InHand())
        for cached in ("_operations", "_model"):
            vars(other).pop(cached, None)
        return other

    @property
    def _prisma(self) -> PrismaClient:
        if self._client is None:
            self._client = default_client()
        return self._client

    @property
    def _actions(self) -> ModelActions:
        return actions_of(self._prisma, self._model_name)

    @cached_property
    def _model(self) -> Model:
        return model_of(self._prisma, self._actions)

    @cached_property
    def _operations(self) -> Operations:
        return Operations(self._actions, self._model.provider, bound=self._prisma.is_transaction())

    # -- primitives --------------------------------------------------------------------------------------

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        with self._in_hand:
            await self._operations.insert(row, correlation_id)

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        with self._in_hand:
            await self._operations.update(row, expected_version)

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        with self._in_hand:
            await self._operations.delete(saga_name, saga_id, expected_version)

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        with self._in_hand:
            return await self._operations.get("saga_id", saga_name, saga_id)

    async def _get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        with self._in_hand:
            return await self._operations.get("correlation_id", saga_name, correlation_id)

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        with self._in_hand:
            return await self._operations.find(query)

    async def _count(self, where: SagaFilter) -> int:
        with self._in_hand:
            return await self._operations.count(where)

    async def _purge(self, saga_name: str, before: datetime, batch_size: int) -> int:
        with self._in_hand:
            return await self._operations.purge(saga_name, before, batch_size)

    async def _create_schema(self) -> None:
        await self._ensure_open()
        with self._in_hand:
            await schema_work.create(self._prisma, self._model)

    async def _check_schema(self) -> None:
        await self._ensure_open()
        with self._in_hand:
            await schema_work.check(self._prisma, self._model)

    async def _drop_schema(self) -> None:
        await self._ensure_open()
        with self._in_hand:
            await schema_work.drop(self._prisma, self._model)

    async def _ping(self) -> Sequence[str]:
        statement = raw(DATABASES[self._model.provider].health)
        with self._in_hand:
            rows = await called(self._prisma.query_raw(statement))
        return warnings_about(rows[0])


async def create_schema(prisma: PrismaClient, *, model: str = _DEFAULT_MODEL) -> None:
    """Create the table of a model and its indexes, if they are missing.

    Args:
        prisma: A connected client.
        model: The client's attribute for the model.

    Raises:
        SchemaError: The model is not the store's, or there is another table of that name.
    """
    await PrismaSagaStore[Any](prisma=prisma, model=model).create_schema()


async def check_schema(prisma: PrismaClient, *, model: str = _DEFAULT_MODEL) -> None:
    """Check that the model is the store's, and that the table is the model's.

    Args:
        prisma: A connected client.
        model: The client's attribute for the model.

    Raises:
        SchemaError: What is wrong, and what to run.
    """
    await PrismaSagaStore[Any](prisma=prisma, model=model).check_schema()


async def drop_schema(prisma: PrismaClient, *, model: str = _DEFAULT_MODEL) -> None:
    """Drop the table of a model with its sagas; a table that is not there is no error.

    Args:
        prisma: A connected client.
        model: The client's attribute for the model.

    Raises:
        SchemaError: The table is not the store's.
    """
    await PrismaSagaStore[Any](prisma=prisma, model=model).drop_schema()

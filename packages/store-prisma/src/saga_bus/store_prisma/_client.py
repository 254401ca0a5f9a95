"""What the store needs of a generated client; the generated code itself is never imported."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, LiteralString, Protocol, cast, runtime_checkable
from urllib.parse import urlsplit

from saga_bus.store import InvalidSagaError, SchemaError

__all__ = ["ModelActions", "PrismaClient", "actions_of", "checked_client", "default_client", "model_in_url", "raw"]


@runtime_checkable
class PrismaClient(Protocol):
    """A client that ``prisma generate`` made with ``interface = "asyncio"``, or the ``tx`` of its ``tx()``."""

    def is_connected(self) -> bool:
        """Whether the client has started its query engine."""
        ...

    def is_transaction(self) -> bool:
        """Whether it is the client of a transaction."""
        ...

    async def connect(self) -> None:
        """Start the query engine."""
        ...

    async def disconnect(self) -> None:
        """Stop the query engine."""
        ...

    async def query_raw(self, query: LiteralString, *args: Any) -> Any:
        """Run a statement and return its rows, a dict each."""
        ...

    async def execute_raw(self, query: LiteralString, *args: Any) -> int:
        """Run a statement and return how many rows it changed."""
        ...

    def tx(self, *, max_wait: Any = ..., timeout: Any = ...) -> Any:
        """A context manager for a transaction; it yields a client."""
        ...


class ModelActions(Protocol):
    """What the client has for each model, as far as the store needs it."""

    async def create_many(self, data: Any, *, skip_duplicates: bool | None = None) -> int:
        """Insert rows and return how many."""
        ...

    async def find_unique(self, where: Any) -> Any:
        """The row of a key, or None."""
        ...

    async def find_many(self, *, take: int | None = None, where: Any = None, order: Any = None) -> list[Any]:
        """Rows."""
        ...

    async def group_by(self, by: Any, *, where: Any = None, take: int | None = None, order: Any = None) -> list[Any]:
        """The distinct values of some columns, a dict each."""
        ...

    async def count(self, *, where: Any = None) -> int:
        """How many rows."""
        ...

    async def update_many(self, data: Any, where: Any) -> int:
        """Update rows and return how many."""
        ...

    async def delete_many(self, where: Any = None) -> int:
        """Delete rows and return how many."""
        ...


def checked_client(prisma: Any, what: str = "prisma") -> PrismaClient:
    """The same client.

    Args:
        prisma: What the user gave.
        what: What it was given as.

    Raises:
        InvalidSagaError: It is no generated client, or a synchronous one.
    """
    if isinstance(prisma, type) or not isinstance(prisma, PrismaClient):
        name = prisma.__qualname__ if isinstance(prisma, type) else type(prisma).__qualname__
        raise InvalidSagaError(f"{what} must be a client that `prisma generate` made, not {name}")
    if not inspect.iscoroutinefunction(prisma.connect):
        raise InvalidSagaError(f'{what} is a synchronous client: generate one with interface = "asyncio"')
    return prisma


def actions_of(prisma: PrismaClient, model: str) -> ModelActions:
    """What a client has for a model.

    Args:
        prisma: The client.
        model: The name of the client's attribute: the model's name in lower case.

    Raises:
        SchemaError: The client has no such model.
    """
    actions = getattr(prisma, model, None)
    if actions is None or not hasattr(actions, "update_many"):
        raise SchemaError(
            f"the Prisma client has no model {model!r}: put get_schema_prisma() into schema.prisma, "
            "run `prisma generate`, and create_schema()"
        )
    return cast("ModelActions", actions)


def raw(statement: str) -> Any:
    """A statement that this package has made itself, where the client asks for a literal.

    Args:
        statement: The statement.
    """
    return statement


def model_in_url(url: str) -> str | None:
    """The model that a URL names, if it names one.

    Args:
        url: ``prisma://`` or ``prisma://model``.

    Raises:
        InvalidSagaError: It has more in it: where the database is says schema.prisma.
    """
    parts = urlsplit(url)
    if parts.scheme != "prisma" or not (parts.netloc + "_").isidentifier() or parts.path or parts.query:
        raise InvalidSagaError(
            "the URL must be prisma:// or prisma://model: it means the client that is generated as `prisma`, "
            "whose schema.prisma says where the database is"
        )
    return parts.netloc or None


def default_client() -> PrismaClient:
    """A new client of the one that is generated as ``prisma``.

    Raises:
        SchemaError: None is generated.
    """
    try:
        return checked_client(importlib.import_module("prisma").Prisma())
    except RuntimeError as error:  # the package itself stands there until it is generated
        raise SchemaError("no Prisma client is generated: run `prisma generate`") from error

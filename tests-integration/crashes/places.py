"""The stores and brokers that a crash test can be run on."""

from __future__ import annotations

import functools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from brokers import new_prefix
from brokers.inspection import dead_letters, remove
from crashes.saga import SAGA_NAME
from saga_bus.store import open_store
from saga_bus.transport_faststream import FastStreamTransport

__all__ = ["STORES", "CrashPlace", "crash_place"]

_REDELIVER_AFTER = timedelta(seconds=2)


@dataclass(frozen=True)
class CrashPlace:
    """Where one crash test happens.

    Args:
        open_store: Makes a store; can be pickled.
        open_transport: Makes a transport; can be pickled.
        dead_letters: Reads the dead letters of the saga's endpoint.
    """

    open_store: Callable[[], Any]
    open_transport: Callable[[], Any]
    dead_letters: Callable[[], Awaitable[Sequence[Any]]]


def _postgres(url: str, _folder: Path) -> Callable[[], Any]:
    return functools.partial(open_store, url, table=f"crash_{uuid.uuid4().hex[:12]}")


def _sqlite(_url: str, folder: Path) -> Callable[[], Any]:
    return functools.partial(open_store, f"sqlite:///{(folder / 'sagas.db').as_posix()}")


def _redis(url: str, _folder: Path) -> Callable[[], Any]:
    return functools.partial(open_store, url, prefix=f"crash-{uuid.uuid4().hex[:12]}")


# How a fresh place in each store is opened, given the URL of its server and an empty folder.
STORES: dict[str, Callable[[str, Path], Callable[[], Any]]] = {
    "postgres": _postgres,
    "redis": _redis,
    "sqlite": _sqlite,
}


@asynccontextmanager
async def crash_place(store: str, store_url: str, broker_url: str, folder: Path) -> AsyncIterator[CrashPlace]:
    """A fresh place in a store and on a broker, removed at the end.

    Args:
        store: The store's name, as in `STORES`.
        store_url: Its server; ignored by SQLite.
        broker_url: The broker.
        folder: An empty folder.
    """
    prefix = new_prefix()
    open_it = STORES[store](store_url, folder)
    async with AsyncExitStack() as stack:
        administrator = await stack.enter_async_context(open_it())
        if administrator.capabilities.schema:
            await administrator.create_schema()
            stack.push_async_callback(administrator.drop_schema)
        stack.push_async_callback(remove, broker_url, prefix, [SAGA_NAME, "CrashWatcher"])
        yield CrashPlace(
            open_it,
            functools.partial(FastStreamTransport, broker_url, prefix=prefix, redeliver_after=_REDELIVER_AFTER),
            functools.partial(dead_letters, broker_url, prefix, SAGA_NAME),
        )

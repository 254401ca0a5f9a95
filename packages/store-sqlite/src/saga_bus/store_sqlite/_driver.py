"""A thread with a connection of its own: sqlite3 blocks, and the event loop must not."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from saga_bus.store import StoreClosedError

__all__ = ["ConnectionThread"]

ResultT = TypeVar("ResultT")


class ConnectionThread:
    """Runs one piece of work after the other on a connection that only its thread uses.

    Thread and connection are there from the first piece of work on.

    Args:
        connect: Opens the connection.
        prepare: Makes the connection fit for ordinary work, or raises; it is called again until it succeeds.
        name: The thread's name.
        owned: Whether to close the connection in the end.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        prepare: Callable[[sqlite3.Connection], None],
        *,
        name: str,
        owned: bool = True,
    ) -> None:
        self._connect = connect
        self._prepare = prepare
        self._owned = owned
        self._connection: sqlite3.Connection | None = None
        self._is_prepared = False
        self._is_closed = False
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, work: Callable[[sqlite3.Connection], ResultT], *, prepared: bool = True) -> ResultT:
        """Run work in the thread and wait for its result.

        A cancelled caller stops waiting; the work itself goes on to its end.

        Args:
            work: Called with the connection.
            prepared: Whether the connection must be prepared first.

        Raises:
            StoreClosedError: The thread was closed.
        """
        if self._is_closed:
            raise StoreClosedError("the store is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ResultT] = loop.create_future()

        def run_in_thread() -> None:
            try:
                result = work(self._open(prepared=prepared))
            except BaseException as error:  # noqa: BLE001 - it is raised to the caller
                _report(loop, _fail, future, error)
            else:
                _report(loop, _succeed, future, result)

        self._executor.submit(run_in_thread)
        return await future

    def close(self) -> asyncio.Future[None]:
        """Finish the work in hand, close the connection and end the thread; closing twice is no error.

        Returns:
            A future that is done when all this is.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if self._is_closed:
            future.set_result(None)
            return future
        self._is_closed = True

        def close_in_thread() -> None:
            if self._owned and self._connection is not None:
                self._connection.close()
            self._connection = None
            _report(loop, _succeed, future, None)

        self._executor.submit(close_in_thread)
        self._executor.shutdown(wait=False)
        return future

    def _open(self, *, prepared: bool) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._connect()
        if prepared and not self._is_prepared:
            self._prepare(self._connection)
            self._is_prepared = True
        return self._connection


def _report(loop: asyncio.AbstractEventLoop, settle: Callable[..., None], *args: object) -> None:
    try:
        loop.call_soon_threadsafe(settle, *args)
    except RuntimeError:
        if not loop.is_closed():  # else nobody waits any more
            raise


def _succeed(future: asyncio.Future[ResultT], result: ResultT) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[ResultT], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)

"""A thread with a connection of its own: sqlite3 blocks, and the event loop must not."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar
from weakref import finalize

from saga_bus.store import StoreClosedError
from saga_bus.store.threads import fail, report, succeed

__all__ = ["ConnectionThread"]

ResultT = TypeVar("ResultT")
Job = Callable[[], None]


class ConnectionThread:
    """Runs one piece of work after the other on a connection that only its thread uses.

    Thread and connection are there from the first piece of work on. (A hop to the thread and back takes a
    fifth less CPU time than with a ThreadPoolExecutor, and hops are most of what a lone caller pays for.)

    Args:
        connect: Opens the connection.
        prepare: Makes the connection fit for ordinary work, or raises; it is called again until it succeeds.
        name: The thread's name.
        owned: Whether to close the connection in the end.
        lock: Held while work runs, for a connection that other threads use too.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        prepare: Callable[[sqlite3.Connection], None],
        *,
        name: str,
        owned: bool = True,
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        self._connect = connect
        self._prepare = prepare
        self._owned = owned
        self._lock = nullcontext() if lock is None else lock
        self._connection: sqlite3.Connection | None = None
        self._is_prepared = False
        self._is_closed = False
        self._name = name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: Thread | None = None

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
                with self._lock:
                    result = work(self._open(prepared=prepared))
            except BaseException as error:  # noqa: BLE001 - it is raised to the caller
                report(loop, fail, future, error)
            else:
                report(loop, succeed, future, result)

        if self._thread is None:
            self._thread = self._start()
        self._jobs.put(run_in_thread)
        return await future

    async def close(self) -> None:
        """Finish the work in hand, close the connection and end the thread; closing twice is no error."""
        if self._is_closed or self._thread is None:
            self._is_closed = True
            return
        self._is_closed = True
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def close_in_thread() -> None:
            if self._owned and self._connection is not None:
                self._connection.close()
            self._connection = None
            report(loop, succeed, future, None)

        self._jobs.put(close_in_thread)
        self._jobs.put(None)
        await future
        self._thread.join()  # it has nothing left to do

    def _start(self) -> Thread:
        # A daemon, so that a store that nobody closed does not keep the process from ending: what was
        # acknowledged is committed. The thread knows only its queue, so that such a store can be collected.
        thread = Thread(target=_work, args=(self._jobs,), name=self._name, daemon=True)
        thread.start()
        finalize(self, self._jobs.put, None)
        return thread

    def _open(self, *, prepared: bool) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._connect()
        if prepared and not self._is_prepared:
            self._prepare(self._connection)
            self._is_prepared = True
        return self._connection


def _work(jobs: SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # or the last one would keep its store alive

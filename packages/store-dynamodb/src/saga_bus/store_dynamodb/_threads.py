"""Threads of the store's own: boto3 blocks, and the event loop must not."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, TypeVar
from weakref import finalize

from saga_bus.store import StoreClosedError
from saga_bus.store.threads import fail, report, succeed

__all__ = ["Threads"]

ResultT = TypeVar("ResultT")


class _Job(NamedTuple):
    work: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


class Threads:
    """Runs blocking work, each piece in a thread; threads are started on demand.

    A caller that is cancelled takes back what no thread has begun; what was begun goes on to its end. (The way to a
    thread and back takes a third less of the processor than with a ThreadPoolExecutor.)

    Args:
        most: The most threads.
        name: What the threads' names begin with.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._idle: deque[None] = deque()  # an entry for each thread that has nothing to do
        self._threads: list[Thread] = []
        self._is_stopped = False
        finalize(self, _stop, self._jobs, self._threads)

    async def run(self, work: Callable[[], ResultT]) -> ResultT:
        """Run work in a thread and wait for its result.

        Args:
            work: The work.

        Raises:
            StoreClosedError: The threads were told to end.
        """
        if self._is_stopped:
            raise StoreClosedError("the store is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ResultT] = loop.create_future()
        try:
            self._idle.pop()
        except IndexError:
            if len(self._threads) < self._most:
                self._start()
        self._jobs.put(_Job(work, loop, future))
        return await future

    def stop(self) -> None:
        """End the threads when they have done what they were given; they take no more."""
        self._is_stopped = True
        _stop(self._jobs, self._threads)

    def join(self) -> None:
        """Wait until all threads have ended; for use in another thread than the event loop's."""
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        # A daemon, so that a store that nobody closed does not keep the process from ending. The thread knows only
        # what it is given here, so that such a store can be collected.
        name = f"{self._name}_{len(self._threads)}"
        thread = Thread(target=_work, args=(self._jobs, self._idle), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()


def _work(jobs: SimpleQueue[_Job | None], idle: deque[None]) -> None:
    while (job := jobs.get()) is not None:
        settle, outcome = _done(job)
        idle.append(None)  # before the caller goes on, or its next work would find no thread
        report(job.loop, settle, job.future, outcome)
        del job, settle, outcome  # or the last ones would live until the next work comes


def _done(job: _Job) -> tuple[Callable[..., None], Any]:
    if job.future.cancelled():
        return succeed, None
    try:
        return succeed, job.work()
    except BaseException as error:  # noqa: BLE001 - it is raised to the caller
        return fail, error


def _stop(jobs: SimpleQueue[_Job | None], threads: list[Thread]) -> None:
    for _ in threads:
        jobs.put(None)

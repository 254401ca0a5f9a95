"""A pool of threads with a connection each: pyodbc blocks, and the event loop must not."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar
from weakref import finalize

from saga_bus.store import StoreClosedError, StoreUnavailableError
from saga_bus.store.threads import fail, report, succeed
from saga_bus.store_sqlserver._sessions import Session

__all__ = ["ConnectionPool"]

ResultT = TypeVar("ResultT")
Work = Callable[[Session], Any]

_TRIES = 3
_TRUSTED_FOR = 30.0  # seconds that a connection may rest before it is asked whether it still answers


class ConnectionPool:
    """Runs work in threads, each with a connection that only it uses; threads and connections come on demand.

    A caller that is cancelled while it waits for a thread leaves nothing behind. One that is cancelled later
    stops waiting, but its work goes on to its end in its thread, so no statement is ever left half done; the
    command timeout bounds that.

    Args:
        connect: Opens a session; called in a thread.
        size: The most threads.
        acquire_timeout: How long work may wait for a thread, in seconds.
        name: What the threads' names begin with.
    """

    def __init__(self, connect: Callable[[], Session], *, size: int, acquire_timeout: float, name: str) -> None:
        self._size = size
        self._acquire_timeout = acquire_timeout
        self._name = name
        self._shared = _Shared(connect)
        self._threads: list[Thread] = []
        self._unfinished = 0
        self._waiters = 0
        self._most_waiters = max(1, size - 1)
        self._held_back: deque[_Job] = deque()
        self._is_closed = False
        finalize(self, _stop, self._shared, self._threads)

    async def run(
        self, work: Callable[[Session], ResultT], *, repeatable: bool = False, may_wait: bool = False
    ) -> ResultT:
        """Run work in a thread and wait for its result.

        Work that the server undid to end a deadlock is done again, twice at the most.

        Args:
            work: Called with the thread's session.
            repeatable: Whether the work only reads, so that it is done again where a connection that was
                used before turns out to be lost.
            may_wait: Whether the work may wait for a row that somebody has locked. Such work never has all
                threads, if there are several, so that it holds up no work that does not wait.

        Raises:
            StoreUnavailableError: No thread was free in time.
            StoreClosedError: The pool was closed.
        """
        if self._is_closed:
            raise StoreClosedError("the store is closed")
        loop = asyncio.get_running_loop()
        job = _Job(work, loop, loop.create_future(), repeatable=repeatable)
        self._unfinished += 1
        job.future.add_done_callback(self._one_less)
        if self._unfinished > len(self._threads) and len(self._threads) < self._size:
            self._start()
        waiting: asyncio.TimerHandle | None = None
        is_held_back = may_wait and self._waiters >= self._most_waiters
        if is_held_back or self._unfinished > self._size:
            waiting = loop.call_later(self._acquire_timeout, self._give_up, job)
        if is_held_back:
            self._held_back.append(job)
        else:
            self._put(job, may_wait=may_wait)
        try:
            result: ResultT = await asyncio.shield(job.future)
        except asyncio.CancelledError:
            if job.claim():
                job.future.cancel()
            raise
        finally:
            if waiting is not None:
                waiting.cancel()
        return result

    async def close(self) -> None:
        """Finish the work in hand, close the connections and end the threads; closing twice is no error."""
        if self._is_closed:
            return
        self._is_closed = True
        while self._held_back:
            self._shared.jobs.put(self._held_back.popleft())
        _stop(self._shared, self._threads)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _put(self, job: _Job, *, may_wait: bool) -> None:
        if may_wait:
            self._waiters += 1
            job.future.add_done_callback(self._one_waiter_less)
        self._shared.jobs.put(job)

    def _one_waiter_less(self, _: asyncio.Future[Any]) -> None:
        self._waiters -= 1
        while self._held_back:
            job = self._held_back.popleft()
            if not job.future.done():  # else its caller gave up
                self._put(job, may_wait=True)
                return

    def _start(self) -> None:
        # A daemon, so that a store that nobody closed does not keep the process from ending: what was
        # acknowledged is committed. The thread knows only what it shares, so that such a store can be collected.
        thread = Thread(target=_work, args=(self._shared,), name=f"{self._name}-{len(self._threads) + 1}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _give_up(self, job: _Job) -> None:
        if job.claim() and not job.future.done():
            job.future.set_exception(
                StoreUnavailableError(
                    f"none of the pool's {self._size} connections was free for {self._acquire_timeout} seconds"
                )
            )

    def _one_less(self, future: asyncio.Future[Any]) -> None:
        self._unfinished -= 1
        if not future.cancelled():
            future.exception()  # seen: its caller may have been cancelled


class _Job:
    def __init__(
        self, work: Work, loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], *, repeatable: bool
    ) -> None:
        self.work = work
        self.loop = loop
        self.future = future
        self.repeatable = repeatable
        self._claimed = Lock()

    def claim(self) -> bool:
        """Whether the job is the claimant's: a thread does it, or its caller gave it up, never both."""
        return self._claimed.acquire(blocking=False)


class _Shared:
    """What the threads of a pool have in common."""

    def __init__(self, connect: Callable[[], Session]) -> None:
        self.connect = connect
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self.lost_at = 0.0  # when a connection was last found lost: the server may have been restarted


class _Place:
    """A thread's session, opened when it is needed and replaced when it is lost."""

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared
        self._session: Session | None = None

    def do(self, job: _Job) -> Any:
        """Do a job; again where a deadlock undid it, or where it only reads and its connection was lost."""
        for tries_left in reversed(range(_TRIES)):
            session, is_fresh = self._usable()
            try:
                return job.work(session)
            except StoreUnavailableError:
                was_stale = job.repeatable and session.is_cut and not is_fresh
                if not tries_left or not (was_stale or session.was_victim):
                    raise
            finally:
                session.was_victim = False
                self._leave(session)
        raise AssertionError("the last try returns or raises")

    def close(self) -> None:
        """Close the session."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _usable(self) -> tuple[Session, bool]:
        session = self._session
        if session is not None:
            rested = time.monotonic() - session.used_at
            if (rested < _TRUSTED_FOR and session.used_at > self._shared.lost_at) or session.answers():
                return session, False
            self.close()
        self._session = self._shared.connect()
        return self._session, True

    def _leave(self, session: Session) -> None:
        if session.is_lost:
            self._shared.lost_at = time.monotonic()
            self.close()


def _work(shared: _Shared) -> None:
    place = _Place(shared)
    while (job := shared.jobs.get()) is not None:
        if job.claim():
            try:
                result = place.do(job)
            except BaseException as error:  # noqa: BLE001 - it is raised to the caller
                report(job.loop, fail, job.future, error)
            else:
                report(job.loop, succeed, job.future, result)
                del result
        del job  # or the last one would keep its store alive
    place.close()


def _stop(shared: _Shared, threads: list[Thread]) -> None:
    for _ in threads:
        shared.jobs.put(None)

"""The coordinator: hands events to worker processes, kills one of them, delivers its events again to others."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.messages import Acknowledged, Answer, Counted, Failed, Ready
from demo.processes import WorkerProcess
from demo.workload import SagaPlan, Workload

__all__ = ["Coordinator", "DemoError", "Figures"]

_SAGAS_PER_WORKER = 32  # sagas in flight at a time
_STARTING = 60.0  # seconds for all workers to open the store
_STALLED = 60.0  # seconds without any acknowledgement
_ENDING = 30.0  # seconds for a worker to leave when there is nothing more to do


class DemoError(Exception):
    """The run cannot go on."""


@dataclass(slots=True)
class Figures:
    """What happened in a run.

    Args:
        events: How many events were to be handled.
        acknowledged: How many workers reported as handled.
        conflicts: How often an event was tried again because somebody else was faster.
        unavailable: How often an event was tried again because the store was too busy.
        redelivered: How many events were delivered again after the kill.
        recognised: How many of these the dead worker had applied already.
        taken_over: How many unfinished sagas of the killed worker went to others.
        killed: Which worker was killed and when, in words; None if none was.
        seconds: From the first event sent to the last one acknowledged.
    """

    events: int
    acknowledged: int = 0
    conflicts: int = 0
    unavailable: int = 0
    redelivered: int = 0
    recognised: int = 0
    taken_over: int = 0
    killed: str | None = None
    seconds: float = 0.0


@dataclass(slots=True, eq=False)
class _Running:
    """A saga with events under way."""

    plan: SagaPlan[Any]
    home: WorkerProcess  # gets the first event of each stage
    stage: int = 0
    waiting: set[str] = field(default_factory=set)


class Coordinator:
    """Runs a workload on worker processes; every event is delivered at least once.

    Args:
        database: The SQLite file; its schema is there.
        workload: What to send.
        workers: How many processes.
        kill: Whether to kill one worker halfway.
        on_progress: Called after every acknowledgement.
        on_news: Called with a sentence when something worth telling happens.
    """

    def __init__(
        self,
        database: Path,
        workload: Workload[Any],
        *,
        workers: int,
        kill: bool,
        on_progress: Callable[[Figures], None],
        on_news: Callable[[str], None],
    ) -> None:
        self._database = database
        self._worker_count = workers
        self._kill = kill
        self._on_progress = on_progress
        self._on_news = on_news
        self.figures = Figures(workload.event_count())
        self._to_start = deque(workload.plans)
        self._workers: list[WorkerProcess] = []
        self._ready = 0
        self._running: dict[str, _Running] = {}  # by correlation id
        self._last_sign = 0.0
        self._over: asyncio.Future[None]

    async def run(self) -> Figures:
        """Send everything and wait for the last acknowledgement.

        Raises:
            DemoError: A worker failed, died on its own or does not answer.
        """
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        listeners: list[asyncio.Task[None]] = []
        try:
            for number in range(1, self._worker_count + 1):
                worker = await WorkerProcess.start(number, self._database)
                self._workers.append(worker)
                listeners.append(loop.create_task(self._listen(worker)))
            await self._wait_until_over()
            await self._dismiss(listeners)
        finally:
            for listener in listeners:  # first, so that none takes the ends below for a failure
                listener.cancel()
            for worker in self._workers:
                await worker.end()
            await asyncio.gather(*listeners, return_exceptions=True)
        return self.figures

    # -- waiting -----------------------------------------------------------------------------------------

    async def _wait_until_over(self) -> None:
        self._last_sign = time.monotonic()
        while not (await asyncio.wait({self._over}, timeout=1.0))[0]:
            silence = time.monotonic() - self._last_sign
            if self._ready < self._worker_count and silence > _STARTING:
                raise DemoError(f"only {self._ready} of {self._worker_count} workers started within {_STARTING:.0f} s")
            if silence > _STALLED:
                raise DemoError(f"no worker acknowledged anything for {_STALLED:.0f} s")
        self._over.result()

    async def _dismiss(self, listeners: list[asyncio.Task[None]]) -> None:
        for worker in self._alive():
            worker.no_more_events()
        _, late = await asyncio.wait(listeners, timeout=_ENDING)
        if late:
            raise DemoError(f"{len(late)} workers did not leave within {_ENDING:.0f} s")
        for listener in listeners:
            listener.result()

    # -- what workers say --------------------------------------------------------------------------------

    async def _listen(self, worker: WorkerProcess) -> None:
        try:
            async for answer in worker.answers():
                self._last_sign = time.monotonic()
                self._take(worker, answer)
            if worker.killed:
                self._deliver_again(worker)
            else:
                await self._check_end(worker)
        except Exception as error:
            if self._over.done():
                raise
            self._over.set_exception(error)

    async def _check_end(self, worker: WorkerProcess) -> None:
        code = await worker.exit_code()
        if code != 0 or not self._over.done():
            raise DemoError(f"worker {worker.number} ended with exit code {code}{await worker.last_words()}")

    def _take(self, worker: WorkerProcess, answer: Answer) -> None:
        if isinstance(answer, Acknowledged):
            self._acknowledge(worker, answer)
        elif isinstance(answer, Counted):
            self.figures.conflicts += answer.conflicts
            self.figures.unavailable += answer.unavailable
            self.figures.recognised += answer.repeated
        elif isinstance(answer, Failed):
            raise DemoError(f"worker {worker.number} failed: {answer.reason}")
        elif isinstance(answer, Ready):
            self._ready += 1
            if self._ready == self._worker_count:
                self._begin()

    def _begin(self) -> None:
        self._started = time.monotonic()
        for worker in self._workers * _SAGAS_PER_WORKER:
            self._start_next_saga(worker)

    def _acknowledge(self, worker: WorkerProcess, answer: Acknowledged) -> None:
        event = worker.unacknowledged.pop(answer.event_id)
        figures = self.figures
        figures.acknowledged += 1
        saga = self._running[event.correlation_id]
        saga.waiting.remove(answer.event_id)
        if not saga.waiting:
            saga.stage += 1
            if saga.stage < len(saga.plan.stages):
                self._send_stage(saga)
            else:
                del self._running[event.correlation_id]
                self._start_next_saga(saga.home)
        figures.seconds = time.monotonic() - self._started
        if self._kill and figures.acknowledged * 2 >= figures.events:
            self._kill_one()
        self._on_progress(figures)
        if figures.acknowledged == figures.events and not self._over.done():
            self._over.set_result(None)

    # -- sending -----------------------------------------------------------------------------------------

    def _start_next_saga(self, home: WorkerProcess) -> None:
        if self._to_start:
            saga = _Running(self._to_start.popleft(), home)
            self._running[saga.plan.correlation_id] = saga
            self._send_stage(saga)

    def _send_stage(self, saga: _Running) -> None:
        stage = saga.plan.stages[saga.stage]
        saga.waiting.update(event.event_id for event in stage)
        alive = self._alive()
        first = alive.index(saga.home)
        for offset, event in enumerate(stage):  # to different workers, so that they race
            alive[(first + offset) % len(alive)].send(event)

    def _alive(self) -> list[WorkerProcess]:
        return [worker for worker in self._workers if not worker.killed]

    # -- the kill ----------------------------------------------------------------------------------------

    def _kill_one(self) -> None:
        victim = max(self._workers, key=lambda worker: len(worker.unacknowledged))
        if not victim.unacknowledged:
            return  # nothing is under way at this moment
        self._kill = False
        victim.kill()
        others = self._alive()
        for saga in self._running.values():
            if saga.home is victim:
                saga.home = others[self.figures.taken_over % len(others)]
                self.figures.taken_over += 1
        self.figures.killed = f"{victim.number}, after {self.figures.acknowledged:,} events"
        self._on_news(
            f"Worker {victim.number} (process {victim.pid}) killed with SIGKILL; "
            f"others take over {self.figures.taken_over} sagas."
        )

    def _deliver_again(self, dead: WorkerProcess) -> None:
        # Its pipe has ended, so every acknowledgement that it could still send is counted. What is left may
        # be in the store or not; nobody knows, so it is sent again, and the bus finds out.
        events = list(dead.unacknowledged.values())
        dead.unacknowledged.clear()
        self.figures.redelivered += len(events)
        for event in events:
            self._running[event.correlation_id].home.send(event)

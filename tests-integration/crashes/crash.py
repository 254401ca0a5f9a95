"""The test itself: start workers, send the messages twice and in disorder, kill workers, and count what came of it."""

from __future__ import annotations

import asyncio
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from crashes.job import Job
from crashes.saga import EVENTS, SAGA_NAME, STEPS, CrashState, Happened, Step
from saga_bus.core import Bus, Delivery, TransportUnavailableError, create_bus
from saga_bus.store import SagaFilter

__all__ = ["Counts", "CrashError", "Watcher", "crash", "verify"]

_IMPORT_ROOT = Path(__file__).parent.parent
_WATCHER = "CrashWatcher"
_AT_ONCE = 50
_POLL = 0.2
_BLOCK = 50  # sagas whose messages are mixed with one another
_DUPLICATES = 0.15
_LIFE = (0.1, 0.6)  # seconds between two kills


class CrashError(AssertionError):
    """Something was lost, or happened twice."""


@dataclass
class Counts:
    """What happened.

    Args:
        sagas: How many sagas there are.
        messages: How many messages were sent to them, without the duplicates.
        duplicates: How many of these were sent once more.
        kills: How often a worker was killed, by its number.
        kills_at_work: How many of these came while sagas were under way.
        handled: How many messages and timers changed a state.
        events: How many events the sagas had to publish.
        events_received: How many arrived, with those that were sent again after a crash.
        seconds: How long it took until all was in.
    """

    sagas: int
    messages: int = 0
    duplicates: int = 0
    kills: Counter[int] = field(default_factory=Counter)
    kills_at_work: int = 0
    handled: int = 0
    events: int = 0
    events_received: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        kills = ", ".join(str(self.kills[number]) for number in sorted(self.kills))
        return (
            f"{self.sagas} sagas of {STEPS} messages, a reminder and a timeout in {self.seconds:.1f} s: "
            f"{self.messages} messages and {self.duplicates} duplicates sent in disorder; workers killed "
            f"{kills} times, {self.kills_at_work} of these at work; {self.handled} state changes, each applied once; "
            f"{self.events} events, each under one id, received {self.events_received} times; none lost"
        )


class _Workers:
    """The worker processes."""

    def __init__(self, job: Job, number: int) -> None:
        self._job = job
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._file = job.folder / "job.pickle"
        self._file.write_bytes(pickle.dumps(job))
        for worker in range(number):
            self.start(worker)

    @property
    def numbers(self) -> list[int]:
        return sorted(self._processes)

    def start(self, worker: int) -> None:
        path = os.pathsep.join([str(_IMPORT_ROOT), *filter(None, sys.path)])
        with (self._job.folder / f"worker-{worker}.err").open("ab") as errors:
            self._processes[worker] = subprocess.Popen(
                [sys.executable, "-m", "crashes.worker", str(self._file)],
                env={**os.environ, "PYTHONPATH": path},
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )

    def kill(self, worker: int) -> None:
        process = self._processes[worker]
        if process.poll() is not None:
            raise CrashError(f"worker {worker} ended by itself with {process.returncode}: {self._words(worker)}")
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self, within: float) -> None:
        self._job.stop_file.touch()
        deadline = time.monotonic() + within
        for worker, process in self._processes.items():
            try:
                code = process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired as error:
                raise CrashError(f"worker {worker} does not stop: {self._words(worker)}") from error
            if code != 0:
                raise CrashError(f"worker {worker} ended with {code}: {self._words(worker)}")

    def kill_all(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()

    def _words(self, worker: int) -> str:
        return (self._job.folder / f"worker-{worker}.err").read_text(encoding="utf-8", errors="replace")[-3000:]


class Watcher:
    """Gets every event that the sagas publish.

    Attributes:
        ids: The ids under which each event came.
        received: How many came.
    """

    def __init__(self) -> None:
        self.ids: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.received = 0

    async def receive(self, delivery: Delivery) -> None:
        """Note an event.

        Args:
            delivery: The event.
        """
        happened = msgspec.json.decode(delivery.envelope.body, type=Happened)
        self.ids[happened.saga, happened.what].add(delivery.envelope.id)
        self.received += 1
        await delivery.ack()


async def crash(
    open_store: Callable[[], Any],
    open_transport: Callable[[], Any],
    dead_letters: Callable[[], Awaitable[Sequence[Any]]],
    folder: Path,
    *,
    sagas: int,
    workers: int = 4,
    kills_each: int = 2,
    concurrency: int = 16,
    within: float = 300.0,
    seed: int | None = None,
    disturb: Callable[[], Awaitable[None]] | None = None,
) -> Counts:
    """Run a crash test.

    Args:
        open_store: Makes a store whose schema is there; see `Job`.
        open_transport: Makes a transport; see `Job`.
        dead_letters: Reads the dead letters of the saga's endpoint.
        folder: An empty folder.
        sagas: How many sagas.
        workers: How many worker processes.
        kills_each: How often each worker is killed, at the least.
        concurrency: How many messages each worker has in hand at once.
        within: The seconds after which the test gives up.
        seed: Of the disorder and the moments of the kills.
        disturb: What else happens meanwhile.

    Returns:
        What happened.

    Raises:
        CrashError: Something was lost, or happened twice.
    """
    chance = random.Random(seed)
    counts = Counts(sagas)
    watcher = Watcher()
    # Whoever watches listens before anything happens.
    watching = open_transport()
    await watching.start()
    await watching.listen(_WATCHER, [Happened.__name__], watcher.receive, concurrency=_AT_ONCE)
    store = open_store()
    store.register(SAGA_NAME, CrashState)
    job = Job(open_store, open_transport, folder, concurrency)
    running = _Workers(job, workers)
    started = time.monotonic()
    try:
        async with asyncio.timeout(within):
            async with asyncio.TaskGroup() as group:
                group.create_task(_send(open_transport, counts, chance))
                group.create_task(_kill(running, store, counts, kills_each, chance))
                if disturb is not None:
                    group.create_task(_run(disturb))
            while await _missing(store, watcher, sagas):  # noqa: ASYNC110 - other processes do the work
                await asyncio.sleep(_POLL)
        counts.seconds = time.monotonic() - started
        running.stop(within=60)
        await verify(store, watcher, counts)
        if letters := await dead_letters():
            raise CrashError(f"{len(letters)} dead letters, the first is {letters[0]}")
    except TimeoutError as error:
        raise CrashError(f"not all is in after {within} s: {await _missing(store, watcher, sagas)}") from error
    finally:
        running.kill_all()
        await watching.close()
        await store.close()
    return counts


async def _run(disturb: Callable[[], Awaitable[None]]) -> None:
    await disturb()


async def _send(open_transport: Callable[[], Any], counts: Counts, chance: random.Random) -> None:
    """Send every message, some of them twice, in disorder among the sagas of one block."""
    async with create_bus(transport=open_transport()) as bus:
        for start in range(0, counts.sagas, _BLOCK):
            block = [
                Step(saga=f"saga-{number}", number=step)
                for number in range(start, min(start + _BLOCK, counts.sagas))
                for step in range(STEPS)
            ]
            counts.messages += len(block)
            again = [message for message in block if chance.random() < _DUPLICATES]
            counts.duplicates += len(again)
            block += again
            chance.shuffle(block)
            for first in range(0, len(block), _AT_ONCE):
                await asyncio.gather(*(_send_one(bus, message) for message in block[first : first + _AT_ONCE]))


async def _send_one(bus: Bus, message: Step) -> None:
    while True:
        try:
            await bus.send(SAGA_NAME, message, message_id=f"{message.saga}/{message.number}")
        except TransportUnavailableError:  # the broker is killed, too
            await asyncio.sleep(_POLL)
        else:
            return


async def _kill(running: _Workers, store: Any, counts: Counts, kills_each: int, chance: random.Random) -> None:
    """Kill each worker so many times, at moments and in an order of chance, while there is work."""
    while not await store.count(SagaFilter(saga_name=SAGA_NAME)):  # noqa: ASYNC110 - other processes begin it
        await asyncio.sleep(_POLL)
    victims = running.numbers * kills_each
    chance.shuffle(victims)
    for victim in victims:
        await asyncio.sleep(chance.uniform(*_LIFE))
        done = await store.count(SagaFilter(saga_name=SAGA_NAME, completed=True))
        running.kill(victim)
        running.start(victim)
        counts.kills[victim] += 1
        counts.kills_at_work += done < counts.sagas


async def _missing(store: Any, watcher: Watcher, sagas: int) -> str:
    """What is still to come, as text; empty when all is in."""
    settled = await store.count(SagaFilter(saga_name=SAGA_NAME, completed=True, outbox_pending=False))
    waiting = await store.count(SagaFilter(saga_name="saga-bus.scheduled"))
    events = sagas * len(EVENTS) - len(watcher.ids)
    if settled == sagas and not waiting and not events:
        return ""
    return f"{sagas - settled} sagas to settle, {waiting} scheduled messages, {events} events"


async def verify(store: Any, watcher: Watcher, counts: Counts) -> None:
    """Check each saga and each event.

    Args:
        store: The store of the sagas.
        watcher: Who got the events.
        counts: What was sent; what is found is added.

    Raises:
        CrashError: Something was lost, or happened twice.
    """
    cursor, seen = None, 0
    while True:
        page = await store.find(SagaFilter(saga_name=SAGA_NAME), limit=500, cursor=cursor)
        for record in page.items:
            seen += 1
            state: CrashState = record.state
            if sorted(state.log) != sorted(EVENTS):
                raise CrashError(f"{state.saga}: {state.log} was applied, not each of {sorted(EVENTS)} once")
            metadata = state.metadata
            if not metadata.is_completed or metadata.outbox or metadata.timeout_expires_at is not None:
                raise CrashError(f"{state.saga}: it did not end right: {metadata}")
            counts.handled += len(state.log)
        cursor = page.cursor
        if cursor is None:
            break
    if seen != counts.sagas:
        raise CrashError(f"{seen} sagas, not {counts.sagas}")
    counts.events = counts.sagas * len(EVENTS)
    counts.events_received = watcher.received
    expected = {(f"saga-{number}", what) for number in range(counts.sagas) for what in EVENTS}
    if watcher.ids.keys() != expected:
        raise CrashError(f"events lost: {sorted(expected - watcher.ids.keys())[:5]}")
    for key, ids in watcher.ids.items():
        if len(ids) != 1:
            raise CrashError(f"{key} was sent under {len(ids)} ids")

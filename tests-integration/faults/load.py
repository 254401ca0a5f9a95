"""Several worker processes hammering a store, and the proof of what must be there afterwards.

Every write carries a token that goes into the saga's state, and is logged before it is sent and when its outcome
is known. So after any fault the states must hold exactly the acknowledged tokens, and perhaps unknown ones.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from faults.job import SAGA_NAME, Job, LoadState
from faults.log import Entry, read_log

__all__ = ["Load", "LoadError", "Verdict", "verify"]

_IMPORT_ROOT = Path(__file__).parent.parent
_POLL = 0.05


class LoadError(AssertionError):
    """A worker failed or hung, or the store lost or invented a write."""


@dataclass(frozen=True)
class Verdict:
    """What a load did.

    Args:
        acknowledged: Writes that were acknowledged, all of which are there.
        unknown: Writes of unknown outcome (those in flight in a killed worker included).
        applied: How many of the unknown ones were applied.
        failed: Writes that were refused or not possible, none of which is there.
        sagas: How many sagas there are.
    """

    acknowledged: int
    unknown: int
    applied: int
    failed: int
    sagas: int


class Load:
    """Worker processes that load and save sagas; use it with ``with``, and ``stop()`` inside.

    Args:
        open_store: Makes a store whose schema is there; see `Job`.
        folder: An empty folder.
        workers: How many processes.
        callers: How many callers each worker has at once.
        own_sagas: How many sagas each caller has for itself.
        shared_sagas: How many sagas all callers fight for.
        patience: The seconds after which an operation hangs, and fails the load.
    """

    def __init__(
        self,
        open_store: Callable[[], Any],
        folder: Path,
        *,
        workers: int = 4,
        callers: int = 8,
        own_sagas: int = 2,
        shared_sagas: int = 2,
        patience: float = 30.0,
    ) -> None:
        self.job = Job(open_store, folder, callers, own_sagas, shared_sagas, patience)
        self.workers = workers
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._killed: set[int] = set()

    def __enter__(self) -> Self:
        (self.job.folder / "job.pickle").write_bytes(pickle.dumps(self.job))
        for number in range(self.workers):
            self.start(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()

    def start(self, number: int) -> None:
        """Start a worker, or start it again after `kill`.

        Args:
            number: From 0.
        """
        path = os.pathsep.join([str(_IMPORT_ROOT), *filter(None, sys.path)])
        with (self.job.folder / f"worker-{number}.err").open("ab") as errors:
            self._processes[number] = subprocess.Popen(
                [sys.executable, "-m", "faults.worker", str(self.job.folder / "job.pickle"), str(number)],
                env={**os.environ, "PYTHONPATH": path},
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )

    def kill(self, number: int) -> None:
        """Kill a worker with SIGKILL.

        Args:
            number: From 0.
        """
        self._processes[number].send_signal(signal.SIGKILL)
        self._processes[number].wait()
        self._killed.add(number)

    def entries(self) -> list[Entry]:
        """What all workers have logged so far."""
        return [entry for path in sorted(self.job.folder.glob("worker-*.log")) for entry in read_log(path)]

    def acknowledged(self) -> int:
        """How many writes have been acknowledged so far."""
        return sum(entry.outcome == "ack" for entry in self.entries())

    def wait_for(self, more: int, timeout: float = 60.0) -> None:
        """Wait until so many more writes have been acknowledged.

        Args:
            more: How many.
            timeout: In seconds.

        Raises:
            LoadError: They were not in time, or a worker failed.
        """
        wanted = self.acknowledged() + more
        deadline = time.monotonic() + timeout
        while self.acknowledged() < wanted:
            for number, process in self._processes.items():
                if process.poll() is not None and number not in self._killed:
                    raise LoadError(f"worker {number} ended early: {self._last_words(number)}")
            if time.monotonic() > deadline:
                raise LoadError(f"{wanted - self.acknowledged()} of {more} writes still to come after {timeout} s")
            time.sleep(_POLL)

    def stop(self) -> None:
        """Let the workers finish what they have in hand, and see that all of them do.

        Raises:
            LoadError: A worker failed or hangs.
        """
        self.job.stop_file.touch()
        deadline = time.monotonic() + self.job.patience + 30
        for number, process in self._processes.items():
            try:
                code = process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired as error:
                raise LoadError(f"worker {number} hangs") from error
            if code != 0 and number not in self._killed:
                raise LoadError(f"worker {number} ended with {code}: {self._last_words(number)}")

    def _last_words(self, number: int) -> str:
        return (self.job.folder / f"worker-{number}.err").read_text(encoding="utf-8", errors="replace")[-3000:]


async def verify(load: Load, store: Any, *, cuts: int) -> Verdict:
    """Check every saga of a stopped load against the logs.

    Args:
        load: The load.
        store: A store on the same place.
        cuts: How many times connections, the server or a worker were cut off. A caller waits for the outcome of
            one write before it sends the next, so a saga of its own has at most one unknown outcome per cut.

    Raises:
        LoadError: A write was lost, applied twice, or applied though it had failed.
    """
    store.register(SAGA_NAME, LoadState)
    outcomes: dict[str, dict[str, str]] = {}
    for entry in load.entries():
        outcomes.setdefault(entry.correlation_id, {})[entry.token] = entry.outcome
    total: Counter[str] = Counter()
    applied = sagas = 0
    for correlation_id, writes in outcomes.items():
        state = await store.get_by_correlation_id(SAGA_NAME, correlation_id)
        acknowledged = {token for token, outcome in writes.items() if outcome == "ack"}
        unknown = {token for token, outcome in writes.items() if outcome in ("unknown", "try")}
        total.update(writes.values())
        if state is None:
            _refuse(bool(acknowledged), f"{correlation_id} is gone, with {len(acknowledged)} acknowledged writes")
            continue
        sagas += 1
        there = set(state.tokens)
        applied += len(there & unknown)
        _refuse(len(there) != len(state.tokens), f"{correlation_id}: a write was applied twice")
        _refuse(bool(acknowledged - there), f"{correlation_id}: lost {sorted(acknowledged - there)}")
        _refuse(
            bool(there - acknowledged - unknown),
            f"{correlation_id}: {sorted(there - acknowledged - unknown)} were applied though they had failed",
        )
        _refuse(
            state.metadata.version != len(state.tokens) - 1,
            f"{correlation_id}: version {state.metadata.version} after {len(state.tokens)} applied writes",
        )
        is_own = correlation_id.startswith("own-")
        _refuse(is_own and len(unknown) > cuts, f"{correlation_id}: {len(unknown)} unknown outcomes in {cuts} cuts")
    return Verdict(total["ack"], total["unknown"] + total["try"], applied, total["fail"], sagas)


def _refuse(wrong: bool, message: str) -> None:  # noqa: FBT001 - reads as a sentence where it is called
    if wrong:
        raise LoadError(message)

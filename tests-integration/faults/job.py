"""What the processes of a load agree on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from saga_bus.store import SagaState

__all__ = ["SAGA_NAME", "Job", "LoadState", "correlation_ids", "log_path"]

SAGA_NAME = "LoadSaga"


class LoadState(SagaState, kw_only=True):
    """A state that remembers every write that was applied to it."""

    tokens: list[str] = msgspec.field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """A load, as its worker processes are told.

    Args:
        open_store: Makes a store; pickled, so a class, a function of an importable module, or a partial of one.
        folder: Where the logs are written.
        callers: How many callers each worker has at once.
        own_sagas: How many sagas each caller has for itself.
        shared_sagas: How many sagas all callers of all workers fight for.
        patience: The seconds after which an operation hangs.
    """

    open_store: Callable[[], Any]
    folder: Path
    callers: int
    own_sagas: int
    shared_sagas: int
    patience: float

    @property
    def stop_file(self) -> Path:
        """The workers stop when this file is there."""
        return self.folder / "stop"


def correlation_ids(job: Job, worker: int, caller: int) -> list[str]:
    """The sagas that a caller writes to, its own ones first."""
    own = [f"own-{worker}-{caller}-{number}" for number in range(job.own_sagas)]
    return own + [f"shared-{number}" for number in range(job.shared_sagas)]


def log_path(job: Job, worker: int) -> Path:
    """The log of a worker."""
    return job.folder / f"worker-{worker}.log"

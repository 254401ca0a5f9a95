"""One worker process: ``python -m crashes.worker JOB-FILE``."""

from __future__ import annotations

import asyncio
import logging
import pickle
import sys
from pathlib import Path

from crashes.job import INTERVALS, Job
from crashes.saga import definition
from saga_bus.core import Bus, Owned, TransportUnavailableError, create_bus

__all__ = ["main"]

_POLL = 0.1


async def _work(job: Job) -> None:
    bus = await _started(job)
    try:
        while not job.stop_file.exists():  # noqa: ASYNC110 - another process makes the file
            await asyncio.sleep(_POLL)
    finally:
        await bus.stop()


async def _started(job: Job) -> Bus:
    """A bus that runs, as soon as its broker does."""
    while True:
        bus = create_bus(
            transport=job.open_transport(),
            store=Owned(job.open_store()),
            sagas=[definition()],
            concurrency=job.concurrency,
            intervals=INTERVALS,
        )
        try:
            await bus.start()
        except TransportUnavailableError:
            await asyncio.sleep(_POLL)
        else:
            return bus


def main(arguments: list[str]) -> None:
    """Work on the job in the file ``arguments[0]`` until it is stopped or killed."""
    logging.basicConfig(level=logging.ERROR)
    job: Job = pickle.loads(Path(arguments[0]).read_bytes())
    asyncio.run(_work(job))


if __name__ == "__main__":
    main(sys.argv[1:])

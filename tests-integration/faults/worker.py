"""One worker process of a load: many callers that load and save sagas until they are told to stop."""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
from pathlib import Path
from typing import Any

from faults.job import SAGA_NAME, Job, LoadState, correlation_ids, log_path
from faults.log import Log
from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
    OutcomeUnknownError,
    StoreUnavailableError,
)

__all__ = ["main"]

_PAUSE = 0.02  # seconds before a store that was not there is tried again


class _Caller:
    def __init__(self, job: Job, store: Any, log: Log, name: str, sagas: list[str]) -> None:
        self.job, self.store, self.log, self.name, self.sagas = job, store, log, name, sagas
        self.count = 0

    async def run(self) -> None:
        while not self.job.stop_file.exists():
            for correlation_id in self.sagas:
                await self._write(correlation_id)

    async def _write(self, correlation_id: str) -> None:
        try:
            async with asyncio.timeout(self.job.patience):
                state = await self.store.get_by_correlation_id(SAGA_NAME, correlation_id)
        except StoreUnavailableError:
            await asyncio.sleep(_PAUSE)
            return
        self.count += 1
        token = f"{self.name}-{self.count}"
        self.log.write("try", correlation_id, token)
        try:
            async with asyncio.timeout(self.job.patience):
                if state is None:
                    state = LoadState(tokens=[token])
                    await self.store.insert(SAGA_NAME, correlation_id, state)
                else:
                    expected = state.metadata.version
                    state.tokens.append(token)
                    state.metadata = state.metadata.next()
                    await self.store.update(SAGA_NAME, state, expected)
        except OutcomeUnknownError:
            self.log.write("unknown", correlation_id, token)
            await asyncio.sleep(_PAUSE)
        except (DuplicateSagaError, ConcurrencyError):
            self.log.write("fail", correlation_id, token)
        except StoreUnavailableError:
            self.log.write("fail", correlation_id, token)
            await asyncio.sleep(_PAUSE)
        else:
            self.log.write("ack", correlation_id, token)


async def _work(job: Job, number: int) -> None:
    log = Log(log_path(job, number))
    store = job.open_store()
    store.register(SAGA_NAME, LoadState)
    callers = [
        _Caller(job, store, log, f"{number}-{caller}-{os.getpid()}", correlation_ids(job, number, caller))
        for caller in range(job.callers)
    ]
    try:
        async with asyncio.TaskGroup() as group:
            for caller in callers:
                group.create_task(caller.run())
    finally:
        await store.close()
        log.close()


def main(arguments: list[str]) -> None:
    """Work on the job in the file ``arguments[0]`` as worker number ``arguments[1]``."""
    job: Job = pickle.loads(Path(arguments[0]).read_bytes())
    asyncio.run(_work(job, int(arguments[1])))


if __name__ == "__main__":
    main(sys.argv[1:])

"""A worker process: takes events from its stdin, handles many at once, acknowledges each on its stdout."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path
from typing import Any

from demo.cases import SAGA_NAME as CASE_SAGA
from demo.cases import CaseEvent, CaseState
from demo.handling import handle
from demo.messages import Failed, Ready, decode_event, encode_line
from demo.orders import SAGA_NAME as ORDER_SAGA
from demo.orders import OrderEvent, OrderState
from saga_bus.store_sqlite import SqliteSagaStore

__all__ = ["main", "open_store"]

_FINISHING = 20.0  # seconds for what is in hand, when no more events come
_LONGEST_REASON = 2_000  # characters


def open_store(database: Path) -> SqliteSagaStore[Any]:
    """The store, as every worker and the final check open it: each commit is on the disk before it is acknowledged.

    Args:
        database: The SQLite file.
    """
    return SqliteSagaStore(str(database), durability="full", state_types={ORDER_SAGA: OrderState, CASE_SAGA: CaseState})


async def _work(database: Path) -> None:
    inbox: asyncio.Queue[OrderEvent | CaseEvent | None] = asyncio.Queue()
    async with open_store(database) as store:
        threading.Thread(target=_read_events, args=(asyncio.get_running_loop(), inbox), daemon=True).start()
        _say(Ready())
        # Every event is a task of its own: the store puts those that save at the same time into one commit.
        async with asyncio.timeout(None) as until_finished, asyncio.TaskGroup() as tasks:
            while (event := await inbox.get()) is not None:
                tasks.create_task(_handle_and_acknowledge(store, event))
            until_finished.reschedule(asyncio.get_running_loop().time() + _FINISHING)


async def _handle_and_acknowledge(store: SqliteSagaStore[Any], event: OrderEvent | CaseEvent) -> None:
    saga_name = CASE_SAGA if isinstance(event, CaseEvent) else ORDER_SAGA
    # Only now, with the change safely stored, the event may be forgotten by whoever sent it.
    _say(await handle(store, saga_name, event))


def _read_events(loop: asyncio.AbstractEventLoop, inbox: asyncio.Queue[OrderEvent | CaseEvent | None]) -> None:
    # The file descriptor itself: a thread that waits in sys.stdin's buffer cannot be left behind at exit.
    # The pipe also ends when the coordinator is gone, however it went.
    rest = b""
    while chunk := os.read(sys.stdin.fileno(), 65_536):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            loop.call_soon_threadsafe(inbox.put_nowait, decode_event(line))
    loop.call_soon_threadsafe(inbox.put_nowait, None)


def _say(message: object) -> None:
    sys.stdout.buffer.write(encode_line(message))
    sys.stdout.buffer.flush()


def main(database: Path) -> int:
    """Run one worker until its stdin ends.

    Args:
        database: The SQLite file.

    Returns:
        The exit code: 0 when every event was handled, else 1.
    """
    try:
        asyncio.run(_work(database))
    except BrokenPipeError:  # nobody is there to be told
        return 1
    except Exception as error:  # noqa: BLE001 - whatever it is, the coordinator has to know
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        if not isinstance(error, BrokenPipeError):
            _say(Failed(f"{type(error).__name__}: {error}"[:_LONGEST_REASON]))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

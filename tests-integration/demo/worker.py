"""A worker process: a bus with both sagas, on the SQLite file and on a transport over its stdin and stdout."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from demo.cases import SAGA_NAME as CASE_SAGA
from demo.cases import CaseState, cases
from demo.messages import Counted, Failed, Ready, encode_line
from demo.orders import SAGA_NAME as ORDER_SAGA
from demo.orders import OrderState, orders
from demo.transport import PipeTransport
from saga_bus.core import CallNext, Handling, Owned, create_bus
from saga_bus.store_sqlite import SqliteSagaStore

__all__ = ["main", "open_store"]

_FINISHING = 20.0  # seconds for what is in hand, when no more events come
_AT_ONCE = 256
_LONGEST_REASON = 2_000  # characters


def open_store(database: Path) -> SqliteSagaStore[Any]:
    """The store, as every worker and the final check open it: each commit is on the disk before it is acknowledged.

    Args:
        database: The SQLite file.
    """
    return SqliteSagaStore(str(database), durability="full", state_types={ORDER_SAGA: OrderState, CASE_SAGA: CaseState})


async def _work(database: Path) -> None:
    transport = PipeTransport(_say)
    bus = create_bus(
        transport=transport,
        store=Owned(open_store(database)),
        sagas=[orders, cases],
        middleware=[_count],
        concurrency=_AT_ONCE,
    )
    async with bus:
        _say(Ready())
        # Two waits: the first has no end, for the coordinator may take its time.
        await transport.stdin_ended()
        async with asyncio.timeout(_FINISHING):
            await transport.finished()


async def _count(handling: Handling, call_next: CallNext) -> None:
    await call_next()
    unavailable = handling.retries - handling.conflicts
    _say(Counted(handling.conflicts, unavailable, repeated=handling.outcome == "duplicate"))


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
        _say(Failed(f"{type(error).__name__}: {error}"[:_LONGEST_REASON]))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

"""What the bus costs beside the bare store: ``python -m bench --bus``.

The same sagas, states and number of callers, twice: once with the two calls that a message needs, a read and a write,
made directly on the store; once as messages that are published on an in-memory transport and handled by a bus, from the
first ``publish`` until the last acknowledgement. The difference of the times per message is the overhead of the bus.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import tempfile
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import msgspec
import psutil
from rich.console import Console
from rich.table import Table

from providers import serve
from saga_bus.core import InMemoryTransport, SagaContext, SagaDefinition, create_bus
from saga_bus.store import SagaState, open_store

__all__ = ["main"]

_STORES = ("memory", "sqlite", "postgres")
_SAGA = "Bench"
_MOST_OVERHEAD = 150.0  # microseconds a message
_MOST_GROWTH = 5.0  # MB between the first quarter of the messages and the last
_WAVE = 1_000  # messages published before the bus is waited for, in the measurement of memory


class Step(msgspec.Struct):
    """A message: it starts a saga or continues it."""

    key: str
    number: int
    last: bool = False


class Done(msgspec.Struct):
    """What the sending saga tells the outside."""

    key: str
    number: int


class State(SagaState, kw_only=True):
    """About 1 KB, as a state of a real saga."""

    key: str
    number: int = 0
    text: str = "x" * 700


@dataclass(frozen=True)
class Figure:
    """One comparison.

    Args:
        store: The store.
        sends: Whether every handler also sends a message.
        callers: Calls, or messages, in hand at once.
        store_per_second: Read-and-write cycles of the bare store.
        bus_per_second: Messages of the bus, end to end.
        overhead: Microseconds that a message takes longer than a cycle.
        work: Microseconds of processor time that it takes more, in all threads of the process; other load on the
            machine blurs it less.
    """

    store: str
    sends: bool
    callers: int
    store_per_second: float
    bus_per_second: float
    overhead: float
    work: float


def definition(*, sends: bool, deletes: bool = False) -> SagaDefinition[State]:
    """The saga that is measured.

    Args:
        sends: Whether its handler sends a message.
        deletes: Whether it is deleted when it ends, so that only what the bus keeps can grow.
    """
    saga = SagaDefinition(_SAGA, State, correlate="key", completed="delete" if deletes else "keep")

    @saga.starts(Step, new=lambda step: State(key=step.key))
    async def step(message: Step, state: State, ctx: SagaContext) -> None:
        state.number = message.number
        if sends:
            ctx.publish(Done(message.key, message.number))
        if message.last:
            ctx.complete()

    return saga


async def bare(store: Any, keys: Sequence[str], steps: int, callers: int) -> tuple[float, float]:
    """The cycles alone.

    Returns:
        The seconds, and those of processor time.
    """
    started, worked = perf_counter(), process_time()
    for number in range(steps):
        waiting = iter(keys)

        async def caller(number: int = number, waiting: Any = waiting) -> None:
            for key in waiting:
                state = await store.get_by_correlation_id(_SAGA, key)
                if state is None:
                    state = State(key=key, number=number)
                    await store.insert(_SAGA, key, state)
                else:
                    state.number = number
                    version = state.metadata.version
                    state.metadata = state.metadata.next()
                    await store.update(_SAGA, state, version)

        await asyncio.gather(*(caller() for _ in range(callers)))
    return perf_counter() - started, process_time() - worked


async def on_bus(store: Any, keys: Sequence[str], steps: int, callers: int, *, sends: bool) -> tuple[float, float]:
    """The same as messages.

    Returns:
        The seconds, and those of processor time.
    """
    transport = InMemoryTransport()

    async def hear(delivery: Any) -> None:
        await delivery.ack()

    bus = create_bus(transport=transport, store=store, sagas=[definition(sends=sends)], concurrency=callers)
    async with bus:
        if sends:
            await transport.listen("outside", ["Done"], hear, concurrency=1)
        started, worked = perf_counter(), process_time()
        for number in range(steps):
            for key in keys:
                await bus.publish(Step(key, number))
            await transport.drain()
        seconds = perf_counter() - started, process_time() - worked
        if bus.counts["handled"] != len(keys) * steps or transport.dead_letters:
            raise RuntimeError(f"the bus did not do its work: {bus.counts}")
    return seconds


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Any]:
    """A store on a fresh place.

    Args:
        url: Its URL.
    """
    options: dict[str, Any] = {"state_types": {_SAGA: State}}
    if url.startswith("postgres"):
        options["table"] = f"bench_{uuid.uuid4().hex[:12]}"
    async with open_store(url, **options) as store:
        if store.capabilities.schema:
            await store.create_schema()
        try:
            yield store
        finally:
            if store.capabilities.schema:
                await store.drop_schema()


async def compare(name: str, url: str, options: argparse.Namespace, *, callers: int, sends: bool) -> Figure:
    """Measure a store without and with a bus, in turns.

    Args:
        name: The store's name.
        url: Its URL.
        options: The command line.
        callers: Calls, or messages, in hand at once.
        sends: Whether every handler also sends a message.
    """
    times: dict[str, list[tuple[float, float]]] = {"bare": [], "bus": []}
    sagas = options.sagas if callers > 1 else max(1, options.sagas // 10)
    messages = sagas * options.steps
    async with opened(url) as store:
        for turn in range(options.repeat):
            for kind in ("bare", "bus") if turn % 2 == 0 else ("bus", "bare"):
                keys = [f"{kind}-{turn}-{number}" for number in range(sagas)]
                gc.collect()
                times[kind].append(
                    await bare(store, keys, options.steps, callers)
                    if kind == "bare"
                    else await on_bus(store, keys, options.steps, callers, sends=sends)
                )
    (cycle, cycle_work), (message, message_work) = (
        (statistics.median(column) / messages for column in zip(*times[kind], strict=True)) for kind in ("bare", "bus")
    )
    overhead, work = (message - cycle) * 1e6, (message_work - cycle_work) * 1e6
    return Figure(name, sends, callers, 1 / cycle, 1 / message, overhead, work)


async def memory(messages: int) -> list[float]:
    """The process's memory while a bus handles messages whose sagas end and are deleted.

    Args:
        messages: How many.

    Returns:
        Megabytes after each quarter.
    """
    process, sizes = psutil.Process(), []
    transport = InMemoryTransport()

    async def hear(delivery: Any) -> None:
        await delivery.ack()

    async with opened("memory://") as store:
        bus = create_bus(transport=transport, store=store, sagas=[definition(sends=True, deletes=True)])
        async with bus:
            await transport.listen("outside", ["Done"], hear, concurrency=1)
            for wave in range(messages // _WAVE):
                for number in range(_WAVE // 2):
                    await bus.publish(Step(f"{wave}-{number}", 0))
                await transport.drain()
                for number in range(_WAVE // 2):
                    await bus.publish(Step(f"{wave}-{number}", 1, last=True))
                await transport.drain()
                if (wave + 1) * _WAVE % (messages // 4) < _WAVE:
                    gc.collect()
                    sizes.append(process.memory_info().rss / 1e6)
            if bus.counts["handled"] != messages // _WAVE * _WAVE or store.size:
                raise RuntimeError(f"the bus did not do its work: {bus.counts}, {store.size} sagas left")
    return sizes


def main(arguments: list[str]) -> int:
    """Measure and print.

    Args:
        arguments: The command line without ``--bus``.

    Returns:
        0, or 1 when a target is missed.
    """
    options = _parser().parse_args(arguments)
    figures = []
    with tempfile.TemporaryDirectory(prefix="saga-bus-bench-") as folder, ExitStack() as stack:
        for name in options.store.split(","):
            url = _url(name, Path(folder), stack)
            figures += [
                asyncio.run(compare(name, url, options, callers=callers, sends=sends))
                for callers in (1, options.callers)
                for sends in (False, True)
            ]
    sizes = [] if options.no_memory else asyncio.run(memory(options.messages))
    if options.json is not None:
        saved = {"figures": [asdict(figure) for figure in figures], "memory_mb": sizes}
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(saved), indent=1) + b"\n")
    return _report(figures, sizes, options.messages)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench --bus", description="Measure the bus beside the bare stores.")
    parser.add_argument("--store", default=",".join(_STORES), help="default: %(default)s")
    parser.add_argument("--sagas", type=int, default=1_000, help="a tenth with 1 in hand (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="messages of a saga (default: %(default)s)")
    parser.add_argument("--callers", type=int, default=64, help="in hand at once, beside 1 (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds, whose median counts (default: %(default)s)")
    parser.add_argument("--messages", type=int, default=200_000, help="for the memory (default: %(default)s)")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save every figure")
    return parser


def _url(name: str, folder: Path, stack: ExitStack) -> str:
    if name == "memory":
        return "memory://"
    if name == "sqlite":
        return f"sqlite:///{folder / 'bench.db'}"
    if name == "postgres":
        return stack.enter_context(serve("postgres"))
    raise SystemExit(f"bench: unknown store {name!r}: of {', '.join(_STORES)}")


def _report(figures: list[Figure], sizes: list[float], messages: int) -> int:
    console = Console(width=None if Console().is_terminal else 100)
    table = Table(
        "Store", "In hand", "Handler sends", "Bare cycles/s", "Bus messages/s", "Overhead, µs", "of processor"
    )
    for figure in figures:
        table.add_row(
            figure.store,
            str(figure.callers),
            "a message" if figure.sends else "nothing",
            f"{figure.store_per_second:,.0f}",
            f"{figure.bus_per_second:,.0f}",
            f"{figure.overhead:,.0f}",
            f"{figure.work:,.0f}",
        )
    console.print(table)
    worst = max((figure.overhead for figure in figures if not figure.sends), default=0.0)
    good = worst <= _MOST_OVERHEAD
    console.print(
        f"Highest overhead of a message whose handler sends nothing: {worst:,.0f} µs (target {_MOST_OVERHEAD:g})"
    )
    if sizes:
        growth = sizes[-1] - sizes[0]
        good &= growth <= _MOST_GROWTH
        steps = ", ".join(f"{size:.1f}" for size in sizes)
        console.print(f"Memory over {messages:,} messages, MB after each quarter: {steps} (growth {growth:+.1f})")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    console.print(f"Load average of the machine: {load:.1f}; {os.cpu_count()} cores")
    return 0 if good else 1

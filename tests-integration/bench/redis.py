"""The Redis store beside redis-benchmark, and beside itself with many sagas: ``python -m bench.redis``.

redis-benchmark is written in C and looks at no answer: it is what the server does for so many clients, one GET of a
value of the same size at a time each. The two take turns on one server.

With ``--growth`` the store and redis-py with few sagas, and both with many, take turns on one server: a machine that
gets slower meanwhile gets slower for all.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import subprocess
import tempfile
import uuid
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter
from urllib.parse import urlsplit

import msgspec

from bench.child import Measure, Ready, Serve, Verify
from bench.measure import Measured
from bench.operations import OPERATIONS, WRITES
from bench.process import Child
from bench.workload import SAGA_NAME, OrderState, correlation_id_of, saga_id_of, state_of
from providers import UnavailableError, serve
from providers.redis import connected
from saga_bus.store_redis import RedisSagaStore

__all__ = ["main"]

_CHUNK = 500
_REQUESTS = 200_000
_WARM_UP = 0.1  # of a round, which the server's time has in it
_SUBJECTS = ("store", "redis-py")

Children = dict[tuple[str, int], Child]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.redis", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--growth", type=int, metavar="ROWS", help="so many sagas beside --rows of them")
    parser.add_argument("--active", type=int, help="with --growth: how many of them are used, the newest")
    parser.add_argument("--operations", default=",".join(OPERATIONS), help="with --growth")
    options = parser.parse_args()
    with serve("redis") as url:
        if options.growth is None:
            asyncio.run(_measure(url, options))
        else:
            os.environ["SAGA_TEST_REDIS_URL"] = url
            _measure_growth(url, options)


async def _measure(url: str, options: argparse.Namespace) -> None:
    prefix = f"bench_{uuid.uuid4().hex[:12]}"
    store: RedisSagaStore[OrderState] = RedisSagaStore(url, prefix=prefix, state_types={SAGA_NAME: OrderState})
    async with store:
        await store.create_schema()
        for first in range(0, options.rows, _CHUNK):
            numbers = range(first, min(first + _CHUNK, options.rows))
            await asyncio.gather(*(store.insert(SAGA_NAME, correlation_id_of(n), state_of(n, 0)) for n in numbers))
        with connected(url) as client:
            document = msgspec.json.encode(state_of(0, 0))
            for number in range(options.rows):
                client.set(f"{prefix}:{number:012}", document)
            try:
                await _rounds(store, url, prefix, options)
            finally:
                for number in range(options.rows):
                    client.delete(f"{prefix}:{number:012}")
                await store.drop_schema()


async def _rounds(store: RedisSagaStore[OrderState], url: str, prefix: str, options: argparse.Namespace) -> None:
    rates: dict[str, list[float]] = {"by id": [], "by correlation id": [], "redis-benchmark": []}
    for _ in range(options.repeat):
        rates["by id"].append(await _drive(lambda n: store.get_by_id(SAGA_NAME, saga_id_of(n)), options))
        rates["by correlation id"].append(
            await _drive(lambda n: store.get_by_correlation_id(SAGA_NAME, correlation_id_of(n)), options)
        )
        rates["redis-benchmark"].append(await asyncio.to_thread(_redis_benchmark, url, prefix, options))
    print(f"gets a second, {options.callers} callers, {options.rows} sagas, median of {options.repeat} rounds")
    for name, found in rates.items():
        ratio = median(own / its for own, its in zip(found, rates["redis-benchmark"], strict=True))
        print(f"  {name:18} {median(found):>9,.0f}   {ratio:.2f} x redis-benchmark")


async def _drive(get, options: argparse.Namespace) -> float:  # type: ignore[no-untyped-def]  # noqa: ANN001
    deadline = perf_counter() + options.seconds
    done = 0

    async def caller(number: int) -> None:
        nonlocal done
        chance = random.Random(number).random
        while perf_counter() < deadline:
            number = int(chance() * options.rows)
            if (await get(number)).metadata.saga_id != saga_id_of(number):
                raise LookupError("a wrong saga")
            done += 1

    started = perf_counter()
    await asyncio.gather(*(caller(number) for number in range(options.callers)))
    return done / (perf_counter() - started)


def _redis_benchmark(url: str, prefix: str, options: argparse.Namespace) -> float:
    program = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    if program is None:
        raise UnavailableError("redis-benchmark is not here; Debian has it in redis-tools")
    place = urlsplit(url)
    command = [program, "-h", str(place.hostname), "-p", str(place.port or 6379), "-c", str(options.callers)]
    command += ["-n", str(_REQUESTS), "-r", str(options.rows), "--csv", "GET", f"{prefix}:__rand_int__"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    return float(done.stdout.splitlines()[-1].split(",")[1].strip('"'))


def _measure_growth(url: str, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="saga-bus-bench-") as folder, ExitStack() as stack:
        children: Children = {}
        (Path(folder) / "empty").mkdir()
        for rows in (options.rows, options.growth):
            for subject in _SUBJECTS:
                before = _used_memory(url)
                place = Path(folder) / f"{subject}-{rows}"
                job = Serve("redis", subject, "default", str(place), rows, min(rows, options.active or rows))
                child = children[subject, rows] = stack.enter_context(Child(job, Path(folder) / "empty"))
                child.wait_until_open()
                print(f"{subject}: {rows:,} sagas of {(_used_memory(url) - before) / rows:,.0f} bytes", flush=True)
        few, many = f"{options.rows:,}", f"{options.growth:,}"
        print(f"{options.callers} callers; a second, and microseconds of the server's processor for each")
        print(f"{'':34}{few:>10} {many:>10} {'ratio':>6} {few:>10} {many:>10}   store over redis-py")
        for operation in options.operations.split(","):
            _measure_operation(url, operation, children, options)


def _measure_operation(url: str, operation: str, children: Children, options: argparse.Namespace) -> None:
    rounds: dict[tuple[str, int], list[tuple[float, float]]] = {key: [] for key in children}
    for turn in range(options.repeat):
        for key in list(children)[:: 1 if turn % 2 else -1]:
            before = _server_seconds(url)
            measured = children[key].ask(Measure(operation, options.callers, options.seconds, None), Measured)
            seconds = (_server_seconds(url) - before) / (1 + _WARM_UP)
            rounds[key].append((measured.per_second, seconds / measured.operations * 1e6))
    for subject in _SUBJECTS:
        few, many = rounds[subject, options.rows], rounds[subject, options.growth]
        figures = [median(figure) for rows in (few, many) for figure in zip(*rows, strict=True)]
        ratio = median(its[0] / own[0] for own, its in zip(few, many, strict=True))
        line = f"{operation:23} {subject:10}{figures[0]:>10,.0f} {figures[2]:>10,.0f} {ratio:>6.2f}"
        line += f" {figures[1]:>10,.0f} {figures[3]:>10,.0f}"
        if subject == "store":
            for rows in (options.rows, options.growth):
                both = zip(rounds["store", rows], rounds["redis-py", rows], strict=True)
                line += f" {median(own[0] / its[0] for own, its in both):>7.2f}"
        print(line, flush=True)
    if operation in WRITES:
        for child in children.values():
            child.ask(Verify(), Ready)


def _used_memory(url: str) -> int:
    with connected(url) as client:
        return int(client.info("memory")["used_memory"])


def _server_seconds(url: str) -> float:
    """The processor time that the server has used."""
    with connected(url) as client:
        found = client.info("cpu")
        return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])


if __name__ == "__main__":
    main()

"""The Redis store beside redis-benchmark: ``python -m bench.redis``.

redis-benchmark is written in C and looks at no answer: it is what the server does for so many clients, one GET of a
value of the same size at a time each. The two take turns on one server.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import subprocess
import uuid
from statistics import median
from time import perf_counter
from urllib.parse import urlsplit

import msgspec

from bench.workload import SAGA_NAME, OrderState, correlation_id_of, saga_id_of, state_of
from providers import UnavailableError, serve
from providers.redis import connected
from saga_bus.store_redis import RedisSagaStore

__all__ = ["main"]

_CHUNK = 500
_REQUESTS = 200_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.redis", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with serve("redis") as url:
        asyncio.run(_measure(url, options))


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


if __name__ == "__main__":
    main()

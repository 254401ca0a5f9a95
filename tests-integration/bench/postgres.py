"""The PostgreSQL store beside pgbench, and beside itself while a row is locked: ``python -m bench.postgres``.

pgbench is written in C, reads no answer and makes no JSON: it is what the server does for so many clients, with one
prepared statement each. They take turns, on a table each of the same server.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from urllib.parse import urlsplit

import asyncpg  # type: ignore[import-untyped]
import msgspec

from bench.backends.postgres import database_url, dropped, fill
from bench.measure import percentile
from bench.workload import SAGA_NAME, OrderState, saga_id_of, state_of
from providers import serve
from providers.postgres import find_program
from saga_bus.store_postgres import PostgresSagaStore

__all__ = ["main"]

_DATABASE = "bench_store"
_PGBENCH_DATABASE = "bench_pgbench"
_TABLE = "saga_instances"
_RATE = re.compile(r"tps = ([\d.]+) \(without initial connection time\)")
_LOCKED = 7


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.postgres", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with serve("postgres") as url:
        os.environ["SAGA_TEST_POSTGRES_URL"] = url
        asyncio.run(_measure(options))


async def _measure(options: argparse.Namespace) -> None:
    for name in (_DATABASE, _PGBENCH_DATABASE):
        await fill(name, options.rows)
    try:
        opened: PostgresSagaStore[OrderState] = PostgresSagaStore(
            database_url(_DATABASE), table=_TABLE, state_types={SAGA_NAME: OrderState}
        )
        async with opened as store:
            for operation in ("get", "cycle"):
                rates: dict[str, list[float]] = {"store": [], "pgbench": []}
                for _ in range(options.repeat):
                    rates["store"].append(len(await _drive(store, operation, options)) / options.seconds)
                    rates["pgbench"].append(await asyncio.to_thread(_pgbench, operation, options))
                pairs = zip(rates["store"], rates["pgbench"], strict=True)
                print(
                    f"{operation:6} {options.callers} callers: store {median(rates['store']):>9,.0f}/s   "
                    f"pgbench {median(rates['pgbench']):>9,.0f}/s   "
                    f"ratio {median(own / its for own, its in pairs):.2f}"
                )
            # The last one: while a transaction is open, no dead row can be removed, so that the table grows.
            await _locked_row(store, options)
    finally:
        for name in (_DATABASE, _PGBENCH_DATABASE):
            await dropped(name)


async def _drive(store: PostgresSagaStore[OrderState], operation: str, options: argparse.Namespace) -> list[float]:
    """The latencies of callers that each have sagas of their own, but never the locked one."""
    latencies: list[float] = []
    deadline = perf_counter() + options.seconds

    async def caller(number: int) -> None:
        chance = random.Random(number)
        own = [each for each in range(number, options.rows, options.callers) if each != _LOCKED]
        while (before := perf_counter()) < deadline:
            state = await store.get_by_id(SAGA_NAME, saga_id_of(chance.choice(own)))
            if state is None:
                raise LookupError("a saga is missing")
            if operation == "cycle":
                version = state.metadata.version
                state.metadata = state.metadata.next()
                await store.update(SAGA_NAME, state, version)
            latencies.append(perf_counter() - before)

    await asyncio.gather(*(caller(number) for number in range(options.callers)))
    return sorted(latencies)


def _pgbench(operation: str, options: argparse.Namespace) -> float:
    with tempfile.TemporaryDirectory(prefix="saga-bus-pgbench-") as folder:
        script = Path(folder) / "script.sql"
        # The ids of the orders end with their number in hexadecimal, which pgbench itself cannot write.
        where = f"saga_name = '{SAGA_NAME}' AND saga_id = :prefix || lpad(to_hex(:n::int), 12, '0');"
        lines = [f"\\set n random(0, {options.rows - 1})", f"SELECT state FROM {_TABLE} WHERE {where}"]
        if operation == "cycle":
            save = "version = version + 1, updated_at = now(), state = :document::text::jsonb"
            lines.append(f"UPDATE {_TABLE} SET {save} WHERE {where}")
        script.write_text("\n".join(lines) + "\n", encoding="utf-8")
        target = urlsplit(os.environ["SAGA_TEST_POSTGRES_URL"])
        settings = {
            "client": options.callers,
            "jobs": 2,
            "time": max(1, round(options.seconds)),
            "file": script,
            "host": target.hostname,
            "port": target.port,
            "username": target.username,
        }
        command = [find_program("pgbench"), "--no-vacuum", "--protocol=prepared", f"-Dprefix={saga_id_of(0)[:-12]}"]
        command += [f"-Ddocument={msgspec.json.encode(state_of(0, 0)).decode()}"]
        command += [f"--{name}={value}" for name, value in settings.items()]
        done = subprocess.run([*command, _PGBENCH_DATABASE], check=False, capture_output=True, text=True)
        found = _RATE.search(done.stdout)
        if found is None:
            raise LookupError(done.stdout + done.stderr)
        return float(found[1])


async def _locked_row(store: PostgresSagaStore[OrderState], options: argparse.Namespace) -> None:
    """The latencies of other sagas' cycles with and without a row locked elsewhere and a caller that waits for it."""
    rounds: dict[str, list[float]] = {"free": [], "locked": []}
    connection = await asyncpg.connect(database_url(_DATABASE))
    for _ in range(options.repeat):
        rounds["free"].append(percentile(await _drive(store, "cycle", options), 0.99))
        async with connection.transaction():
            version = await connection.fetchval(
                f"SELECT version FROM {_TABLE} WHERE saga_id = $1 FOR UPDATE", saga_id_of(_LOCKED)
            )
            waiting = asyncio.ensure_future(store.update(SAGA_NAME, state_of(_LOCKED, version + 1), version))
            rounds["locked"].append(percentile(await _drive(store, "cycle", options), 0.99))
            if waiting.done():
                raise LookupError("the locked saga was updated")
        await waiting
    await connection.close()
    free, locked = median(rounds["free"]), median(rounds["locked"])
    print(
        f"p99 of a cycle, {options.callers} callers: {free * 1e3:.1f} ms, with a row locked elsewhere "
        f"{locked * 1e3:.1f} ms, ratio {locked / free:.2f}"
    )


if __name__ == "__main__":
    main()

"""The PostgreSQL store beside pgbench: ``python -m bench.postgres``.

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

import msgspec

from bench.backends.postgres import database_url, dropped, fill
from bench.workload import SAGA_NAME, OrderState, saga_id_of, state_of
from providers import serve
from providers.postgres import find_program
from saga_bus.store_postgres import PostgresSagaStore

__all__ = ["main"]

_DATABASE = "bench_store"
_PGBENCH_DATABASE = "bench_pgbench"
_TABLE = "saga_instances"
_RATE = re.compile(r"tps = ([\d.]+) \(without initial connection time\)")


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
                    rates["store"].append(await _drive(store, operation, options))
                    rates["pgbench"].append(await asyncio.to_thread(_pgbench, operation, options))
                pairs = zip(rates["store"], rates["pgbench"], strict=True)
                print(
                    f"{operation:6} {options.callers} callers: store {median(rates['store']):>9,.0f}/s   "
                    f"pgbench {median(rates['pgbench']):>9,.0f}/s   "
                    f"ratio {median(own / its for own, its in pairs):.2f}"
                )
    finally:
        for name in (_DATABASE, _PGBENCH_DATABASE):
            await dropped(name)


async def _drive(store: PostgresSagaStore[OrderState], operation: str, options: argparse.Namespace) -> float:
    """The rate of callers that each have sagas of their own."""
    done = 0
    started = perf_counter()

    async def caller(number: int) -> None:
        nonlocal done
        chance = random.Random(number)
        own = range(number, options.rows, options.callers)
        while perf_counter() < started + options.seconds:
            state = await store.get_by_id(SAGA_NAME, saga_id_of(chance.choice(own)))
            if state is None:
                raise LookupError("a saga is missing")
            if operation == "cycle":
                version = state.metadata.version
                state.metadata = state.metadata.next()
                await store.update(SAGA_NAME, state, version)
            done += 1

    await asyncio.gather(*(caller(number) for number in range(options.callers)))
    return done / (perf_counter() - started)


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


if __name__ == "__main__":
    main()

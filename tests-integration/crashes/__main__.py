"""``python -m crashes STORE BROKER [--sagas N] [--kills N]``: one crash test of any size; prints the counts."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

from brokers import BROKERS, serve_broker
from crashes.crash import crash
from crashes.places import STORES, crash_place
from providers import serve

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one crash test.

    Args:
        arguments: The command line; the program's own when left out.
    """
    parser = argparse.ArgumentParser(prog="crashes", description="Kill a bus's workers at random, and count.")
    parser.add_argument("store", choices=sorted(STORES))
    parser.add_argument("broker", choices=sorted(BROKERS))
    parser.add_argument("--sagas", type=int, default=2_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=8, help="how often each worker is killed (8)")
    parser.add_argument("--seed", type=int, help="of the disorder and the moments of the kills")
    options = parser.parse_args(arguments)

    async def run(store_url: str, broker_url: str, folder: Path) -> None:
        async with crash_place(options.store, store_url, broker_url, folder) as place:
            counts = await crash(
                place.open_store,
                place.open_transport,
                place.dead_letters,
                folder,
                sagas=options.sagas,
                workers=options.workers,
                kills_each=options.kills,
                seed=options.seed,
            )
        print(f"{options.store} and {options.broker}: {counts}")

    with (
        tempfile.TemporaryDirectory(prefix="saga-bus-crash-") as folder,
        serve(options.store) as store_url,
        serve_broker(options.broker) as broker_url,
    ):
        asyncio.run(run(store_url, broker_url, Path(folder)))


if __name__ == "__main__":
    main()

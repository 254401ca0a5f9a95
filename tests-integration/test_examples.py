"""The examples in docs/examples are programs: each runs, on every store that it is for, with the same outcome."""

import asyncio
import subprocess
import sys
import uuid
from urllib.parse import urlsplit

import asyncpg
import pytest

from saga_bus.store import open_store
from tools.workspace import ROOT

EXAMPLES = ROOT / "docs" / "examples"


def run(example, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / example), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def url(request, tmp_path):
    if request.param == "memory":
        yield "memory://"
    elif request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'orders.db'}"
    else:
        # The example makes the store's usual table; it gets a database of its own, so that it can be run again.
        server = request.getfixturevalue("databases").url("postgres")
        yield from postgres_database(server)


def postgres_database(server):
    name = f"example_{uuid.uuid4().hex[:12]}"

    async def execute(statement):
        connection = await asyncpg.connect(server)
        await connection.execute(statement)
        await connection.close()

    asyncio.run(execute(f"CREATE DATABASE {name}"))
    yield urlsplit(server)._replace(path=f"/{name}").geturl()
    asyncio.run(execute(f"DROP DATABASE {name}"))


def test_every_example_is_run_here():
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == ["orders.py"]


def test_the_order_example(url):
    assert run("orders.py", url) == "order 1: shipped\norder 2: cancelled\norder 3: shipped\n"
    if not url.startswith("memory"):
        assert asyncio.run(stored(url)) == {"1": "shipped", "2": "cancelled", "3": "shipped"}


async def stored(url):
    async with open_store(url) as store:
        assert await store.get_by_correlation_id("PaymentSaga", "1") is None
        return {
            order_id: (await store.get_by_correlation_id("OrderSaga", order_id)).data["status"]
            for order_id in ("1", "2", "3")
        }

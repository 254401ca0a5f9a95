"""The examples of the documentation run as they stand, on a client that is generated as ``prisma``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from providers.prisma import engine_environment, run_prisma
from saga_bus.store_prisma import get_schema_prisma

PACKAGE = Path(__file__).parents[1]
DOCS = PACKAGE.parents[1] / "docs" / "stores" / "prisma.md"


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def generated(databases, tmp_path_factory):
    """A folder with the documentation's client in it."""
    databases.url("prisma")
    (schema,) = blocks(DOCS, "prisma")
    folder = tmp_path_factory.mktemp("documented")
    # The distribution itself would be generated into otherwise, for everybody who uses this environment.
    schema = schema.replace('interface = "asyncio"', 'interface = "asyncio"\n  output    = "./prisma"')
    (folder / "schema.prisma").write_text(schema, encoding="utf-8")
    done = run_prisma("generate", "--schema", "schema.prisma", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def run(folder, code):
    (folder / "shop.db").unlink(missing_ok=True)
    (folder / "example.py").write_text(code, encoding="utf-8")
    environment = {**os.environ, **engine_environment(), "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=folder, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [PACKAGE / "README.md", DOCS], ids=lambda page: page.name)
def test_the_examples_of_a_page_run(generated, page):
    run(generated, "\n".join(blocks(page, "py")))


def test_the_documented_model_is_the_one_that_is_returned():
    assert get_schema_prisma(provider="sqlite") in blocks(DOCS, "prisma")[0]


BY_URL = """
import asyncio
from saga_bus.store import InvalidSagaError, SagaState, SchemaError, open_store

async def main():
    async with open_store("prisma://") as store:
        await store.create_schema()
        orders = store.repository("OrderSaga", SagaState)
        await orders.insert("order-1", SagaState())
        client = store._prisma
        assert client.is_connected()
    assert not client.is_connected()
    lazy = open_store("prisma://sagainstance")  # connected on first use, as it is its own
    assert await lazy.count(__import__("saga_bus.store").store.SagaFilter()) == 1
    await lazy.close()
    try:
        await open_store("prisma://nothing").ping()
    except SchemaError as error:
        assert "'nothing'" in str(error)
    else:
        raise SystemExit("a model that is not there")
    for url in ("prisma://a/b", "prisma://?x=1", "prisma://a-b", "prisma://u:s3cret@h/"):
        try:
            open_store(url)
        except InvalidSagaError as error:
            assert "s3cret" not in str(error)
        else:
            raise SystemExit(url)

asyncio.run(main())
"""


def test_a_store_by_its_url(generated):
    run(generated, BY_URL)

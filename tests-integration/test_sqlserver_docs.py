"""The examples for SQL Server run as they stand, on the server that the tests have, in a database of their own."""

import asyncio
import os
import subprocess
import sys
from contextlib import closing

import pytest

from providers.sqlserver import connected
from saga_bus.store import SagaState
from saga_bus.store_sqlserver import SqlServerSagaStore
from saga_bus.store_sqlserver._location import parse_location
from sqlserver_helpers import changeable, changed, is_babelfish, own_database
from test_docs import blocks
from tools.workspace import ROOT

README = ROOT / "packages" / "store-sqlserver" / "README.md"
PAGE = ROOT / "docs" / "stores" / "sqlserver.md"
STORED = "SELECT correlation_id, version, JSON_VALUE(state, '$.status') FROM dbo.saga_instances"
# A caller of the page's `order_with_invoice`: a saga that is there already takes the invoice back with it.
TWICE = """
from contextlib import closing

import pyodbc
from saga_bus.store import DuplicateSagaError


async def twice(url: str, connection_string: str) -> None:
    async with SqlServerSagaStore(url, state_types={"OrderSaga": OrderState}) as store:
        with closing(pyodbc.connect(connection_string)) as connection:
            await order_with_invoice(store, connection)
            assert connection.execute("DELETE FROM invoices").rowcount == 1
            connection.commit()
            try:
                await order_with_invoice(store, connection)
            except DuplicateSagaError:
                return
    raise AssertionError("the saga was inserted twice")


asyncio.run(twice(os.environ["SAGAS_URL"], os.environ["CONNECTION_STRING"]))
"""


@pytest.fixture
def url(databases):
    found = changeable(databases.url("sqlserver"))
    with own_database(found) as database:
        yield changed(found, path=f"/{database}")


def code_of(page, language):
    return "\n".join("\n".join(block.lines) for block in blocks(page.read_text("utf-8")) if block.language == language)


def run_examples(code, url, folder):
    assert "SAGAS_URL" in code
    (folder / "example.py").write_text(code + "\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "example.py"],
        cwd=folder,
        env={**os.environ, "SAGAS_URL": url, "CONNECTION_STRING": parse_location(url).connection_string()},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def rows(connection, sql):
    with closing(connection.execute(sql)) as cursor:
        return sorted(tuple(row) for row in cursor.fetchall())


def test_the_readme(url, tmp_path):
    run_examples(code_of(README, "python"), url, tmp_path)
    with connected(url) as connection:
        assert rows(connection, STORED) == [("order-1", 1, "paid")]


def test_the_page(url, tmp_path):
    with connected(url) as connection:
        connection.execute("CREATE TABLE invoices (order_id NVARCHAR(100) NOT NULL PRIMARY KEY)")
        run_examples(code_of(PAGE, "python") + TWICE, url, tmp_path)
        assert rows(connection, STORED) == [("order-1", 0, "pending"), ("order-2", 0, "pending")]
        assert rows(connection, "SELECT order_id FROM invoices") == []


class OrderState(SagaState, kw_only=True):
    customer: str
    status: str = "pending"


async def work_on(url):
    """Sagas in groups, on a table to which the page's statements have added a column with an index."""
    async with SqlServerSagaStore(url, state_types={"OrderSaga": OrderState}) as store:
        states = [OrderState(customer="bob") for _ in range(6)]
        await asyncio.gather(*(store.insert("OrderSaga", f"bobs-{n}", each) for n, each in enumerate(states)))
        states = [OrderState(metadata=each.metadata.next(), customer="eve", status="paid") for each in states]
        await asyncio.gather(*(store.update("OrderSaga", each, 0) for each in states))
        await store.check_schema()


def test_the_sql_of_the_page(url, tmp_path):
    if is_babelfish(url):
        pytest.skip("Babelfish has not all functions for JSON")
    run_examples(code_of(PAGE, "python"), url, tmp_path)
    select, *changes = (statement for statement in code_of(PAGE, "sql").split(";") if statement.strip())
    assert len(changes) == 2
    with connected(url) as connection:
        assert rows(connection, select) == [("order-1", "pending")]
        for change in changes:
            connection.execute(change).close()
        asyncio.run(work_on(url))
        assert rows(connection, select) == [("order-1", "pending")]
        found = rows(connection, "SELECT customer, COUNT(*) FROM dbo.saga_instances GROUP BY customer")
        assert found == [("ada", 1), ("eve", 6)]

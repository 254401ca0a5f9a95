"""What only a SQL Server can show: locks, deadlocks, killed sessions, rights, cut connections, many processes."""

import asyncio
import contextlib
import functools
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit
from uuid import uuid4

import pytest

from faults.load import Load, verify
from faults.proxy import Proxy
from providers.sqlserver import connected
from saga_bus.store import (
    DuplicateSagaError,
    OutcomeUnknownError,
    SagaFilter,
    SagaState,
    SagaStoreError,
    SchemaError,
    StoreUnavailableError,
)
from saga_bus.store_sqlserver import SqlServerSagaStore, create_schema, drop_schema
from saga_bus.store_sqlserver._odbc import load
from sqlserver_helpers import NAME, holding, is_babelfish, opened, state

INSERT, UPDATE, SELECT = (word.encode("utf-16-le") for word in ("INSERT INTO", "UPDATE [", "SELECT state"))


@pytest.fixture
def url(databases):
    found = databases.url("sqlserver")
    if not found.startswith(("mssql://", "sqlserver://")):
        pytest.skip("these tests change the URL, and SAGA_TEST_SQLSERVER_URL is a connection string")
    return found


@pytest.fixture
def table(url):
    name = f"t_{uuid4().hex[:12]}"
    yield name
    asyncio.run(drop_schema(url, table=name))


def changed(url, *, netloc=None, **options):
    """The URL with other options, or with another host."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query)) | options
    return parts._replace(netloc=netloc or parts.netloc, query=urlencode(query, quote_via=quote)).geturl()


def test_a_write_to_a_locked_saga_ends_with_its_timeout(url, table):
    async def run():
        async with opened(url, table, "a", "b", command_timeout=1) as store:
            with holding(url, table, "a"):
                with pytest.raises(StoreUnavailableError):
                    await store.update(NAME, state("a", 1), 0)
                await store.update(NAME, state("b", 1), 0)
            found = await store.get_by_id(NAME, "a")
            assert found.metadata.version == 0

    asyncio.run(run())


def test_a_lock_timeout_is_unavailable(url, table):
    async def run():
        async with opened(url, table, "a") as store:
            with connected(url) as connection, holding(url, table, "a"):
                connection.execute("SET LOCK_TIMEOUT 100")
                connection.autocommit = False
                with pytest.raises(StoreUnavailableError):
                    await store.bind(connection).update(NAME, state("a", 1), 0)
                connection.rollback()

    asyncio.run(run())


def test_a_deadlock_is_told_to_the_caller_of_the_transaction(url, table):
    async def run():
        async with opened(url, table, "a", "b") as store:
            with connected(url) as one, connected(url) as other:
                one.autocommit = other.autocommit = False
                first, second = store.bind(one), store.bind(other)
                await first.update(NAME, state("a", 1), 0)
                await second.update(NAME, state("b", 1), 0)
                outcomes = await asyncio.gather(
                    first.update(NAME, state("b", 1), 0), second.update(NAME, state("a", 1), 0), return_exceptions=True
                )
                (victim,) = [outcome for outcome in outcomes if outcome is not None]
                assert type(victim) is StoreUnavailableError
                assert victim.retryable
                bound = (first, second)[outcomes.index(victim)]
                with pytest.raises(StoreUnavailableError, match="bind again"):
                    await bound.insert(NAME, "order-c", state("c"))
                for each in (one, other):
                    with contextlib.suppress(load().Error):  # FreeTDS: there is no transaction to roll back
                        each.rollback()

    asyncio.run(run())


def test_a_duplicate_leaves_the_transaction_usable(url, table):
    async def run():
        async with opened(url, table, "a") as store:
            with connected(url) as connection:
                connection.autocommit = False
                bound = store.bind(connection)
                for saga_id, correlation_id, conflict in (("a", "new", "saga_id"), ("b", "order-a", "correlation_id")):
                    with pytest.raises(DuplicateSagaError) as raised:
                        await bound.insert(NAME, correlation_id, state(saga_id))
                    assert raised.value.conflict == conflict
                await bound.insert(NAME, "order-c", state("c"))
                connection.commit()
            assert await store.get_by_id(NAME, "c") is not None
            assert await store.get_by_id(NAME, "b") is None

    asyncio.run(run())


def test_with_xact_abort_a_duplicate_ends_the_transaction(url, table):
    async def run():
        async with opened(url, table) as store:
            with connected(url) as connection:
                connection.execute("SET XACT_ABORT ON")
                connection.autocommit = False
                bound = store.bind(connection)
                await bound.insert(NAME, "order-a", state("a"))
                with pytest.raises(DuplicateSagaError):
                    await bound.insert(NAME, "order-a", state("b"))
                with pytest.raises(StoreUnavailableError, match="bind again"):
                    await bound.get_by_id(NAME, "a")
                with contextlib.suppress(load().Error):  # FreeTDS: there is no transaction to commit
                    connection.commit()
            assert await store.count(SagaFilter()) == 0

    asyncio.run(run())


def test_a_killed_session_is_replaced(url, table):
    async def run():
        application = f"killed-{uuid4().hex[:8]}"
        async with opened(changed(url, APP=application), table, "a", pool_size=1) as store:
            with connected(url) as admin:
                sql = "SELECT session_id FROM sys.dm_exec_sessions WHERE program_name = ?"
                sessions = [number for (number,) in admin.execute(sql, application).fetchall()]
                assert len(sessions) == 1
                try:
                    admin.execute(f"KILL {sessions[0]}")
                except load().Error as error:
                    pytest.skip(f"this server kills no sessions: {error}")
            await asyncio.sleep(0.5)
            assert (await store.get_by_id(NAME, "a")).metadata.version == 0
            await store.update(NAME, state("a", 1), 0)

    asyncio.run(run())


def test_a_wrong_password_is_not_shown(url, table):
    parts = urlsplit(url)
    wrong = changed(url, netloc=f"{parts.username}:gehe1m-wrong@{parts.hostname}:{parts.port or 1433}")

    async def run():
        with pytest.raises(SagaStoreError) as raised:
            async with SqlServerSagaStore(wrong, table=table):
                pass
        assert not raised.value.retryable
        assert "gehe1m" not in f"{raised.value}{raised.value.__cause__}"

    asyncio.run(run())


def test_a_missing_table_says_what_to_run(url, table):
    async def run():
        async with SqlServerSagaStore(url, table=table, state_types={NAME: SagaState}) as store:
            with pytest.raises(SchemaError, match=r"create_schema\(\)"):
                await store.get_by_id(NAME, "a")
            with pytest.raises(SchemaError, match=r"create_schema\(\)"):
                await store.check_schema()

    asyncio.run(run())


def test_a_login_without_the_right_to_create(url, table):
    user, password = f"u_{uuid4().hex[:8]}", "Only-4-tests"
    parts = urlsplit(url)
    theirs = changed(url, netloc=f"{user}:{password}@{parts.hostname}:{parts.port or 1433}")

    async def run():
        async with opened(url, table, "a"):
            pass
        with connected(url) as admin:
            admin.execute(f"CREATE LOGIN {user} WITH PASSWORD = '{password}'")
            admin.execute(f"CREATE USER {user} FOR LOGIN {user}")
            for each in (table, "saga_bus_schema"):
                admin.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON dbo.{each} TO {user}")
        try:
            async with SqlServerSagaStore(theirs, table=table, state_types={NAME: SagaState}) as store:
                await store.check_schema()
                await store.insert(NAME, "order-b", state("b"))
                await store.update(NAME, state("b", 1), 0)
                assert await store.count(SagaFilter()) == 2
                await store.delete(NAME, "b")
                assert (await store.ping()).seconds > 0
            async with SqlServerSagaStore(theirs, table=f"{table}_new") as store:
                with pytest.raises(SagaStoreError, match="permission"):
                    await store.create_schema()
        finally:
            with connected(url) as admin:
                admin.execute(f"DROP USER {user}")
                admin.execute(f"DROP LOGIN {user}")

    asyncio.run(run())


def test_ten_processes_create_the_schema_at_once(url, table):
    program = (
        "import asyncio, sys; from saga_bus.store_sqlserver import create_schema; "
        "asyncio.run(create_schema(sys.argv[1], table=sys.argv[2]))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program, url, table]) for _ in range(10)]
    assert [process.wait(120) for process in processes] == [0] * 10


@pytest.mark.parametrize("name", ["order", "Mixed Case", "it's ]quoted[", "{brackets}?", "n" * 60])
def test_odd_names(url, name):
    if "]" in name and is_babelfish(url):
        pytest.skip("Babelfish takes no such name")

    async def run():
        async with opened(url, name, "a") as store:
            try:
                assert await store.get_by_id(NAME, "a") is not None
                await store.check_schema()
            finally:
                await store.drop_schema()

    asyncio.run(run())


@asynccontextmanager
async def through_a_proxy(url, table, **options):
    parts = urlsplit(url)
    async with Proxy(parts.hostname, parts.port or 1433) as proxy:
        credentials = parts.netloc.rpartition("@")[0]
        # Requests are looked at, so they must not be encrypted.
        proxied = changed(url, netloc=f"{credentials}@{proxy.host}:{proxy.port}", encrypt="no")
        async with opened(proxied, table, **options) as store:
            yield proxy, store


def test_a_write_that_never_arrived(url, table):
    async def run():
        async with through_a_proxy(url, table) as (proxy, store):
            proxy.cut_before_request(INSERT)
            with pytest.raises(StoreUnavailableError):
                await store.insert(NAME, "order-a", state("a"))
            await proxy.fired()
            assert await store.get_by_id(NAME, "a") is None
            await store.insert(NAME, "order-a", state("a"))

    asyncio.run(run())


def test_a_write_whose_answer_was_lost(url, table):
    async def run():
        async with through_a_proxy(url, table) as (proxy, store):
            proxy.cut_after_request(INSERT)
            with pytest.raises(OutcomeUnknownError):
                await store.insert(NAME, "order-a", state("a"))
            await proxy.fired()
            assert await store.get_by_id(NAME, "a") is not None
            proxy.cut_after_request(UPDATE)
            with pytest.raises(OutcomeUnknownError):
                await store.update(NAME, state("a", 1), 0)
            assert (await store.get_by_id(NAME, "a")).metadata.version == 1

    asyncio.run(run())


def test_a_read_whose_answer_was_lost_is_done_again(url, table):
    async def run():
        async with through_a_proxy(url, table) as (proxy, store):
            await store.insert(NAME, "order-a", state("a"))
            proxy.cut_after_request(SELECT)
            assert await store.get_by_id(NAME, "a") is not None
            await proxy.fired()

    asyncio.run(run())


def store_of_a_worker(url, table):
    return SqlServerSagaStore(url, table=table, pool_size=4)


def test_connections_cut_under_load_lose_nothing(url, table, tmp_path: Path):
    """Four processes, all their connections cut three times: no acknowledged write is lost, and nobody hangs."""

    async def run():
        async with through_a_proxy(url, table) as (proxy, store):
            parts = urlsplit(url)
            credentials = parts.netloc.rpartition("@")[0]
            theirs = changed(url, netloc=f"{credentials}@{proxy.host}:{proxy.port}", encrypt="no")
            with Load(functools.partial(store_of_a_worker, theirs, table), tmp_path) as load:
                for _ in range(3):
                    await asyncio.to_thread(load.wait_for, 200)
                    proxy.cut()
                await asyncio.to_thread(load.wait_for, 200)
                await asyncio.to_thread(load.stop)
            await verify(load, store, cuts=3)

    asyncio.run(run())


def test_the_schema_that_create_schema_makes_is_the_one_of_the_script(url, table):
    """Columns and constraints as the script's, by the catalog."""
    sql = (
        "SELECT COLUMN_NAME, DATA_TYPE, CHARACTER_MAXIMUM_LENGTH, IS_NULLABLE FROM INFORMATION_SCHEMA.COLUMNS "
        "WHERE TABLE_NAME = ? ORDER BY ORDINAL_POSITION"
    )
    asyncio.run(create_schema(url, table=table))
    with connected(url) as connection:
        found = {name: (kind, size, nullable) for name, kind, size, nullable in connection.execute(sql, table)}
    assert found["saga_name"] == found["saga_id"] == ("nvarchar", 257, "NO")
    assert found["correlation_id"] == ("nvarchar", 513, "NO")
    assert found["state"] == ("nvarchar", -1, "NO")
    assert {kind for kind, _, _ in (found["created_at"], found["timeout_expires_at"])} == {"datetime2"}

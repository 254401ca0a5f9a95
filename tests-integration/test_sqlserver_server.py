"""What only a SQL Server can show: locks, deadlocks, snapshots, killed sessions, rights, processes, the catalog."""

import asyncio
import contextlib
import functools
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec
import pytest

from providers.sqlserver import connected
from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
    JsonStateCodec,
    SagaFilter,
    SagaMetadata,
    SagaState,
    SagaStoreError,
    SchemaError,
    StateTooLargeError,
    StoreUnavailableError,
)
from saga_bus.store_sqlserver import SqlServerSagaStore, check_schema, create_schema, drop_schema, get_schema_sql
from saga_bus.store_sqlserver._errors import error_numbers
from saga_bus.store_sqlserver._odbc import load
from saga_bus.store_sqlserver._schema import COLLATION, package_version
from saga_bus.store_sqlserver._schema import INDEXES as INDEXES_OF_THE_PACKAGE
from saga_bus.store_sqlserver._values import Statement
from sqlserver_helpers import (
    NAME,
    NoteState,
    changeable,
    changed,
    connect_to,
    holding,
    is_babelfish,
    opened,
    own_database,
    own_login,
    state,
)

BABELFISH_HAS_NO_NUMBER = 33557097
PERMISSION_DENIED = 229
OWN_SESSION = Statement("SELECT CAST(@@SPID AS INT) AS session_id", ())
SESSIONS = "SELECT COUNT(*) FROM sys.dm_exec_sessions WHERE session_id = ?"


@pytest.fixture
def url(databases):
    return databases.url("sqlserver")


@pytest.fixture
def table(url):
    name = f"t_{uuid4().hex[:12]}"
    yield name
    asyncio.run(drop_schema(url, table=name))


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
    number = BABELFISH_HAS_NO_NUMBER if is_babelfish(url) else 1222

    async def run():
        async with opened(url, table, "a") as store:
            with connected(url) as connection, holding(url, table, "a"):
                connection.execute("SET LOCK_TIMEOUT 100")
                connection.autocommit = False
                with pytest.raises(StoreUnavailableError, match="lock timeout") as raised:
                    await store.bind(connection).update(NAME, state("a", 1), 0)
                assert number in error_numbers(raised.value.__cause__)
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


def test_a_conflict_in_a_snapshot_is_unavailable_and_ends_the_transaction(url):
    if is_babelfish(url):
        pytest.skip("Babelfish has no ALLOW_SNAPSHOT_ISOLATION")

    async def run(connect):
        async with SqlServerSagaStore(connect=connect, state_types={NAME: SagaState}) as store:
            await store.create_schema()
            await store.insert(NAME, "order-a", state("a"))
            with closing(connect()) as connection:
                connection.execute("SET TRANSACTION ISOLATION LEVEL SNAPSHOT").close()
                connection.autocommit = False
                bound = store.bind(connection)
                seen = await bound.get_by_id(NAME, "a")  # the snapshot is of this moment
                following = SagaState(metadata=seen.metadata.next())
                await store.update(NAME, following, 0)
                with pytest.raises(StoreUnavailableError, match="snapshot") as raised:
                    await bound.update(NAME, following, 0)
                assert 3960 in error_numbers(raised.value.__cause__)
                with pytest.raises(StoreUnavailableError, match="bind again"):
                    await bound.insert(NAME, "order-b", state("b"))
                connection.rollback()

                again = store.bind(connection)
                assert await again.get_by_id(NAME, "a") == following
                await again.update(NAME, SagaState(metadata=following.metadata.next()), 1)
                connection.commit()
            assert (await store.get_by_id(NAME, "a")).metadata.version == 2
            assert await store.count(SagaFilter()) == 1

    with own_database(url) as database:
        with connected(url) as admin:
            admin.execute(f"ALTER DATABASE {database} SET ALLOW_SNAPSHOT_ISOLATION ON")
        asyncio.run(run(functools.partial(connect_to, url, database)))


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


def wait_until_gone(admin, session):
    deadline = time.monotonic() + 10
    while admin.execute(SESSIONS, session).fetchval():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_session_is_replaced(url, table):
    if is_babelfish(url):
        pytest.skip("Babelfish has no KILL")

    async def run():
        async with opened(url, table, "a", pool_size=1) as store:
            ((session,),) = await store._engine._pool.run(lambda each: each.read(OWN_SESSION))
            with connected(url) as admin:
                admin.execute(f"KILL {session}")
                wait_until_gone(admin, session)
            assert (await store.get_by_id(NAME, "a")).metadata.version == 0
            await store.update(NAME, state("a", 1), 0)

    asyncio.run(run())


def test_a_wrong_password_is_not_shown(url, table):
    url = changeable(url)
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


async def following(store, ids):
    """The next version of each saga, created when it was: only such updates go in groups."""
    found = await asyncio.gather(*(store.get_by_id(NAME, key) for key in ids))
    return [SagaState(metadata=saga.metadata.next()) for saga in found]


def test_a_login_without_the_right_to_create_does_everything_else(url, table):
    url = changeable(url)

    async def run(theirs):
        later = datetime.now(UTC) + timedelta(days=1)
        ids = [f"id-{number}" for number in range(12)]
        async with SqlServerSagaStore(theirs, table=table, state_types={NAME: SagaState}) as store:
            await store.check_schema()
            await asyncio.gather(*(store.insert(NAME, f"order-{key}", state(key)) for key in ids))
            with pytest.raises(DuplicateSagaError):
                await store.insert(NAME, "order-id-0", state("new"))
            await asyncio.gather(*(store.update(NAME, each, 0) for each in await following(store, ids)))
            found = await asyncio.gather(*(store.get_by_correlation_id(NAME, f"order-{key}") for key in ids))
            assert [each.metadata.version for each in found] == [1] * 12

            walked, cursor = [], None
            while True:
                page = await store.find(SagaFilter(saga_name=NAME), limit=5, cursor=cursor)
                walked += [record.state.metadata.saga_id for record in page.items]
                cursor = page.cursor
                if cursor is None:
                    break
            assert sorted(walked) == sorted(ids)
            assert await store.count(SagaFilter()) == 12

            with pytest.raises(ConcurrencyError):
                await store.delete(NAME, "id-0", 7)
            await store.delete(NAME, "id-0", 1)
            await store.delete(NAME, "id-1")
            for each in await following(store, ["id-2", "id-3"]):
                each.metadata = msgspec.structs.replace(each.metadata, is_completed=True)
                await store.update(NAME, each, 1)
            assert await store.delete_completed_before(NAME, later) == 2

            with connected(theirs) as connection:
                connection.autocommit = False
                for saga_id, end in (("b", connection.rollback), ("c", connection.commit)):
                    bound = store.bind(connection)
                    await bound.insert(NAME, f"order-{saga_id}", state(saga_id))
                    assert await bound.get_by_id(NAME, saga_id) is not None
                    await bound.delete(NAME, "id-4")
                    end()
            assert await store.get_by_id(NAME, "b") is None
            assert await store.get_by_id(NAME, "c") is not None
            assert await store.count(SagaFilter()) == 12 - 4 - 1 + 1

            ping = await store.ping()
            assert ping.seconds > 0
            async with SqlServerSagaStore(url, table=table) as administrators:
                assert ping.warnings == (await administrators.ping()).warnings
        async with SqlServerSagaStore(theirs, table=f"{table}_new") as store:
            with pytest.raises(SagaStoreError, match="permission"):
                await store.create_schema()

    asyncio.run(create_schema(url, table=table))
    with own_login(url, "SELECT, INSERT, UPDATE, DELETE", [table, "saga_bus_schema"]) as theirs:
        asyncio.run(run(theirs))


def test_a_login_that_may_only_read(url, table):
    url = changeable(url)
    numbers = {BABELFISH_HAS_NO_NUMBER, PERMISSION_DENIED} if is_babelfish(url) else {PERMISSION_DENIED}

    def is_denied(outcome):
        return (
            type(outcome) is SagaStoreError
            and not outcome.retryable
            and "permission" in str(outcome)
            and not numbers.isdisjoint(error_numbers(outcome.__cause__))
        )

    async def run(theirs):
        ids = [f"id-{number}" for number in range(6)]
        async with SqlServerSagaStore(theirs, table=table, state_types={NAME: SagaState}) as store:
            await store.check_schema()
            updates = await following(store, ids)
            for writes in (
                [store.insert(NAME, "order-new", state("new"))],
                [store.insert(NAME, f"order-new-{number}", state(f"new-{number}")) for number in range(6)],
                [store.update(NAME, updates[0], 0)],
                [store.update(NAME, each, 0) for each in updates],
                [store.delete(NAME, "id-0")],
                [store.delete(NAME, "id-0", 0)],
                [store.delete_completed_before(NAME, datetime.now(UTC) + timedelta(days=1))],
            ):
                outcomes = await asyncio.gather(*writes, return_exceptions=True)
                assert [is_denied(outcome) for outcome in outcomes] == [True] * len(writes), outcomes
            found = await asyncio.gather(*(store.get_by_id(NAME, key) for key in ids))
            assert [each.metadata.version for each in found] == [0] * 6
            assert await store.count(SagaFilter()) == 6

    async def prepare():
        async with opened(url, table, *(f"id-{number}" for number in range(6))):
            pass

    asyncio.run(prepare())
    with own_login(url, "SELECT", [table, "saga_bus_schema"]) as theirs:
        asyncio.run(run(theirs))


LIMIT = 16 * 2**20


def of_size(size, metadata):
    """A state whose document has so many bytes; no two parts of it are the same."""
    state = NoteState(metadata=metadata, note="ü😀")
    missing = size - len(JsonStateCodec().encode(state))
    state.note += "".join(f"{number:07x} " for number in range(missing // 8)) + "!" * (missing % 8)
    assert len(JsonStateCodec().encode(state)) == size
    return state


def test_a_large_state_comes_back_whole_and_a_larger_one_is_refused(url, table, monkeypatch):
    limited = replace(SqlServerSagaStore.capabilities, max_state_bytes=LIMIT)
    monkeypatch.setattr(SqlServerSagaStore, "capabilities", limited)

    async def run():
        async with opened(url, table, state_type=NoteState, command_timeout=120) as store:
            first = SagaMetadata.fresh("a")
            with pytest.raises(StateTooLargeError) as raised:
                await store.insert(NAME, "order-a", of_size(LIMIT + 1, first))
            assert (raised.value.size, raised.value.limit) == (LIMIT + 1, LIMIT)
            assert await store.get_by_id(NAME, "a") is None
            large = of_size(LIMIT, first)
            await store.insert(NAME, "order-a", large)
            assert await store.get_by_id(NAME, "a") == large

            following = large.metadata.next()
            with pytest.raises(StateTooLargeError):
                await store.update(NAME, of_size(LIMIT + 1, following), 0)
            assert await store.get_by_correlation_id(NAME, "order-a") == large
            large = of_size(LIMIT - 1, following)
            await store.update(NAME, large, 0)
            assert await store.get_by_correlation_id(NAME, "order-a") == large
            (record,) = (await store.find(SagaFilter(saga_name=NAME))).items
            assert record.state == large

    asyncio.run(run())


CREATE = """
import asyncio, sys
from saga_bus.store_sqlserver import create_schema
print("ready", flush=True)
sys.stdin.readline()
asyncio.run(create_schema(sys.argv[1], table=sys.argv[2]))
"""


def test_ten_processes_create_the_schema_at_once(url, table):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, url, table],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(10)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 10, said
    asyncio.run(check_schema(url, table=table))


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


# -- what get_schema_sql() makes -------------------------------------------------------------------------------------

COLUMNS = """\
SELECT c.column_id, c.name, t.name, c.max_length, c.precision, c.scale, c.is_nullable, c.is_identity, c.collation_name
FROM sys.columns AS c INNER JOIN sys.types AS t ON t.user_type_id = c.user_type_id
WHERE c.object_id = OBJECT_ID(?)"""
INDEXES = """\
SELECT i.name, i.type_desc, i.is_unique, i.is_primary_key, i.is_unique_constraint, i.has_filter,
    k.key_ordinal, k.is_descending_key, k.is_included_column, c.name
FROM sys.indexes AS i
INNER JOIN sys.index_columns AS k ON k.object_id = i.object_id AND k.index_id = i.index_id
INNER JOIN sys.columns AS c ON c.object_id = k.object_id AND c.column_id = k.column_id
WHERE i.object_id = OBJECT_ID(?)"""
CHECKS = """\
SELECT name, definition, is_disabled, is_not_trusted FROM sys.check_constraints WHERE parent_object_id = OBJECT_ID(?)"""


def catalog(connection, name, *, with_names=True):
    """What the database knows of a table; a name that the server has made differs from table to table."""
    found = [
        sorted(map(tuple, connection.execute(sql, name).fetchall()), key=str) for sql in (COLUMNS, INDEXES, CHECKS)
    ]
    return found if with_names else [found[0], [row[1:] for row in found[1]], [row[1:] for row in found[2]]]


@pytest.fixture
def schemas(url):
    """The names of two schemas that are not there yet."""
    names = [f"{kind}_{uuid4().hex[:12]}" for kind in ("made", "script")]
    yield names
    for name in names:
        asyncio.run(drop_schema(url, table="sagas", schema=name))
    with connected(url) as admin:
        for name in names:
            admin.execute(f"IF SCHEMA_ID(N'{name}') IS NOT NULL DROP SCHEMA {name}")


def test_the_script_makes_what_create_schema_makes(url, schemas):
    """By the catalog: columns with their types and collations, indexes with their columns, constraints, the version."""
    if is_babelfish(url):
        pytest.skip("Babelfish has not the whole catalog")
    made, script = schemas
    asyncio.run(create_schema(url, table="sagas", schema=made))
    with connected(url) as connection:
        cursor = connection.execute(get_schema_sql(table="sagas", schema=script))
        while cursor.nextset():  # an error of a later statement shows only here
            pass
        cursor.close()
        asyncio.run(check_schema(url, table="sagas", schema=script))

        theirs, ours = (catalog(connection, f"{schema}.sagas") for schema in (script, made))
        assert theirs == ours
        versions = [catalog(connection, f"{schema}.saga_bus_schema", with_names=False) for schema in (script, made)]
        assert versions[0] == versions[1]
        assert versions[0][0]
        rows = [
            [tuple(row) for row in connection.execute(f"SELECT table_name, version FROM {schema}.saga_bus_schema")]
            for schema in (script, made)
        ]
        assert rows[0] == rows[1] == [("sagas", package_version())]

    columns, indexes, checks = ours
    binary = {name: size for _, name, _, size, *_, collation in columns if collation == COLLATION}
    assert binary == {"saga_name": 2 * 257, "saga_id": 2 * 257, "correlation_id": 2 * 513}
    assert {name: kind for _, name, kind, *_ in columns if name.endswith("_at")} == dict.fromkeys(
        ("created_at", "updated_at", "archived_at", "timeout_expires_at"), "datetime2"
    )
    assert [(kind, size) for _, name, kind, size, *_ in columns if name == "state"] == [("nvarchar", -1)]
    keys = {}
    for name, *_, ordinal, _, _, column in indexes:
        keys.setdefault(name, {})[ordinal] = column
    found = {tuple(columns for _, columns in sorted(each.items())) for each in keys.values()}
    assert found == {each.columns for each in INDEXES_OF_THE_PACKAGE} | {
        ("row_id",),
        ("saga_name", "saga_id"),
        ("saga_name", "correlation_id"),
    }
    assert len(checks) == 1

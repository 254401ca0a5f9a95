"""Every failure of SQLite's is one of our errors, with SQLite's as its cause, and nothing half-written."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
    InvalidSagaError,
    OutcomeUnknownError,
    SagaFilter,
    SagaState,
    SagaStoreError,
    SchemaError,
    StateTooLargeError,
    StoreClosedError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from saga_bus.store_sqlite import SqliteSagaStore, create_schema
from saga_bus.store_sqlite._errors import translated
from saga_bus.store_sqlite._health import warnings_about
from saga_bus.store_sqlite._transactions import write_group


class Note(SagaState, kw_only=True):
    text: str = ""


@pytest.fixture
def path(tmp_path):
    asyncio.run(create_schema(tmp_path / "x.db"))
    return tmp_path / "x.db"


def rows(path):
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return connection.execute("SELECT count(*) FROM saga_instances").fetchone()[0]


async def set_on_writer(store, pragma):
    await store._engine._writer.run(lambda connection: connection.execute(pragma).fetchall())


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_BUSY, StoreUnavailableError),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, StoreUnavailableError),
        (sqlite3.SQLITE_LOCKED, StoreUnavailableError),
        (sqlite3.SQLITE_LOCKED_SHAREDCACHE, StoreUnavailableError),
        (sqlite3.SQLITE_FULL, StoreUnavailableError),
        (sqlite3.SQLITE_IOERR_WRITE, StoreUnavailableError),
        (sqlite3.SQLITE_NOMEM, StoreUnavailableError),
        (sqlite3.SQLITE_READONLY_DBMOVED, SagaStoreError),
        (sqlite3.SQLITE_CORRUPT, SagaStoreError),
        (sqlite3.SQLITE_CANTOPEN, SagaStoreError),
        (sqlite3.SQLITE_NOTADB, SchemaError),
        (sqlite3.SQLITE_MISUSE, SagaStoreError),
        (None, SagaStoreError),
    ],
)
def test_the_table_of_errors(code, kind):
    error = sqlite3.OperationalError("SQLite's own words")
    if code is not None:
        error.sqlite_errorcode = code
    ours = translated(error)
    assert type(ours) is kind
    assert "SQLite's own words" in str(ours)
    assert ours.retryable is (kind is StoreUnavailableError)


@pytest.mark.parametrize("busy_timeout", [0, 0.2])
def test_a_locked_database(path, busy_timeout):
    async def run():
        async with SqliteSagaStore(path, busy_timeout=busy_timeout) as store:
            saga = SagaState()
            await store.insert("OrderSaga", "order-1", saga)
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                started = time.monotonic()
                results = await asyncio.gather(
                    store.insert("OrderSaga", "order-2", SagaState()),
                    store.update("OrderSaga", SagaState(metadata=saga.metadata.next()), 0),
                    store.delete("OrderSaga", saga.metadata.saga_id),
                    return_exceptions=True,
                )
                assert time.monotonic() - started >= busy_timeout
                assert [type(result) for result in results] == [StoreUnavailableError] * 3
                assert all(isinstance(result.__cause__, sqlite3.OperationalError) for result in results)
                # Readers do not wait for a writer.
                assert (await store.get_by_correlation_id("OrderSaga", "order-1")).metadata == saga.metadata
                assert await store.count(SagaFilter()) == 1
                other.execute("ROLLBACK")
            await store.insert("OrderSaga", "order-2", SagaState())

    asyncio.run(run())
    assert rows(path) == 2


def test_a_lock_that_is_given_up_in_time_is_waited_for(path):
    async def run():
        async with SqliteSagaStore(path, busy_timeout=30) as store:
            await store.count(SagaFilter())
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                insert = asyncio.create_task(store.insert("OrderSaga", "order-1", SagaState()))
                await asyncio.wait([insert], timeout=0.05)
                assert not insert.done()
                other.execute("COMMIT")
                await insert

    asyncio.run(run())
    assert rows(path) == 1


def test_a_full_database_writes_nothing_of_a_group(path):
    async def run():
        async with SqliteSagaStore(path, state_types={"NoteSaga": Note}) as store:
            await store.insert("NoteSaga", "first", Note())
            pages = (await store._engine._writer.run(lambda c: c.execute("PRAGMA page_count").fetchone()))[0]
            await set_on_writer(store, f"PRAGMA max_page_count = {pages + 20}")
            big = [Note(text="x" * 20_000) for _ in range(32)]
            results = await asyncio.gather(
                *(store.insert("NoteSaga", f"big-{number}", note) for number, note in enumerate(big)),
                return_exceptions=True,
            )
            failed = [type(result) for result in results if result is not None]
            assert StoreUnavailableError in failed
            assert set(failed) == {StoreUnavailableError}
            for note, result in zip(big, results, strict=True):
                found = await store.get_by_id("NoteSaga", note.metadata.saga_id)
                assert (found is None) is (result is not None)
            await set_on_writer(store, "PRAGMA max_page_count = 1000000")
            await store.insert("NoteSaga", "later", Note(text="x" * 20_000))
            return len(big) - len(failed) + 2

    assert asyncio.run(run()) == rows(path)


FILL = """
import asyncio, resource, signal, sys
from saga_bus.store import SagaState, StoreUnavailableError
from saga_bus.store_sqlite import SqliteSagaStore

class Note(SagaState, kw_only=True):
    text: str = ""

async def run():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    async with SqliteSagaStore(sys.argv[1], state_types={"NoteSaga": Note}) as store:
        await store.insert("NoteSaga", "first", Note())
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        failed = 0
        for turn in range(30):
            results = await asyncio.gather(
                *(store.insert("NoteSaga", f"{turn}-{number}", Note(text="x" * 5_000)) for number in range(4)),
                return_exceptions=True,
            )
            for number, result in enumerate(results):
                if result is None:
                    print(f"{turn}-{number}", flush=True)
                else:
                    assert isinstance(result, StoreUnavailableError), repr(result)
                    failed += 1
        assert failed
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await store.insert("NoteSaga", "last", Note())
        print("last", flush=True)

asyncio.run(run())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_disk_that_refuses_to_write(path):
    """The operating system refuses writes behind 300,000 bytes of a file, as a full disk would."""
    child = subprocess.run([sys.executable, "-c", FILL, path], capture_output=True, text=True, check=False)
    assert (child.returncode, child.stderr) == (0, "")
    acknowledged = {"first", *child.stdout.split()}
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        stored = {key for (key,) in connection.execute("SELECT correlation_id FROM saga_instances")}
    assert stored == acknowledged


READ_ONLY = """
import asyncio, os, sys
from saga_bus.store import SagaState, SagaStoreError, StoreUnavailableError
from saga_bus.store_sqlite import SqliteSagaStore

async def run():
    async with SqliteSagaStore(sys.argv[1]) as store:
        for _ in range(2):
            try:
                await store.insert("OrderSaga", "order-2", SagaState())
            except SagaStoreError as error:
                assert not error.retryable
                print(error)
        print(await store.get_by_correlation_id("OrderSaga", "order-1") is not None)

if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
asyncio.run(run())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs the permissions of POSIX")
def test_a_read_only_file():
    """Read by a process that may not write the file; root's child gives up being root."""
    with tempfile.TemporaryDirectory() as name:  # not pytest's directory, which only its owner may enter
        directory = Path(name)
        path = directory / "x.db"
        asyncio.run(create_schema(path))
        asyncio.run(use(path))
        path.chmod(0o444)
        directory.chmod(0o777)
        child = subprocess.run([sys.executable, "-c", READ_ONLY, path], capture_output=True, text=True, check=False)
        assert child.stderr == ""
        first, second, found = child.stdout.splitlines()
        assert "read-only" in first
        assert first == second
        assert found == "True"
        assert rows(path) == 1


def test_a_file_that_is_no_database(tmp_path):
    path = tmp_path / "x.db"
    path.write_bytes(b"this is a text and no database at all " * 100)
    for work in (create_schema(path), SqliteSagaStore(path).check_schema(), use(path)):
        with pytest.raises(SchemaError, match="no SQLite database"):
            asyncio.run(work)
    assert path.read_bytes().startswith(b"this is a text")


async def use(path):
    async with SqliteSagaStore(path) as store:
        await store.insert("OrderSaga", "order-1", SagaState())


def test_a_directory_in_the_place_of_the_file(tmp_path):
    for work in (create_schema(tmp_path), use(tmp_path)):
        with pytest.raises(SagaStoreError, match="cannot be opened"):
            asyncio.run(work)


def test_a_damaged_file(path):
    async def run():
        async with SqliteSagaStore(path, state_types={"NoteSaga": Note}) as store:
            await asyncio.gather(*(store.insert("NoteSaga", str(n), Note(text="x" * 3000)) for n in range(200)))

    asyncio.run(run())
    whole = path.read_bytes()
    path.write_bytes(whole[: 4096 * 3] + b"\xde\xad\xbe\xef" * (len(whole) // 4 - 1024 * 3))

    async def read():
        async with SqliteSagaStore(path, state_types={"NoteSaga": Note}) as store:
            await store.get_by_correlation_id("NoteSaga", "77")
            await store.find(SagaFilter(order="stalest"))

    with pytest.raises(SagaStoreError, match="damaged") as caught:
        asyncio.run(read())
    assert not caught.value.retryable


def test_a_state_that_is_too_large_fails_alone(path):
    async def run():
        async with SqliteSagaStore(path, state_types={"NoteSaga": Note}) as store:
            await store.insert("NoteSaga", "first", Note())

            def lower_the_limit(connection):
                connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 50_000)

            await store._engine._writer.run(lower_the_limit)
            texts = ["x", "x" * 60_000, "x", "x" * 70_000, "x"]
            results = await asyncio.gather(
                *(store.insert("NoteSaga", f"n-{number}", Note(text=text)) for number, text in enumerate(texts)),
                return_exceptions=True,
            )
            assert [type(result) for result in results] == [type(None), StateTooLargeError] * 2 + [type(None)]
            assert results[1].limit == 50_000
            assert results[1].size > 60_000
            assert await store.count(SagaFilter()) == 4

    asyncio.run(run())


class FailingConnection(sqlite3.Connection):
    """A connection that fails at statements of the test's choice, where SQLite cannot be made to."""

    failures: dict[str, int]

    def execute(self, sql, *parameters):
        code = self.failures.get(sql)
        if code is not None:
            error = sqlite3.OperationalError(f"failed at {sql}")
            error.sqlite_errorcode = code
            raise error
        return super().execute(sql, *parameters)


def insert_row(connection, key):
    connection.execute("INSERT INTO t VALUES (?)", (key,))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_IOERR_FSYNC, OutcomeUnknownError),
        (sqlite3.SQLITE_IOERR_WRITE, OutcomeUnknownError),
        (sqlite3.SQLITE_FULL, StoreUnavailableError),
        (sqlite3.SQLITE_BUSY, StoreUnavailableError),
    ],
)
def test_a_commit_that_fails_is_rolled_back(code, kind):
    with closing(sqlite3.connect(":memory:", factory=FailingConnection, isolation_level=None)) as connection:
        connection.failures = {}
        connection.execute("CREATE TABLE t (x)")
        connection.failures = {"COMMIT": code}
        with pytest.raises(StoreUnavailableError) as caught:
            write_group([partial(insert_row, key=1)], 0.01, connection)
        assert type(caught.value) is kind
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert not connection.in_transaction
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_a_transaction_that_sqlite_gave_up_writes_nothing():
    def give_up(connection):
        connection.execute("INSERT OR ROLLBACK INTO t SELECT x FROM t LIMIT 1")

    def refuse(connection):
        try:
            give_up(connection)
        except sqlite3.IntegrityError as error:
            raise DuplicateSagaError(saga_name="S", saga_id="1", correlation_id="1", conflict="saga_id") from error

    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (x UNIQUE)")
        for operation, kind in ((give_up, SagaStoreError), (refuse, StoreUnavailableError)):
            with pytest.raises(kind):
                write_group([partial(insert_row, key=1), operation, partial(insert_row, key=2)], 0, connection)
            assert not connection.in_transaction
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_an_operation_that_fails_in_python_is_rolled_back():
    def fail(connection):
        raise ZeroDivisionError

    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (x)")
        with pytest.raises(ZeroDivisionError):
            write_group([partial(insert_row, key=1), fail], 0, connection)
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_somebody_elses_constraint_is_no_duplicate(path):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE UNIQUE INDEX one_version ON saga_instances (saga_name, version)")

    async def run():
        async with SqliteSagaStore(path) as store:
            await store.insert("OrderSaga", "order-1", SagaState())
            with pytest.raises(SagaStoreError, match="not the store's own") as caught:
                await store.insert("OrderSaga", "order-2", SagaState())
            assert not isinstance(caught.value, ConcurrencyError)

    asyncio.run(run())
    assert rows(path) == 1


@pytest.mark.parametrize("taken", ["saga_id", "correlation_id"])
@pytest.mark.parametrize("table", ["x.correlation_id", "x.saga_id", "PRIMARY"])
def test_a_duplicate_names_what_is_taken(tmp_path, taken, table):
    async def run():
        async with SqliteSagaStore(tmp_path / "x.db", table=table) as store:
            await store.create_schema()
            first = SagaState()
            await store.insert("OrderSaga", "order-1", first)
            second = first if taken == "saga_id" else SagaState()
            with pytest.raises(DuplicateSagaError) as caught:
                await store.insert("OrderSaga", "order-2" if taken == "saga_id" else "order-1", second)
            assert caught.value.conflict == taken
            assert isinstance(caught.value.__cause__, sqlite3.IntegrityError)

    asyncio.run(run())


def test_given_connections_that_cannot_be_used():
    async def refused(connection, match):
        store = SqliteSagaStore(connection=connection)
        for call in (store.create_schema(), store.get_by_id("OrderSaga", "1"), store.check_schema()):
            with pytest.raises(InvalidSagaError, match=match):
                await call
        await store.close()

    with closing(sqlite3.connect(":memory:")) as connection:
        asyncio.run(refused(connection, "check_same_thread=False"))
    closed = sqlite3.connect(":memory:", check_same_thread=False)
    closed.close()
    asyncio.run(refused(closed, "closed"))
    if sys.version_info >= (3, 12):
        with closing(sqlite3.connect(":memory:", check_same_thread=False, autocommit=False)) as connection:
            asyncio.run(refused(connection, "autocommit=False"))


def test_a_given_connection_in_a_transaction_of_its_owner(tmp_path):
    async def run():
        with closing(sqlite3.connect(tmp_path / "x.db", check_same_thread=False)) as connection:
            async with SqliteSagaStore(connection=connection) as store:
                await store.create_schema()
                connection.execute("CREATE TABLE business (x)")
                connection.execute("INSERT INTO business VALUES (1)")
                assert connection.in_transaction
                with pytest.raises(UnsupportedOperationError, match="bind"):
                    await store.insert("OrderSaga", "order-1", SagaState())
                connection.rollback()
                await store.insert("OrderSaga", "order-1", SagaState())
            assert connection.execute("SELECT count(*) FROM saga_instances").fetchone() == (1,)

    asyncio.run(run())


def test_a_given_connection_that_its_owner_closes(path):
    async def run():
        connection = sqlite3.connect(path, check_same_thread=False)
        async with SqliteSagaStore(connection=connection) as store:
            await store.insert("OrderSaga", "order-1", SagaState())
            connection.close()
            for call in (
                store.insert("OrderSaga", "order-2", SagaState()),
                store.get_by_id("OrderSaga", "1"),
                store.count(SagaFilter()),
                store.create_schema(),
            ):
                with pytest.raises(SagaStoreError, match="closed"):
                    await call

    asyncio.run(run())
    assert rows(path) == 1


def test_stores_on_one_given_connection_take_turns(path):
    async def run():
        with closing(sqlite3.connect(path, check_same_thread=False)) as connection:
            async with SqliteSagaStore(connection=connection) as one, SqliteSagaStore(connection=connection) as two:
                await asyncio.gather(
                    *(
                        store.insert("OrderSaga", f"{n}-{id(store)}", SagaState())
                        for n in range(50)
                        for store in (one, two)
                    ),
                    *(store.count(SagaFilter()) for _ in range(20) for store in (one, two)),
                )

    asyncio.run(run())
    assert rows(path) == 100


def test_ping_warns_of_what_puts_sagas_at_risk(path):
    def about(connection, pragma):
        connection.execute(pragma)
        return " ".join(warnings_about(connection))

    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert "power failure" not in about(connection, "PRAGMA synchronous = FULL")
        assert "power failure can lose the last commits" in about(connection, "PRAGMA synchronous = NORMAL")
        assert "damage the file" in about(connection, "PRAGMA synchronous = OFF")
        assert "crash" in about(connection, "PRAGMA journal_mode = MEMORY")
        assert "crash" in about(connection, "PRAGMA journal_mode = OFF")
    with closing(sqlite3.connect(":memory:")) as connection:
        assert warnings_about(connection) == ["the database is in memory: its sagas end with the process"]

    async def run(durability):
        async with SqliteSagaStore(path, durability=durability) as store:
            return " ".join((await store.ping()).warnings)

    assert "NORMAL" in asyncio.run(run("normal"))
    assert "NORMAL" not in asyncio.run(run("full"))


@pytest.mark.parametrize(("version", "warned"), [((3, 40, 1), True), ((3, 51, 2), True), ((3, 51, 3), False)])
def test_ping_warns_of_the_wal_reset_bug(path, monkeypatch, version, warned):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    with closing(sqlite3.connect(path)) as connection:
        assert any("WAL-reset" in warning for warning in warnings_about(connection)) is warned


def test_after_close(path):
    async def run():
        store = SqliteSagaStore(path)
        await store.insert("OrderSaga", "order-1", SagaState())
        await store.close()
        await store.close()
        for call in (store.get_by_id("OrderSaga", "1"), store.insert("OrderSaga", "order-2", SagaState())):
            with pytest.raises(StoreClosedError):
                await call
        with pytest.raises(StoreClosedError):
            await store.create_schema()

    asyncio.run(run())


def test_the_file_can_be_copied_away_after_close(path, tmp_path):
    """The last connection to close moves the write-ahead log into the file."""
    asyncio.run(use(path))
    shutil.copy(path, tmp_path / "copy.db")
    assert rows(tmp_path / "copy.db") == 1

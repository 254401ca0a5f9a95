"""Stores in the caller's transaction, and stores on the caller's own connections."""

import asyncio
import threading
import time
from datetime import UTC, datetime

import pytest

from saga_bus.store import (
    DuplicateSagaError,
    InvalidSagaError,
    OutcomeUnknownError,
    SagaState,
    SagaStoreError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from saga_bus.store_sqlserver import SqlServerSagaStore, create_schema
from saga_bus.store_sqlserver._engines import BoundEngine
from saga_bus.store_sqlserver._location import parse_location
from saga_bus.store_sqlserver._odbc import is_freetds, load
from saga_bus.store_sqlserver._operations import Operations
from saga_bus.store_sqlserver._schema import Place
from saga_bus.store_sqlserver._values import Statement

pytestmark = pytest.mark.usefixtures("pyodbc")

ENDLESS = Statement("WITH RECURSIVE f(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM f) SELECT count(*) FROM f", ())
LONG = Statement(
    "WITH RECURSIVE f(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM f WHERE n < 20000000) SELECT count(*) FROM f", ()
)
PLACE = Place("saga_instances", "dbo")


@pytest.fixture
def caller(endpoint, url_of):
    """Makes an endpoint and a caller's connection to it."""
    opened = []

    def make(answer, *, autocommit=True):
        server = endpoint(answer)
        connection = load().connect(parse_location(url_of(server.port)).connection_string(), autocommit=True)
        opened.append(connection)
        server.requests.clear()
        if not autocommit:
            raise AssertionError("the endpoint knows no transactions")
        return server, connection

    yield make
    for connection in opened:
        connection.close()


def parent():
    return SqlServerSagaStore("mssql://db/shop?driver=x")


def test_bind_wants_a_pyodbc_connection():
    with pytest.raises(InvalidSagaError, match="pyodbc connection, not str"):
        parent().bind("connection")


def test_a_connection_without_a_transaction_is_refused(caller, endpoint):
    _, connection = caller(lambda sql: endpoint.numbers("transactions", 0))

    async def use():
        bound = parent().bind(connection)
        with pytest.raises(UnsupportedOperationError, match="autocommit = False"):
            await bound.insert("OrderSaga", "order-1", SagaState())

    asyncio.run(use())


def test_freetds_begins_no_transaction_after_one_that_the_server_ended(caller, endpoint, driver):
    """Microsoft's driver begins another one before the next statement; FreeTDS would have that committed at once."""

    def answer(sql):
        if "@@TRANCOUNT" in sql:
            return endpoint.numbers("transactions", 0)
        deadlock = endpoint.rolled_back() + endpoint.error(1205, "Deadlock.", severity=13)
        return deadlock if "theirs" in sql else endpoint.counted(1)

    server, connection = caller(answer)
    connection.autocommit = False
    with pytest.raises(load().Error):
        connection.execute("UPDATE theirs SET n = 1")
    connection.rollback()
    server.requests.clear()

    async def use():
        bound = parent().bind(connection)
        if is_freetds(driver):
            with pytest.raises(UnsupportedOperationError, match="open another one"):
                await bound.insert("OrderSaga", "order-1", SagaState())
        else:
            await bound.insert("OrderSaga", "order-1", SagaState())

    asyncio.run(use())
    assert ("BEGIN" in server.requests) != is_freetds(driver)
    assert any("INSERT INTO" in request for request in server.requests) != is_freetds(driver)


def test_a_bound_store_never_commits(caller, endpoint):
    def answer(sql):
        return endpoint.numbers("transactions", 1) if "@@TRANCOUNT" in sql else endpoint.counted(1)

    server, connection = caller(answer)

    async def use():
        async with parent().bind(connection) as bound:
            await bound.insert("OrderSaga", "order-1", SagaState())
            await bound.delete("OrderSaga", "1")

    asyncio.run(use())
    assert connection.autocommit
    written = " ".join(server.requests)
    assert "INSERT INTO" in written
    assert "DELETE FROM" in written
    assert not any(word in written for word in ("COMMIT", "ROLLBACK", "BEGIN TRAN"))
    connection.execute("SELECT 1 AS alive").fetchall()  # and the caller's connection stays open


def test_a_duplicate_leaves_the_connection_of_use(caller, endpoint):
    def answer(sql):
        if "@@TRANCOUNT" in sql:
            return endpoint.numbers("transactions", 1)
        if "AS taken" in sql:
            return endpoint.numbers("taken", 2)
        return endpoint.error(2627, "Duplicate.") if "INSERT INTO" in sql else endpoint.counted(1)

    server, connection = caller(answer)

    async def use():
        async with parent().bind(connection) as bound:
            with pytest.raises(DuplicateSagaError):
                await bound.insert("OrderSaga", "order-1", SagaState())
            await bound.delete("OrderSaga", "1")

    asyncio.run(use())
    assert "DELETE FROM" in server.requests[-1]


@pytest.mark.parametrize(
    ("number", "severity", "text"),
    [(1205, 13, "Rolled back."), (3960, 16, "Rolled back."), (33557097, 16, "canceling statement due to lock timeout")],
)
def test_a_transaction_that_the_server_ended_takes_nothing_more(caller, endpoint, number, severity, text):
    """The driver would begin another one by itself, and the caller would commit half of what he wrote."""

    def answer(sql):
        if "@@TRANCOUNT" in sql:
            return endpoint.numbers("transactions", 1)
        return endpoint.error(number, text, severity=severity)

    server, connection = caller(answer)

    async def use():
        bound = parent().bind(connection)
        with pytest.raises(StoreUnavailableError):
            await bound.insert("OrderSaga", "order-1", SagaState())
        server.requests.clear()
        for act in (
            lambda: bound.insert("OrderSaga", "order-1", SagaState()),
            lambda: bound.get_by_id("OrderSaga", "1"),
            lambda: bound.delete("OrderSaga", "1"),
        ):
            with pytest.raises(StoreUnavailableError, match="bind again"):
                await act()
        assert server.requests == []
        await bound.close()

    asyncio.run(use())


@pytest.fixture
def aborting(caller, endpoint):
    """Makes an endpoint where XACT_ABORT is on, and a caller's connection to it."""

    def make(refused, number):
        refusals = [endpoint.error(number, "Refused.")]

        def answer(sql):
            if "@@TRANCOUNT" in sql:
                return endpoint.numbers("transactions", 1)
            if "@@OPTIONS" in sql:
                return endpoint.numbers("xact_abort", 16384)
            if refused in sql and refusals:
                return refusals.pop()
            return endpoint.numbers("taken") if "SELECT" in sql else endpoint.counted(1)

        return caller(answer)

    return make


@pytest.mark.parametrize(("number", "kind"), [(2627, DuplicateSagaError), (1222, StoreUnavailableError)])
def test_with_xact_abort_every_error_ends_the_transaction(aborting, number, kind):
    """A saga is not written after all, without what the caller wrote before."""
    server, connection = aborting("INSERT INTO", number)

    async def use():
        bound = parent().bind(connection)
        with pytest.raises(kind):
            await bound.insert("OrderSaga", "order-1", SagaState())
        assert sum("INSERT INTO" in request for request in server.requests) == 1
        server.requests.clear()
        for act in (lambda: bound.insert("OrderSaga", "order-1", SagaState()), bound.ping):
            with pytest.raises(StoreUnavailableError, match="bind again"):
                await act()
        assert server.requests == []

    asyncio.run(use())


def test_with_xact_abort_a_purge_that_is_refused_is_not_tried_otherwise(aborting):
    server, connection = aborting("READPAST", 650)

    async def use():
        with pytest.raises(SagaStoreError):
            await parent().bind(connection).delete_completed_before("OrderSaga", datetime.now(UTC))

    asyncio.run(use())
    assert sum("DELETE TOP" in request for request in server.requests) == 1


def test_with_xact_abort_a_statement_that_takes_too_long_ends_the_transaction(aborting):
    server, connection = aborting("nothing", 0)
    answer = server.answer
    server.answer = lambda sql: ... if "INSERT INTO" in sql else answer(sql)
    connection.timeout = 1

    async def use():
        bound = parent().bind(connection)
        with pytest.raises(OutcomeUnknownError):
            await bound.insert("OrderSaga", "order-1", SagaState())
        with pytest.raises(StoreUnavailableError, match="bind again"):
            await bound.get_by_id("OrderSaga", "1")

    asyncio.run(use())


def test_with_xact_abort_a_statement_that_is_stopped_ends_the_transaction(aborting):
    server, connection = aborting("nothing", 0)
    answer, arrived = server.answer, threading.Event()

    def unanswered(sql):
        if "INSERT INTO" not in sql:
            return answer(sql)
        arrived.set()
        return ...

    server.answer = unanswered

    async def use():
        bound = parent().bind(connection)
        running = asyncio.ensure_future(bound.insert("OrderSaga", "order-1", SagaState()))
        await asyncio.to_thread(arrived.wait, 10)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(StoreUnavailableError, match="bind again"):
            await bound.get_by_id("OrderSaga", "1")

    asyncio.run(use())


def test_a_statement_of_the_callers_that_is_not_at_its_end_says_so(caller, endpoint):
    def answer(sql):
        if "@@TRANCOUNT" in sql:
            return endpoint.numbers("transactions", 1)
        return endpoint.numbers("n", *range(5_000)) if "theirs" in sql else endpoint.counted(1)

    server, connection = caller(answer)

    async def use():
        async with parent().bind(connection) as bound:
            theirs = connection.execute("SELECT n FROM theirs")
            assert tuple(theirs.fetchone()) == (0,)
            with pytest.raises(SagaStoreError, match="close its cursor") as raised:
                await bound.insert("OrderSaga", "order-1", SagaState())
            assert not raised.value.retryable
            theirs.close()
            await bound.insert("OrderSaga", "order-1", SagaState())

    asyncio.run(use())
    assert sum("INSERT INTO" in request for request in server.requests) == 1


def test_no_cursor_is_left_to_be_collected(caller, endpoint, driver):
    """Its end would be told to the server by whatever thread collects it, over what the caller does."""

    def answer(sql):
        return endpoint.numbers("transactions", 1) if "@@TRANCOUNT" in sql else endpoint.counted(1)

    server, connection = caller(answer)

    async def use():
        bound = parent().bind(connection)
        for number in range(3):
            await bound.delete("OrderSaga", str(number))
            assert server.released == number + 1
            assert not bound._engine._session._cursors

    asyncio.run(use())


def test_a_lock_timeout_leaves_the_transaction_of_use(caller, endpoint):
    def answer(sql):
        if "@@TRANCOUNT" in sql:
            return endpoint.numbers("transactions", 1)
        return endpoint.error(1222, "Lock request time out.", severity=16) if "INSERT" in sql else endpoint.counted(1)

    _, connection = caller(answer)

    async def use():
        bound = parent().bind(connection)
        with pytest.raises(StoreUnavailableError, match="lock timeout"):
            await bound.insert("OrderSaga", "order-1", SagaState())
        await bound.delete("OrderSaga", "1")

    asyncio.run(use())


def test_a_lost_connection_is_the_callers_to_replace(caller, endpoint):
    server, connection = caller(lambda sql: endpoint.numbers("transactions", 1))

    async def use():
        bound = parent().bind(connection)
        await bound.__aenter__()
        server.cut()
        for _ in range(2):
            with pytest.raises(StoreUnavailableError):
                await bound.get_by_id("OrderSaga", "1")

    asyncio.run(use())


class SqliteTransaction(BoundEngine):
    """A bound engine on SQLite, which has no @@TRANCOUNT."""

    def __init__(self, connection):
        super().__init__(connection, PLACE, Operations(PLACE))


@pytest.fixture
def sqlite(sqlite_driver, tmp_path):
    connection = load().connect(f"Driver={sqlite_driver};Database={tmp_path / 'bound.db'}", autocommit=False)
    connection.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY)")
    connection.commit()
    yield connection
    connection.close()


def test_a_cancelled_caller_gets_the_connection_back_quiet(sqlite):
    engine = SqliteTransaction(sqlite)

    async def use():
        sqlite.execute("INSERT INTO numbers VALUES (1)")
        running = asyncio.ensure_future(engine.read(lambda session: session.read(ENDLESS)))
        deadline = time.monotonic() + 10
        while engine._session is None or engine._session._running is None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert engine._session._running is None
        sqlite.execute("INSERT INTO numbers VALUES (2)")
        assert [n for (n,) in sqlite.execute("SELECT n FROM numbers ORDER BY n").fetchall()] == [1, 2]
        sqlite.rollback()
        assert sqlite.execute("SELECT n FROM numbers").fetchall() == []

    asyncio.run(use())


def test_a_cancellation_that_comes_before_its_statement_stops_it_all_the_same(sqlite):
    engine = SqliteTransaction(sqlite)
    gate, told = threading.Event(), []

    def work(session):
        gate.wait(10)
        try:
            session.read(LONG)
        except SagaStoreError:
            told.append("stopped")
            raise
        told.append("went on to its end")

    async def use():
        await engine.read(lambda session: session.read(Statement("SELECT 1 AS alive", ())))
        running = asyncio.ensure_future(engine.read(work))
        await asyncio.sleep(0.02)
        running.cancel()
        asyncio.get_running_loop().call_later(0.02, gate.set)
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(use())
    assert told == ["stopped"]


def test_stores_on_one_connection_take_turns(sqlite):
    engines = [SqliteTransaction(sqlite) for _ in range(3)]
    inside, most = [], []

    def work(session):
        inside.append(session)
        most.append(len(inside))
        time.sleep(0.002)
        inside.remove(session)

    async def use():
        await asyncio.gather(*(engine.read(work) for engine in engines for _ in range(5)))

    asyncio.run(use())
    assert max(most) == 1


def test_work_that_waits_for_its_turn_is_dropped_with_its_caller(sqlite):
    first, second = SqliteTransaction(sqlite), SqliteTransaction(sqlite)
    gate, ran = threading.Event(), []

    async def use():
        holding = asyncio.ensure_future(first.read(lambda session: gate.wait(10)))
        await asyncio.sleep(0.02)
        waiting = asyncio.ensure_future(second.write(lambda session: ran.append(1)))
        await asyncio.sleep(0.02)
        waiting.cancel()
        asyncio.get_running_loop().call_later(0.02, gate.set)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await holding

    asyncio.run(use())
    assert ran == []


def test_the_callers_own_function_opens_the_connections(endpoint, url_of):
    server, made = endpoint(lambda sql: endpoint.numbers("state")), []

    def connect():
        made.append(load().connect(parse_location(url_of(server.port)).connection_string(), autocommit=False))
        return made[-1]

    async def use():
        async with SqlServerSagaStore(connect=connect) as store:
            assert await store.get_by_id("OrderSaga", "1") is None
            assert made[0].autocommit
            assert made[0].timeout == 30

    asyncio.run(use())
    with pytest.raises(load().ProgrammingError):
        made[0].execute("SELECT 1")


def test_what_the_callers_function_gives_is_checked():
    async def use(connect):
        async with SqlServerSagaStore(connect=connect):
            pass

    with pytest.raises(SagaStoreError, match="must give a pyodbc connection, not int"):
        asyncio.run(use(lambda: 5))
    with pytest.raises(SagaStoreError, match="driver"):
        asyncio.run(use(lambda: load().connect("Driver=no such driver")))
    with pytest.raises(SagaStoreError, match="driver"):
        asyncio.run(create_schema(lambda: load().connect("Driver=no such driver")))

"""Errors, from what both ODBC drivers make of a server's answers, of its silence and of its end."""

import asyncio
import contextlib
import socket
import sys
import threading
import time

import pytest

from saga_bus.store import (
    DuplicateSagaError,
    OutcomeUnknownError,
    SagaFilter,
    SagaNotFoundError,
    SagaState,
    SagaStoreError,
    SchemaError,
    StateEncodeError,
    StoreUnavailableError,
)
from saga_bus.store_sqlserver import SqlServerSagaStore
from saga_bus.store_sqlserver._errors import (
    ends_transaction,
    error_numbers,
    lost_connection,
    scrubbed,
    translated,
    writing,
)

OTHERS = [
    (1205, 13, StoreUnavailableError, "deadlock"),
    (1222, 16, StoreUnavailableError, "lock timeout"),
    (3960, 16, StoreUnavailableError, "snapshot"),
    (9002, 17, StoreUnavailableError, "log is full"),
    (1105, 17, StoreUnavailableError, "disk"),
    (10928, 16, StoreUnavailableError, "limit"),
    (40501, 16, StoreUnavailableError, "busy"),
    (49918, 16, StoreUnavailableError, "resources"),
    (8179, 16, StoreUnavailableError, "prepared statement"),
    (952, 16, StoreUnavailableError, "changing its state"),
    (3964, 16, SagaStoreError, "SNAPSHOT"),
    (208, 16, SchemaError, r"create_schema\(\)"),
    (207, 16, SchemaError, "column"),
    (229, 14, SagaStoreError, "permission"),
    (3906, 16, SagaStoreError, "read-only"),
    (3930, 16, SagaStoreError, "roll it back"),
    (2628, 16, SagaStoreError, "longer than its column"),
    (33557097, 16, SagaStoreError, "refused"),
]


def using(url, act, **options):
    async def use():
        async with SqlServerSagaStore(url, **options) as store:
            return await act(store)

    return asyncio.run(use())


def insert(store):
    return store.insert("OrderSaga", "order-1", SagaState())


def get(store):
    return store.get_by_id("OrderSaga", "1")


@pytest.mark.parametrize(("number", "severity", "kind", "text"), OTHERS)
@pytest.mark.parametrize("act", [insert, get])
def test_the_servers_errors(number, severity, kind, text, act, endpoint, url_of):
    server = endpoint(lambda sql: endpoint.error(number, "The server's own words (1205) (2627).", severity=severity))
    with pytest.raises(SagaStoreError, match=text) as raised:
        using(url_of(server.port), act)
    assert type(raised.value) is kind
    assert raised.value.retryable == (kind is StoreUnavailableError)
    assert error_numbers(raised.value.__cause__)[0] == number
    assert "The server's own words" in str(raised.value)


@pytest.mark.parametrize("number", [2601, 2627])
@pytest.mark.parametrize(("taken", "conflict"), [((1,), "saga_id"), ((2,), "correlation_id"), ((1, 2), "saga_id")])
def test_a_duplicate_says_which_key_is_taken(number, taken, conflict, endpoint, url_of):
    def answer(sql):
        if "INSERT INTO" in sql:
            return endpoint.error(number, "Cannot insert duplicate key.")
        return endpoint.numbers("taken", *taken)

    with pytest.raises(DuplicateSagaError) as raised:
        using(url_of(endpoint(answer).port), insert)
    assert raised.value.conflict == conflict


def test_a_duplicate_that_vanishes_is_tried_again(endpoint, url_of):
    inserts = []

    def answer(sql):
        if "INSERT INTO" in sql:
            inserts.append(sql)
            return endpoint.error(2627, "Cannot insert duplicate key.") if len(inserts) == 1 else endpoint.counted(1)
        return endpoint.numbers("taken")

    using(url_of(endpoint(answer).port), insert)
    assert len(inserts) == 2


def test_a_duplicate_that_cannot_be_seen_ends(endpoint, url_of):
    def answer(sql):
        return endpoint.error(2627, "Duplicate.") if "INSERT INTO" in sql else endpoint.numbers("taken")

    server = endpoint(answer)
    with pytest.raises(DuplicateSagaError):
        using(url_of(server.port), insert)
    assert sum("INSERT INTO" in sql for sql in server.requests) == 3


def test_a_state_that_is_too_deep(endpoint, url_of):
    server = endpoint(lambda sql: endpoint.error(547, "The INSERT statement conflicted with the CHECK constraint."))
    with pytest.raises(StateEncodeError, match="128 levels"):
        using(url_of(server.port), insert)


@pytest.mark.parametrize("number", [18456, 18452, 40615])
def test_a_refused_login_shows_no_password(number, endpoint, url_of):
    server = endpoint(refusal=endpoint.error(number, "Login failed for user 'sa' with geheim."))
    with pytest.raises(SagaStoreError) as raised:
        using(url_of(server.port, password="geheim"), get)
    assert type(raised.value) is SagaStoreError
    assert "geheim" not in f"{raised.value} {raised.value.__cause__}"
    assert server.logins[0]["password"] == "geheim"


@pytest.mark.parametrize("number", [40613, 40197, 18401, 17187, 4060, 4221])
def test_a_login_that_may_succeed_later(number, endpoint, url_of):
    server = endpoint(refusal=endpoint.error(number, "Not now, geheim."))
    with pytest.raises(StoreUnavailableError) as raised:
        using(url_of(server.port, password="geheim"), get, connect_timeout=2)
    assert "geheim" not in f"{raised.value} {raised.value.__cause__}"


def test_nobody_listens(free_port, url_of):
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError) as raised:
        using(url_of(free_port, password="geheim"), get, connect_timeout=1)
    assert type(raised.value) is StoreUnavailableError
    assert "geheim" not in str(raised.value)
    assert time.monotonic() - began < 8


def test_somebody_listens_and_never_answers(url_of):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            using(url_of(silent.getsockname()[1]), get, connect_timeout=1)
        assert time.monotonic() - began < 8


def test_a_failed_open_can_be_tried_again(endpoint, url_of):
    server = endpoint(refusal=endpoint.error(40613, "Not now."))

    async def use():
        store = SqlServerSagaStore(url_of(server.port), connect_timeout=1)
        with pytest.raises(StoreUnavailableError):
            await store.get_by_id("OrderSaga", "1")
        server.refusal = None
        server.answer = lambda sql: endpoint.numbers("state")
        assert await store.get_by_id("OrderSaga", "1") is None
        await store.close()

    asyncio.run(use())


def test_a_connection_cut_in_a_write_leaves_the_outcome_open(endpoint, url_of):
    server = endpoint(lambda sql: None)
    with pytest.raises(OutcomeUnknownError) as raised:
        using(url_of(server.port), insert)
    assert raised.value.retryable


def test_a_connection_cut_in_a_read_on_a_fresh_connection(endpoint, url_of):
    server = endpoint(lambda sql: None)
    with pytest.raises(StoreUnavailableError) as raised:
        using(url_of(server.port), get)
    assert type(raised.value) is StoreUnavailableError


def test_a_lost_connection_is_replaced_and_a_read_done_again(endpoint, url_of):
    server = endpoint(lambda sql: endpoint.counted(1) if "INSERT INTO" in sql else endpoint.numbers("state"))

    async def use(store):
        assert await get(store) is None
        server.cut()
        assert await get(store) is None
        server.cut()
        with contextlib.suppress(OutcomeUnknownError):
            await insert(store)
        await insert(store)

    using(url_of(server.port), use, pool_size=1)
    assert len(server.logins) >= 3


def test_one_lost_connection_makes_the_others_suspect(endpoint, url_of):
    """After a server's restart one write may end with an open outcome, and not one for each connection."""
    together = threading.Barrier(3, timeout=10)

    def answer(sql):
        if "COUNT_BIG" in sql:
            together.wait()
            return endpoint.numbers("n", 7)
        return endpoint.counted(1)

    server = endpoint(answer)

    async def use(store):
        assert await asyncio.gather(*(store.count(SagaFilter()) for _ in range(3))) == [7, 7, 7]
        server.cut()
        unknown = 0
        for _ in range(9):
            try:
                await insert(store)
            except OutcomeUnknownError:
                unknown += 1
        return unknown

    assert using(url_of(server.port), use, pool_size=4) <= 1  # what counts never has all connections


def test_a_write_that_takes_too_long(endpoint, url_of):
    server = endpoint(lambda sql: ...)
    with pytest.raises(OutcomeUnknownError):
        using(url_of(server.port), insert, command_timeout=1)
    assert server.cancelled == 1


def test_a_read_that_takes_too_long_is_not_done_again(endpoint, url_of):
    server = endpoint(lambda sql: ...)
    with pytest.raises(StoreUnavailableError) as raised:
        using(url_of(server.port), get, command_timeout=1)
    assert type(raised.value) is StoreUnavailableError
    assert len([sql for sql in server.requests if "SELECT state" in sql]) == 1


def test_an_update_that_finds_no_row(endpoint, url_of):
    server = endpoint(lambda sql: endpoint.counted(0) if "UPDATE" in sql else endpoint.numbers("version"))
    state = SagaState()
    state.metadata = state.metadata.next()
    with pytest.raises(SagaNotFoundError):
        using(url_of(server.port), lambda store: store.update("OrderSaga", state, 0))


def test_a_driver_that_is_not_there(pyodbc):
    with pytest.raises(SagaStoreError, match="driver") as raised:
        using("mssql://sa:geheim@127.0.0.1/x?driver=No%20such%20driver", get)
    assert not raised.value.retryable
    assert "geheim" not in str(raised.value)


def test_a_machine_without_a_driver_manager(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyodbc", None)
    store = SqlServerSagaStore("mssql://db/shop?driver=x")
    with pytest.raises(SagaStoreError, match="unixODBC"):
        asyncio.run(store.get_by_id("OrderSaga", "1"))


@pytest.fixture
def made(pyodbc):
    """Makes an error as pyodbc does."""
    return pyodbc.Error


@pytest.mark.parametrize(
    ("sqlstate", "text", "number"),
    [
        ("23000", "[23000] [M][ODBC Driver 18 for SQL Server][SQL Server]Duplicate (7). (2627) (SQLExecute)", (2627,)),
        ("01000", "[01000] [M]Ended. (3621) (SQLExecute); [23000] [M]Duplicate. (2601)", (3621, 2601)),
        ("23000", "[23000] [M]A. (2627); [01000] [M]Ended. (3621)", (2627, 3621)),
        ("HY000", "no number at all", ()),
    ],
)
def test_numbers_are_read_from_each_record(made, sqlstate, text, number):
    assert error_numbers(made(sqlstate, text)) == number


def test_losses_that_freetds_reports_as_general_errors(made):
    error = made("HY000", "[HY000] [FreeTDS][SQL Server]Unexpected EOF from the server (20017) (SQLExecute)")
    assert lost_connection(error)
    assert type(translated(error)) is StoreUnavailableError
    assert type(writing(error)) is OutcomeUnknownError


def test_a_killed_session_leaves_the_outcome_open(made):
    error = made(
        "HY000", "[HY000] [M][SQL Server]Cannot continue, the session is in the kill state. (596) (SQLExecute)"
    )
    assert lost_connection(error)
    assert type(writing(error)) is OutcomeUnknownError


def test_a_login_that_is_refused_because_the_database_is_not_recovered_yet(made):
    """The refusal comes first, and the reason behind it."""
    error = made(
        "28000",
        "[28000] [M][SQL Server]Login failed for user 'sa'. (18456) (SQLDriverConnect); "
        '[28000] [M][SQL Server]Cannot open database "shop" requested by the login. The login failed. (4060)',
    )
    assert type(translated(error)) is StoreUnavailableError
    assert "not open yet" in str(translated(error))


def test_a_deadlock_is_known_to_be_rolled_back(made):
    error = made("40001", "[40001] [M][SQL Server]Deadlock victim. (1205) (SQLExecute)")
    assert not lost_connection(error)
    assert type(writing(error)) is StoreUnavailableError


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        (
            "[42000] [M][SQL Server]No more. (50000) (SQLExecute); [M][SQL Server]Ended in the trigger. (3609)",
            True,
        ),
        ("[42000] [M][SQL Server]An error was raised during trigger execution. (3616) (SQLExecute)", True),
        ("[42000] [M][SQL Server]Uncommittable transaction is detected. (3998) (SQLExecute)", True),
        ("[42000] [M][SQL Server]canceling statement due to lock timeout (33557097) (SQLExecute)", True),
        ("[HYT00] [M][SQL Server]Lock request time out period exceeded. (1222) (SQLExecute)", False),
        ("[23000] [M][SQL Server]Violation of PRIMARY KEY constraint. (2627) (SQLExecute)", False),
        ("[23000] [M][SQL Server]The statement conflicted with the CHECK constraint. (547) (SQLExecute)", False),
    ],
)
def test_errors_that_end_the_whole_transaction(made, text, ends):
    assert ends_transaction(made("42000", text)) == ends


def test_passwords_are_taken_out_in_every_form(made):
    error = made("28000", "[28000] PWD={a}}b} and a}b")
    clean = scrubbed(error, ["a}b"])
    assert "a}b" not in str(clean)
    assert "a}}b" not in str(clean)
    assert type(clean) is type(error)
    assert scrubbed(error, ["other"]) is error

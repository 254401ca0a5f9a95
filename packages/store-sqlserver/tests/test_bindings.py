"""What goes over the wire: one request for each operation, every parameter with its column's own type."""

import asyncio
import re
from datetime import UTC, datetime

import msgspec
import pytest

from saga_bus.store import JsonStateCodec, SagaFilter, SagaMetadata, SagaState
from saga_bus.store_sqlserver import SqlServerSagaStore
from saga_bus.store_sqlserver._odbc import is_freetds

CREATED = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
KEYS = ["nvarchar(257)", "nvarchar(257)"]


class NoteState(SagaState, kw_only=True):
    note: str = ""


@pytest.fixture
def sent(endpoint, url_of):
    """Runs an act against an endpoint that lets every write succeed, and gives the endpoint."""

    def run(act):
        def answer(sql):
            if "COUNT_BIG" in sql:
                return endpoint.numbers("n", 0)
            return endpoint.numbers("state") if "SELECT" in sql else endpoint.counted(1)

        server = endpoint(answer)

        async def use():
            async with SqlServerSagaStore(url_of(server.port), state_types={"OrderSaga": NoteState}) as store:
                server.requests.clear()
                await act(store)

        asyncio.run(use())
        return server

    return run


def types(request):
    found = dict(
        re.findall(
            r"@P(\d+) ((?:nvarchar|varchar|bigint|int|bit|ntext|datetime2)\b(?:\(\w+\))?)", request, re.IGNORECASE
        )
    )
    return [found[number].lower() for number in sorted(found, key=int)]


def state(**metadata):
    return NoteState(metadata=SagaMetadata(saga_id="1", version=0, created_at=CREATED, updated_at=CREATED, **metadata))


def test_an_insert_is_one_request_with_the_types_of_its_columns(sent):
    server = sent(lambda store: store.insert("OrderSaga", "order-1", state()))
    (request,) = server.requests
    moments = ["nvarchar(27)", "nvarchar(27)"]
    assert types(request) == [*KEYS, "nvarchar(513)", "bigint", "bit", *moments, "bit", "nvarchar(max)"]
    assert "2026-01-02T03:04:05.678901".encode("utf-16-le") in server.sent


def test_an_insert_with_every_moment(sent):
    server = sent(lambda store: store.insert("OrderSaga", "c", state(archived_at=CREATED, timeout_expires_at=CREATED)))
    (request,) = server.requests
    assert types(request)[-3:] == ["nvarchar(max)", "nvarchar(27)", "nvarchar(27)"]


def test_an_update_is_one_request_with_the_types_of_its_columns(sent):
    def act(store):
        changed = state()
        changed.metadata = msgspec.structs.replace(changed.metadata, version=1)
        return store.update("OrderSaga", changed, 0)

    (request,) = sent(act).requests
    assert types(request) == [
        *("bigint", "bit", "nvarchar(27)", "bit", "nvarchar(max)"),
        *(*KEYS, "bigint", "nvarchar(27)"),
    ]


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda store: store.get_by_id("OrderSaga", "1"), KEYS),
        (lambda store: store.get_by_correlation_id("OrderSaga", "1"), ["nvarchar(257)", "nvarchar(513)"]),
        (lambda store: store.delete("OrderSaga", "1"), KEYS),
        (lambda store: store.delete("OrderSaga", "1", 7), [*KEYS, "bigint"]),
        (
            lambda store: store.count(SagaFilter(saga_name="OrderSaga", created_after=CREATED)),
            [KEYS[0], "nvarchar(27)"],
        ),
    ],
)
def test_the_other_operations_are_one_request_each(sent, act, expected):
    (request,) = sent(act).requests
    assert types(request) == expected


@pytest.mark.parametrize("note", ["x" * 3_000, "x" * 5_000, "😀" * 5_000, "y" * 1_000_000], ids=len)
def test_a_long_state_arrives_whole(sent, note):
    server = sent(lambda store: store.insert("OrderSaga", "order-1", NoteState(note=note)))
    assert note.encode("utf-16-le") in server.sent
    assert types(server.requests[0])[8] == "nvarchar(max)"


def test_a_statement_that_is_used_again_is_released_in_the_same_request(endpoint, url_of, driver):
    """Microsoft's driver needs one request for an operation; FreeTDS sends a second one, which releases the last."""
    server = endpoint(lambda sql: endpoint.counted(1))

    async def use():
        async with SqlServerSagaStore(url_of(server.port)) as store:
            for _ in range(5):
                await store.delete("OrderSaga", "1")
            return server.released

    assert asyncio.run(use()) == (4 if is_freetds(driver) else 0)


@pytest.mark.parametrize("table", ["{brackets}?", "it's ]quoted[", 'a "b" c', "{fn x(?)} -- ? /* ?"])
def test_a_name_is_nothing_for_the_driver_to_read(endpoint, url_of, table):
    """Neither a place for a parameter nor one of ODBC's escape sequences."""
    server = endpoint(lambda sql: endpoint.texts("state"))

    async def use():
        async with SqlServerSagaStore(url_of(server.port), table=table) as store:
            assert await store.get_by_id("OrderSaga", "1") is None

    asyncio.run(use())
    assert types(server.requests[-1]) == KEYS
    assert f"[{table.replace(']', ']]')}] WHERE" in server.requests[-1]


def test_reads_at_the_same_time_go_together(sent):
    async def act(store):
        await asyncio.gather(*(store.get_by_id("OrderSaga", str(number)) for number in range(9)))

    requests = sent(act).requests
    sizes = [len(set(re.findall(r"(\d+) AS number", request))) for request in requests if "READPAST" in request]
    assert sizes == [8]  # the first goes alone
    # What a group did not find is read again, alone, since it may only have been locked.
    assert len([request for request in requests if "SELECT state" in request]) == 9


def test_a_lone_read_is_one_request_even_if_it_finds_nothing(sent):
    (request,) = sent(lambda store: store.get_by_id("OrderSaga", "nobody")).requests
    assert "READPAST" not in request


def test_a_saga_that_a_group_finds_is_read_once(endpoint, url_of):
    documents = [JsonStateCodec().encode(NoteState(note=note)).decode() for note in ("alone", "together")]

    def answer(sql):
        if "READPAST" in sql:
            return endpoint.rows(*((number, documents[1]) for number in range(8)))
        return endpoint.texts("state", documents[0])

    server = endpoint(answer)

    async def use():
        async with SqlServerSagaStore(url_of(server.port), state_types={"OrderSaga": NoteState}) as store:
            found = await asyncio.gather(*(store.get_by_id("OrderSaga", str(number)) for number in range(9)))
            assert [state.note for state in found] == ["alone"] + ["together"] * 8

    asyncio.run(use())
    assert len([request for request in server.requests if "SELECT state" in request]) == 1


@pytest.mark.parametrize(
    ("number", "groups"),
    [(650, 3), (1222, 6)],  # the one says that the isolation level is not for groups, the other that a lock is held
)
def test_a_group_of_reads_that_the_server_refuses_is_read_one_by_one(endpoint, url_of, number, groups):
    document = JsonStateCodec().encode(NoteState(note="alone")).decode()

    def answer(sql):
        return endpoint.error(number, "No.", severity=16) if "READPAST" in sql else endpoint.texts("state", document)

    server = endpoint(answer)

    async def use():
        async with SqlServerSagaStore(url_of(server.port), state_types={"OrderSaga": NoteState}) as store:
            for _ in range(6):
                found = await asyncio.gather(*(store.get_by_id("OrderSaga", str(number)) for number in range(5)))
                assert [state.note for state in found] == ["alone"] * 5

    asyncio.run(use())
    assert len([request for request in server.requests if "READPAST" in request]) == groups


@pytest.mark.parametrize("note", ["", "x" * 3_000, "😀\N{IDEOGRAPHIC SPACE}ü " * 5_000, "y" * 1_000_000], ids=len)
def test_a_long_state_comes_back_whole(endpoint, url_of, note):
    written = NoteState(note=note)
    document = JsonStateCodec().encode(written).decode()
    server = endpoint(lambda sql: endpoint.texts("state", document))

    async def use():
        async with SqlServerSagaStore(url_of(server.port), state_types={"OrderSaga": NoteState}) as store:
            assert await store.get_by_id("OrderSaga", written.metadata.saga_id) == written
            assert await store.get_by_correlation_id("OrderSaga", "order-1") == written

    asyncio.run(use())


@pytest.mark.parametrize(
    "query", [lambda store: store.count(SagaFilter()), lambda store: store.find(SagaFilter())], ids=["count", "find"]
)
def test_queries_that_wait_for_a_locked_row_never_have_all_connections(endpoint, url_of, query):
    server = endpoint(lambda sql: ... if "FROM [dbo]" in sql else endpoint.numbers("answer"))

    async def use():
        async with SqlServerSagaStore(url_of(server.port), pool_size=2, command_timeout=1) as store:
            waiting = [asyncio.ensure_future(query(store)) for _ in range(2)]
            await asyncio.sleep(0.2)
            assert (await store.ping()).warnings == ()
            assert not any(task.done() for task in waiting)
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(use())


def test_many_callers_at_once(endpoint, url_of):
    server = endpoint(lambda sql: endpoint.counted(1))

    async def use():
        async with SqlServerSagaStore(url_of(server.port), pool_size=6) as store:
            await asyncio.gather(*(store.delete("OrderSaga", str(number), 7) for number in range(300)))

    asyncio.run(use())
    assert len([request for request in server.requests if "DELETE FROM" in request]) == 300
    assert len(server.logins) <= 6

"""What the store declares, and the size that it declares as the largest of a state."""

import asyncio
from dataclasses import replace

import pytest

from saga_bus.store import (
    JsonStateCodec,
    SagaMetadata,
    SagaState,
    StateTooLargeError,
    StoreCapabilities,
)
from saga_bus.store_sqlserver import SqlServerSagaStore
from saga_bus.store_sqlserver._location import parse_location
from saga_bus.store_sqlserver._odbc import load

NAME = "OrderSaga"


class NoteState(SagaState, kw_only=True):
    note: str = ""


def test_every_ability_is_declared_but_states_that_expire_by_themselves():
    # nvarchar(max) takes 2 ** 31 - 2 bytes of UTF-16, in which a byte of UTF-8 can become two.
    assert SqlServerSagaStore.capabilities == StoreCapabilities(
        conditional_delete=True,
        query=True,
        retention=True,
        schema=True,
        transactions=True,
        ping=True,
        completed_ttl=None,
        processes=True,
        max_state_bytes=(2**31 - 2) // 2 - 1,
    )


LIMIT = 5_000


@pytest.fixture
def limited(monkeypatch):
    monkeypatch.setattr(
        SqlServerSagaStore, "capabilities", replace(SqlServerSagaStore.capabilities, max_state_bytes=LIMIT)
    )


def of_size(size, version=0):
    """A state whose document has so many bytes, some of them in characters of two and of four."""
    metadata = SagaMetadata.fresh("1")
    for _ in range(version):
        metadata = metadata.next()
    state = NoteState(metadata=metadata, note="ü😀")
    state.note += "x" * (size - len(JsonStateCodec().encode(state)))
    assert len(JsonStateCodec().encode(state)) == size
    return state


async def write(store, kind, size):
    if kind == "insert":
        await store.insert(NAME, "order-1", of_size(size))
    else:
        await store.update(NAME, of_size(size, version=1), 0)


@pytest.mark.parametrize("kind", ["insert", "update"])
@pytest.mark.parametrize("bound", [False, True])
def test_a_state_that_is_too_large_is_refused_before_anything_is_sent(limited, endpoint, url_of, kind, bound):
    server = endpoint(lambda sql: endpoint.numbers("transactions", 1) if "TRANCOUNT" in sql else endpoint.counted(1))
    url = url_of(server.port)

    async def use():
        async with SqlServerSagaStore(url, state_types={NAME: NoteState}) as store:
            connection = load().connect(parse_location(url).connection_string(), autocommit=False)
            try:
                async with store.bind(connection) as in_transaction:
                    place = in_transaction if bound else store
                    sent = len(server.sent)
                    with pytest.raises(StateTooLargeError) as raised:
                        await write(place, kind, LIMIT + 1)
                    assert len(server.sent) == sent
                    assert (raised.value.size, raised.value.limit, raised.value.saga_id) == (LIMIT + 1, LIMIT, "1")
                    assert not raised.value.retryable
                    await write(place, kind, LIMIT)
                    assert of_size(LIMIT).note.encode("utf-16-le") in server.sent
            finally:
                connection.close()

    asyncio.run(use())


def test_one_state_that_is_too_large_fails_its_own_caller_alone(limited, endpoint, url_of):
    server = endpoint(lambda sql: endpoint.counted(1))

    async def use():
        async with SqlServerSagaStore(url_of(server.port), state_types={NAME: NoteState}) as store:
            sizes = [LIMIT + 1 if number == 3 else LIMIT for number in range(6)]
            states = [of_size(size) for size in sizes]
            for number, state in enumerate(states):
                state.metadata = SagaMetadata.fresh(f"{number}")
            return await asyncio.gather(
                *(store.insert(NAME, f"order-{number}", state) for number, state in enumerate(states)),
                return_exceptions=True,
            )

    outcomes = asyncio.run(use())
    assert [type(outcome) for outcome in outcomes] == [
        StateTooLargeError if number == 3 else type(None) for number in range(6)
    ]

"""What the declared limit promises: each state below it can be written and read, alone and in a group."""

from __future__ import annotations

import asyncio

import pytest

from postgres_helpers import SAGA, OrderState, connected, store_on
from saga_bus.store import StateEncodeError
from saga_bus.store_postgres import PostgresSagaStore
from saga_bus.store_postgres._statements import DOCUMENT

LIMIT = PostgresSagaStore.capabilities.max_state_bytes
LARGEST_JSONB = 2**28 - 1
LARGEST_TEXT = 2**30 - 1
SAMPLE = 200_000

# Lists of one thing, each as short as it can be, and what grows most on its way into JSONB or out of it.
ITEMS = ["1", "0", "12345", "0.1", "1e9", "1e15", "1e16", "1e300", "1e-9", "1e-10", "1e-99", "5e-324", "-0.0", "true"]
ITEMS += ['""', '"\\n"', '"\\u0001"', "[]", "{}", "[1]", "[[]]", '{"":1}', '{"":[]}']
LISTS = {item: f"[{','.join([item] * (SAMPLE // (len(item) + 1)))}]" for item in ITEMS}
MANY_KEYS = "{" + ",".join(f'"{number:x}":1' for number in range(SAMPLE // 9)) + "}"


class Verbatim:
    """A codec for states whose note is the document."""

    def register(self, saga_name, state_type):
        pass

    def encode(self, state):
        return state.note.encode()

    def decode(self, saga_name, document):
        return OrderState(note=document.decode())


@pytest.mark.parametrize("text", [*LISTS.values(), MANY_KEYS], ids=[*LISTS, "many keys"])
def test_whatever_is_below_the_limit_fits_into_jsonb_and_comes_out_as_a_text(url, text):
    """Measured on a small state, as size follows length; a group adds the text itself where it is kept."""

    async def run():
        async with store_on(url, codec=Verbatim()) as store, connected(url) as connection:
            state = OrderState(note=text)
            await store.insert(SAGA, "order-1", state)
            stored = await connection.fetchval("SELECT pg_column_size($1::text::jsonb)", text)
            read = await connection.fetchval(f"SELECT octet_length({DOCUMENT}) FROM {store._quoted} AS s")
            kept = await connection.fetchval(f"SELECT coalesce(octet_length(exact_state), 0) FROM {store._quoted}")
            return (stored + kept) / len(text), read / len(text)

    stored, read = asyncio.run(run())
    assert stored * LIMIT < LARGEST_JSONB
    assert read * LIMIT < LARGEST_TEXT / 8  # far from it: the client has to hold it, too


def test_the_longest_list_below_the_limit_in_a_group(url):
    """As many elements as there can be, for which PostgreSQL's array may not double once more, and the text itself."""

    async def run():
        async with store_on(url, codec=Verbatim()) as store:
            text = "[" + "1," * (LIMIT // 2 - 4) + "1e16]"
            assert LIMIT - 2 <= len(text) <= LIMIT
            first, *group = [OrderState(note=note) for note in ("[0]", "[1]", text, "[2]")]
            await asyncio.gather(
                store.insert(SAGA, "first", first),  # it leaves alone
                *(store.insert(SAGA, f"order-{number}", state) for number, state in enumerate(group)),
            )
            assert (await store.get_by_correlation_id(SAGA, "order-1")).note == text
            assert (await store.get_by_correlation_id(SAGA, "order-2")).note == "[2]"

    asyncio.run(run())


def test_a_state_that_is_nested_too_deeply_is_an_error_of_its_own(url):
    async def run():
        async with store_on(url, codec=Verbatim()) as store:
            deep = OrderState(note="[" * 50_000 + "]" * 50_000)
            with pytest.raises(StateEncodeError, match="nested more deeply"):
                await store.insert(SAGA, "deep", deep)
            first, *others = [store.insert(SAGA, f"order-{n}", OrderState(note="[]")) for n in range(4)]
            outcomes = await asyncio.gather(first, store.insert(SAGA, "deep", deep), *others, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [type(None), StateEncodeError] + [type(None)] * 3

    asyncio.run(run())

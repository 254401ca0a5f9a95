"""Keys and documents on their way through a client that indents texts, and into databases that pad them."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_bus.store import UntypedSagaState
from saga_bus.store_prisma import PrismaSagaStore, create_schema
from saga_bus.store_prisma._errors import translated
from saga_bus.store_prisma._health import warnings_about
from saga_bus.store_prisma._rows import Keys, hour_of, text_of

ODD = "\x85\u2028\u2029\N{SYMBOL FOR ESCAPE}\N{SYMBOL FOR SPACE} 012aé"
keys = st.text(st.sampled_from(ODD), min_size=1, max_size=6)


@pytest.mark.parametrize("provider", ["sqlite", "sqlserver"])
@settings(max_examples=300, deadline=None)
@given(one=keys, other=keys)
def test_a_key_comes_back_and_no_two_are_stored_as_one(provider, one, other):
    store = Keys(provider)
    assert store.read(store.stored(one)) == one
    assert (store.stored(one) == store.stored(other)) == (one == other)
    assert not {"\x85", "\u2028", "\u2029"} & set(store.stored(one))
    if provider == "sqlserver":  # which pads with blanks when it compares
        assert (store.stored(one).rstrip(" ") == store.stored(other).rstrip(" ")) == (one == other)


def test_ordinary_keys_are_stored_as_they_are():
    for key in ("order-1", "  order ", "é", "\U0001f600", "a\nb", "\t"):
        assert Keys("sqlite").stored(key) == key


@given(st.dictionaries(st.text(), st.text(st.sampled_from(ODD))))
def test_a_document_means_the_same(content):
    document = json.dumps(content, ensure_ascii=False).encode()
    sent = text_of(document)
    assert json.loads(sent) == content
    assert len(sent.splitlines()) <= 1


def test_hours_begin_before_1970_too():
    assert [hour_of(moment) for moment in (-3_600_000_001, -1, 0, 3_599_999_999, 3_600_000_000)] == [-2, -1, 0, 0, 1]


@pytest.mark.parametrize("place", ["on_sqlite", "on_postgres"])
def test_ends_of_lines_in_keys_through_a_real_client(request, place):
    clients = request.getfixturevalue(place)

    async def main():
        async with clients.connected() as client:
            await create_schema(client, model="saga2")
            store = PrismaSagaStore(prisma=client, model="saga2")
            try:
                for number, key in enumerate(ODD):
                    await store.insert(key, f"{key}{number}{key}", UntypedSagaState(data={key: key}))
                for number, key in enumerate(ODD):
                    found = await store.get_by_correlation_id(key, f"{key}{number}{key}")
                    assert found.data == {key: key}
            finally:
                await store.drop_schema()

    asyncio.run(main())


def test_settings_that_put_sagas_at_risk():
    safe = {"fsync": "on", "synchronous_commit": "on", "journal_mode": "wal", "synchronous": 2, "answer": 1}
    assert warnings_about(safe) == []
    for name, value in (("fsync", "off"), ("synchronous_commit", "off"), ("journal_mode", "off"), ("synchronous", 1)):
        (warning,) = warnings_about({**safe, name: value})
        assert warning.startswith(f"{name} is {value}: ")


def test_a_private_servers_risk_is_told(on_private_postgres):
    async def main():
        async with on_private_postgres.connected() as client:
            ping = await PrismaSagaStore(prisma=client, model="saga0").ping()
            assert [warning.split(":")[0] for warning in ping.warnings] == ["fsync is off"]

    asyncio.run(main())


def test_messages_keep_what_the_client_said():
    assert "(ValueError: no JSON)" in str(translated(ValueError("no JSON"), writing=False))

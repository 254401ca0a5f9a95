"""States as BSON: every JSON document comes back as it was, in a form that MongoDB takes and that can be queried."""

from __future__ import annotations

import json

import bson
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from saga_bus.store import SagaRow, SagaState, StateDecodeError, StateEncodeError, StateTooLargeError
from saga_bus.store_mongodb._documents import MAX_STATE_BYTES, Insert, Update, json_of, key_of


def row_of(document: bytes, **changes) -> SagaRow:
    metadata = SagaState().metadata
    fields = {
        "saga_name": "OrderSaga",
        "saga_id": metadata.saga_id,
        "version": 0,
        "document": document,
        "is_completed": False,
        "created_at": metadata.created_at,
        "updated_at": metadata.updated_at,
        "archived_at": None,
        "timeout_expires_at": None,
        "outbox_pending": False,
    }
    return SagaRow(**{**fields, **changes})


def stored(document: bytes):
    """What MongoDB has of a document, as the driver reads it."""
    return bson.decode(bson.encode(Insert.of(row_of(document), "order-1").document))["state"]


def keys_of(value) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(key for item in value.values() for key in keys_of(item))]
    return [key for item in value for key in keys_of(item)] if isinstance(value, list) else []


def depth_of(value) -> int:
    if isinstance(value, dict | list):
        return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)
    return 0


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
KEYS = st.one_of(st.sampled_from(["$", "$set", "$ref", "$id", "a.b", ".", "~", "~0", "~1json", "~json", "_id"]), TEXTS)
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        TEXTS,
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS.filter(bool), inner, max_size=4)),
    max_leaves=20,
)


@settings(deadline=None)
@given(st.dictionaries(KEYS.filter(bool), VALUES, max_size=5))
@example({"$ref": "orders", "$id": 7, "$db": "shop"})
@example({"~json": "{}"})
@example({"a": 1, "_id": {"b": 2, "_id": 3}})
@example({"a": {"~json": "1"}, "b": -0.0, "c": 1e16, "d": 2**63 - 1})
def test_every_document_comes_back_as_it_was(state):
    document = msgspec.json.encode(state)
    assert json_of(stored(document)) == document  # the bytes: the order of keys and the types of numbers, too


@pytest.mark.parametrize("key", ["x", "$x.y"])
@pytest.mark.parametrize("depth", [1, 88, 89, 90, 91, 92, 120, 400])
def test_deep_nesting_comes_back_and_stays_below_the_limit_of_the_server(depth, key):
    value = "bottom"
    for level in range(depth):
        value = [value] if level % 2 else {key: value}
    document = msgspec.json.encode({"deep": value, "flat": 1})
    state = stored(document)
    assert json_of(state) == document
    assert depth_of(state) <= 92


def test_names_that_mean_something_to_mongodb_are_never_keys():
    state = stored(msgspec.json.encode({"$set": {"$ref": "x", "$id": 1}, "a.b": [{"$where": "1"}], "price$": 1}))
    assert list(state) == ["~2set", "a~1b", "price$"]
    assert not any(key.startswith("$") or "." in key for key in keys_of(state))


@settings(deadline=None)
@given(st.dictionaries(KEYS.filter(bool), VALUES, max_size=5), st.sampled_from([None, 1]), st.booleans())
def test_no_key_means_something_however_the_json_is_written(state, indent, ascii_only):
    document = json.dumps(state, indent=indent, ensure_ascii=ascii_only).encode()
    found = stored(document)
    assert not any(key.startswith("$") or "." in key for key in keys_of(found))
    assert msgspec.json.decode(json_of(found)) == state


@pytest.mark.parametrize(
    "document",
    [
        b'{"a.b":1}',
        b'{"a.b" \t:1}',
        b'{"a\\u002eb":1}',
        b'{"\\u0024a":1}',
        b'{"a.\\"b":1}',
        b'{"t":"1.5","u":[{"x":".","a.b":1}]}',
        b'{"$a":1}',
        b'{"a~":1}',
        b'{"a":{"~json":"1"}}',
    ],
)
def test_a_key_that_has_to_be_written_in_another_way_is_seen(document):
    found = stored(document)
    assert any("~" in key for key in keys_of(found))
    assert msgspec.json.decode(json_of(found)) == msgspec.json.decode(document)


@pytest.mark.parametrize("text", ["1.50", "$5", "a~b", 'he said "a.b": c', "C:\\temp.x", "~json"])
def test_a_text_stays_what_it_is(text):
    assert stored(msgspec.json.encode({"a": text, "b": [text]})) == {"a": text, "b": [text]}


def test_plain_fields_are_stored_under_their_names():
    state = stored(b'{"customer":"ada","lines":[{"sku":"x","count":3000000000}],"paid":true,"at":null,"share":0.5}')
    assert state == {
        "customer": "ada",
        "lines": [{"sku": "x", "count": 3_000_000_000}],
        "paid": True,
        "at": None,
        "share": 0.5,
    }


@pytest.mark.parametrize("document", [b'"a text"', b"[1, 2.50]", b"17", b"null", b'{ "a" : 1 }'])
def test_what_another_codec_writes_comes_back(document):
    assert msgspec.json.decode(json_of(stored(document))) == msgspec.json.decode(document)


@pytest.mark.parametrize("document", [b'{"a": 9223372036854775808}', b'{"a\\u0000b": 1}', b"not json", b'"\xff"'])
def test_what_mongodb_cannot_hold_is_refused(document):
    with pytest.raises(StateEncodeError) as caught:
        Insert.of(row_of(document), "order-1")
    assert type(caught.value) is StateEncodeError


@pytest.mark.parametrize("state", [{"a": bson.ObjectId()}, {"a": [bson.Regex("x")]}, 7.5j])
def test_what_no_store_wrote_is_a_decode_error(state):
    with pytest.raises(StateDecodeError):
        json_of(state)


def test_the_size_that_counts_is_that_of_the_bson():
    many = msgspec.json.encode({"numbers": [1] * 1_500_000})
    assert len(many) < MAX_STATE_BYTES / 4
    with pytest.raises(StateTooLargeError) as caught:
        Insert.of(row_of(many), "order-1")
    assert caught.value.limit == MAX_STATE_BYTES
    assert caught.value.size == len(bson.encode(msgspec.json.decode(many))) > MAX_STATE_BYTES
    with pytest.raises(StateTooLargeError):
        Update.of(row_of(many), 0)
    lines = msgspec.json.encode({"text": "\n" * 9_000_000})
    assert len(lines) > MAX_STATE_BYTES
    assert json_of(stored(lines)) == lines


NAMES = ["A", "A/B", "A~1B", "A~", "/", "~1", "~0", "A//", "A/", "/A", "B"]


def test_no_two_sagas_have_one_key():
    pairs = [(name, saga_id) for name in NAMES for saga_id in NAMES]
    assert len({key_of(*pair) for pair in pairs}) == len(pairs)


def test_moments_are_microseconds_and_absent_rather_than_null():
    moment = SagaState().metadata.created_at.replace(year=2026, microsecond=123457)
    document = Insert.of(row_of(b"{}", created_at=moment, timeout_expires_at=moment), "order-1").document
    assert document["created_at"] == document["timeout_expires_at"]
    assert document["created_at"] % 1_000_000 == 123457
    assert "archived_at" not in document
    update = Update.of(row_of(b"{}", archived_at=moment), 0)
    assert set(update.where) == {"_id", "saga_name", "version"}
    assert update.changes["$unset"] == {"timeout_expires_at": ""}
    assert "archived_at" in update.changes["$set"]

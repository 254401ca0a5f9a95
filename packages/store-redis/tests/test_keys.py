"""Keys are unambiguous and in one hash slot, and what they hold comes back."""

import re
from datetime import UTC, datetime, timedelta, timezone
from itertools import product

import pytest
from redis.crc import key_slot

from saga_bus.store import InvalidSagaError, SagaRow
from saga_bus.store_redis import get_key_layout
from saga_bus.store_redis._keys import (
    check_prefix,
    fields_of,
    keys_of,
    moment_of_text,
    names_of_fields,
    parse_record,
    schema_key,
    text_of_microseconds,
    text_of_moment,
    type_field,
)

NAMES = ["a", "a:b", "}", "{", "{}", "a}:s:b", "%7B", "%", "{a}", "}{", "é", "e\u0301", " ", "a ", "schema", "i", "s:x"]
IDS = ["x", "", "b:c", "}", "{", "i", ":i", "s:x", "\n", "\u00e9"]
PREFIXES = ["p", "p:", "p:q", "p:schema"]


def test_no_two_things_have_one_key():
    seen = {}
    for prefix, name in product(PREFIXES, NAMES):
        keys = keys_of(prefix, name)
        found = [(keys.index_key, "index")]
        found += [(keys.states + saga_id.encode(), "state", saga_id) for saga_id in IDS]
        found += [(keys.pointers + correlation_id.encode(), "pointer", correlation_id) for correlation_id in IDS]
        for key, *what in found:
            assert seen.setdefault(key, (prefix, name, *what)) == (prefix, name, *what)
    for prefix in PREFIXES:
        assert seen.setdefault(schema_key(prefix), prefix) == prefix


@pytest.mark.parametrize("name", NAMES)
def test_all_keys_of_a_type_are_in_one_slot_which_its_name_alone_decides(name):
    slots = set()
    for prefix in PREFIXES:
        keys = keys_of(prefix, name)
        for part in IDS:
            slots |= {key_slot(keys.index_key), key_slot(keys.states + part.encode())}
            slots.add(key_slot(keys.pointers + part.encode()))
    assert len(slots) == 1


def test_names_come_back_from_the_schema():
    assert names_of_fields([b"layout", *map(type_field, NAMES)]) == sorted(NAMES)


def test_moments_sort_as_texts_and_come_back():
    moments = [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1684, 5, 6, 1, 2, 3, 4, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        datetime(2026, 1, 1, 3, 0, 0, 2, tzinfo=timezone(timedelta(hours=3))),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    ]
    texts = [text_of_moment(moment) for moment in moments]
    assert texts == sorted(set(texts))
    assert {len(text) for text in texts} == {18}
    for text in texts:
        assert text_of_microseconds(moment_of_text(text.encode())) == text


def test_fields_say_what_a_row_says():
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    text = text_of_moment(moment)
    fields = fields_of(SagaRow("n", "i", 3, b"{}", True, moment, moment, moment, moment, True))
    assert (fields.version, fields.created_at, fields.updated_at, fields.due_at) == ("3", text, text, text)
    assert (fields.flags, fields.is_plain) == ("CAO", False)
    fields = fields_of(SagaRow("n", "i", 3, b"{}", False, moment, moment, None, None, False))
    assert (fields.due_at, fields.flags, fields.is_plain) == ("", "", True)
    archived = fields_of(SagaRow("n", "i", 3, b"{}", False, moment, moment, moment, None, False))
    assert (archived.flags, archived.is_plain) == ("A", True)


def test_a_head_begins_a_record():
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    fields = fields_of(SagaRow("n", "i", 3, b"{}", False, moment, moment, moment, moment, True))
    record = parse_record(fields.head().encode() + b'order-1\0{"a":\0"b"}')  # a document may hold a NUL
    assert record.version == b"3"
    assert {record.created_at, record.updated_at, record.due_at} == {text_of_moment(moment).encode()}
    assert (record.expiry, record.flags, record.correlation_id) == (b"", b"AO", b"order-1")
    assert record.document == b'{"a":\0"b"}'


def test_refuses_what_is_no_record():
    with pytest.raises(TypeError):
        parse_record(b"something else")


@pytest.mark.parametrize("prefix", ["", "a{", "a}", "a*", "a b", "é", "x" * 65, "a\n", None, b"a"])
def test_refuses_a_prefix_that_could_be_misread(prefix):
    with pytest.raises(InvalidSagaError):
        check_prefix(prefix)


def test_the_layout_names_every_key():
    for name in (None, "Order{}Saga"):
        patterns = [
            re.compile(re.escape(key).replace(r"\*", ".*")) for key in get_key_layout(prefix="p", saga_name=name)
        ]
        keys = keys_of("p", "Order{}Saga")
        for key in (keys.index_key, keys.states + b"1", keys.pointers + b"1", schema_key("p")):
            assert sum(pattern.fullmatch(key.decode()) is not None for pattern in patterns) == 1

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar

import msgspec
import pytest

from saga_bus.core import MessageDecodeError, MessageEncodeError, message_name
from saga_bus.core.messages import decode_message, encode_message


class Plain(msgspec.Struct):
    text: str
    number: float = 0
    when: datetime | None = None


class Named(msgspec.Struct):
    message_name: ClassVar[str] = "orders.placed.v1"
    key: str


class Child(Named):
    pass


@dataclass
class Data:
    key: str
    parts: tuple[int, ...] = ()


def test_a_type_is_named_by_itself_or_by_its_class():
    assert message_name(Plain) == "Plain"
    assert message_name(Named) == "orders.placed.v1"
    assert message_name(Child) == "Child"  # a name is not inherited: it would stand for two types
    assert message_name(Data) == "Data"


@pytest.mark.parametrize(
    "message",
    [Plain("ä€🐘 \0", 1.5, datetime(2024, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)), Named("k"), Data("k", (1, 2))],
)
def test_a_message_comes_back_as_it_was(message):
    assert decode_message(type(message), encode_message(message)) == message


def test_fields_that_a_type_does_not_know_yet_are_left_out():
    assert decode_message(Named, b'{"key":"k","later":1}') == Named("k")


@pytest.mark.parametrize(
    "message",
    [Plain(5), Plain("x", float("nan")), Plain("\ud800"), Data("k", ("x",)), Data("k", 1 << 70), Plain(object())],
)
def test_a_message_that_would_not_read_back_is_not_sent(message):
    with pytest.raises(MessageEncodeError):
        encode_message(message)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"key":1}', b"{}", b"\xff", b'{"key":"' + b"[" * 100_000])
def test_a_body_that_does_not_fit_is_refused(body):
    with pytest.raises(MessageDecodeError, match="the body is no Named"):
        decode_message(Named, body)

"""Names of any characters stay apart on every broker."""

import itertools

import pytest

from saga_bus.core import ConfigurationError
from saga_bus.transport_faststream import FastStreamTransport
from saga_bus.transport_faststream._names import LONGEST, broker_name, checked_prefix

AWKWARD = [
    "OrderSaga",
    "ordersaga",
    "order_saga",
    "order-saga",
    "order.saga",
    "order saga",
    "order*",
    "order>",
    "order@2E",
    "order@",
    "ä",
    "a\u0308",
    "订单",
    "\udcff",
    "{order}",
    "a:b",
    "",
    "x" * LONGEST,
    "x" * (LONGEST + 1),
    "x" * (LONGEST + 2),
    "订" * 128,
    "订" * 127 + "单",
    broker_name("x" * (LONGEST + 1)),
]


@pytest.mark.parametrize("escape", ["@", "."])
def test_no_two_names_become_one(escape):
    mapped = {broker_name(name, escape) for name in AWKWARD}
    assert len(mapped) == len(AWKWARD)
    for name in mapped:
        assert len(name) <= LONGEST
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") | {escape}
        assert escape * 2 not in name  # what separates two names


def test_plain_names_stay_readable():
    assert broker_name("Order_Saga-2") == "Order_Saga-2"
    assert broker_name("order.placed") == "order@2Eplaced"


def test_every_single_character_has_a_name_of_its_own():
    characters = [chr(number) for number in itertools.chain(range(0x300), range(0x1F600, 0x1F640))]
    assert len({broker_name(character) for character in characters}) == len(characters)


@pytest.mark.parametrize("prefix", ["", "a.b", "a b", "ä", "x" * 41, "a\n", "{a}"])
def test_a_prefix_is_plain(prefix):
    with pytest.raises(ConfigurationError, match="prefix"):
        checked_prefix(prefix)
    with pytest.raises(ConfigurationError, match="prefix"):
        FastStreamTransport("redis://127.0.0.1", prefix=prefix)

"""What scripts return comes back whole, whatever it is made of."""

import msgspec
import pytest

from providers.redis import connected
from saga_bus.store_redis import _scripts
from saga_bus.store_redis._scripts import unpacked


@pytest.mark.parametrize("length", [0, 1, 31, 32, 255, 256, 65_535, 65_536, 100_000])
def test_texts_of_any_length_come_back(url, length):
    text = b"\xff\x00\xc2" * (length // 3) + b"x" * (length % 3)  # no UTF-8
    with connected(url) as client:
        packed = client.eval("return cmsgpack.pack({ARGV[1], false, ARGV[1], 'x'})", 0, text)
    assert unpacked(packed) == [text, None, text, b"x"]


def test_nothing_is_nothing(url):
    with connected(url) as client:
        assert unpacked(client.eval("return cmsgpack.pack({})", 0)) == []
        assert unpacked(client.eval("return cmsgpack.pack({false})", 0)) == [None]


def test_an_item_of_a_write_has_a_header_of_one_byte():
    """It is taken off, so that Lua gets values and makes no table."""
    assert msgspec.msgpack.encode(tuple(range(10)))[:1] == b"\x9a"


@pytest.mark.parametrize("name", [name for name in _scripts.__all__ if name.isupper()])
def test_every_script_compiles_under_its_digest(url, name):
    script = getattr(_scripts, name)
    with connected(url) as client:
        assert client.script_load(script.source) == script.digest.decode()

from datetime import UTC, datetime

import msgspec
import pytest

from saga_bus.core import Envelope


def envelope(**fields):
    return Envelope(**{"id": "m-1", "name": "Paid", "body": b"{}", "sent_at": datetime.now(UTC), **fields})


def test_an_envelope_comes_back_whole_from_json_and_msgpack():
    made = envelope(headers={"traceparent": "00-1-2-01"})
    for codec in (msgspec.json, msgspec.msgpack):
        assert codec.decode(codec.encode(made), type=Envelope) == made


def test_an_envelope_does_not_change_and_shares_no_headers():
    made = envelope()
    made.headers["own"] = "1"
    assert envelope().headers == {}
    with pytest.raises(AttributeError):
        made.id = "m-2"

import pytest

from saga_bus.core import InMemoryTransport
from saga_bus.core.conformance import CASES, PutAside, TransportConformance


class TestInMemoryTransport(TransportConformance):
    def open_transport(self, namespace):
        places = self.__dict__.setdefault("places", {})
        if namespace in places:
            return places[namespace].peer()
        places[namespace] = InMemoryTransport()
        return places[namespace]

    def dead_letters(self, namespace, endpoint):
        return [
            PutAside(letter.envelope.body, letter.reason, dict(letter.envelope.headers))
            for letter in self.places[namespace].dead_letters
            if letter.endpoint == endpoint
        ]


def test_every_case_is_a_test_with_its_rule():
    for case in CASES:
        assert getattr(TransportConformance, f"test_{case.__name__}").__doc__ == case.__doc__
        assert case.__doc__
    names = [name for name in vars(TransportConformance) if name.startswith("test_")]
    assert len(names) == len(CASES) == 23


def test_the_suite_says_what_it_needs():
    class Bare(TransportConformance):
        pass

    with pytest.raises(NotImplementedError, match="open_transport"):
        Bare().test_publish_without_a_listener_is_no_error()

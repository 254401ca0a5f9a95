from datetime import timedelta

import pytest

from brokers import BROKERS, new_prefix
from transport_places import Place, whole_kafka


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("brokers.plugin")


@pytest.fixture
def broker_url(brokers):
    """Gives the URL of a broker on which all tests can be run."""

    def url(name):
        if name == "kafka" and not whole_kafka():
            pytest.skip("rebalancing takes minutes: with SAGA_TEST_KAFKA_URL, or SAGA_TEST_KAFKA_MOCK=all on the mock")
        return brokers.url(name)

    return url


@pytest.fixture(params=sorted(BROKERS))
def place(request, broker_url):
    """A fresh place on each broker in turn."""
    place = Place(request.param, broker_url(request.param), new_prefix(), timedelta(seconds=0.5))
    yield place
    place.remove()

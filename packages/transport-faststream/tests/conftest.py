from datetime import timedelta

import pytest

from brokers import new_prefix
from transport_places import Place


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("brokers.plugin")
    config.pluginmanager.import_plugin("providers.plugin")


@pytest.fixture(params=["rabbitmq", "nats", "redis-streams", "kafka"])
def place(request, brokers):
    """A fresh place on each broker in turn."""
    place = Place(request.param, brokers.url(request.param), new_prefix(), redeliver_after=timedelta(seconds=1))
    yield place
    place.remove()

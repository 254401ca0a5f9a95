from datetime import timedelta

import pytest

from brokers import BROKERS, new_prefix
from transport_places import Place


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("brokers.plugin")


@pytest.fixture(params=sorted(BROKERS))
def place(request, brokers):
    """A fresh place on each broker in turn."""
    place = Place(request.param, brokers.url(request.param), new_prefix(), timedelta(seconds=0.5))
    yield place
    place.remove()

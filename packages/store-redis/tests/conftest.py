import uuid

import pytest

from providers import UnavailableError
from providers.redis import connected, private_redis
from providers.redis import sentinel as sentinel_servers
from providers.skipping import skip_unless_required


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("providers.plugin")


@pytest.fixture(scope="session")
def url(databases):
    """A server that the tests of this session share; each makes a prefix of its own in it."""
    return databases.url("redis")


@pytest.fixture(scope="session")
def cluster_url(databases):
    """A Cluster of three nodes."""
    return databases.url("redis_cluster")


@pytest.fixture
def prefix():
    return f"test_{uuid.uuid4().hex[:12]}"


@pytest.fixture
def admin(url):
    """A client of redis-py's, for looking into the server."""
    with connected(url) as client:
        yield client


@pytest.fixture(scope="module")
def server():
    """A server of these tests' own."""
    try:
        with private_redis() as started:
            yield started
    except UnavailableError as error:
        skip_unless_required("redis", str(error))


@pytest.fixture(scope="module")
def sentinel():
    """A primary, a replica and a Sentinel."""
    try:
        with sentinel_servers() as started:
            yield started
    except UnavailableError as error:
        skip_unless_required("redis", str(error))

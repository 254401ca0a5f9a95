import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("providers.plugin")


@pytest.fixture(scope="session")
def url(databases):
    """A database that the tests of this session share; each makes names of its own in it."""
    return databases.url("postgres")

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("providers.plugin")


@pytest.fixture(scope="session")
def url(databases):
    """The URL of an administrator of the server."""
    return databases.url("mysql")

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("brokers.plugin")
    config.pluginmanager.import_plugin("providers.plugin")

import asyncio

import pytest

from providers import UnavailableError
from providers.prisma import PrismaEngine, generated_client, imported
from run_conformance.prisma import kit_schema


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("providers.plugin")


def engine_on(provider, url):
    try:
        folder = generated_client(kit_schema(provider))
        return folder, PrismaEngine(imported(folder), url)
    except UnavailableError as error:
        pytest.skip(str(error))

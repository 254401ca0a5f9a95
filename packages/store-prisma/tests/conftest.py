from contextlib import asynccontextmanager

import pytest

from prisma_places import imported
from providers import UnavailableError
from providers.postgres import PrivatePostgres
from providers.prisma import generated_client, use_engine
from run_conformance.prisma import kit_schema


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("providers.plugin")


class Clients:
    """Clients of one generated package, each with an engine of its own on one database.

    Args:
        provider: "sqlite" or "postgresql".
        url: The database.
    """

    def __init__(self, provider: str, url: str) -> None:
        use_engine()
        self.package = imported(generated_client(kit_schema(provider)))
        self.url = url

    def new(self, url=None):
        """A client that is not connected."""
        return self.package.Prisma(use_dotenv=False, datasource={"url": url or self.url})

    @asynccontextmanager
    async def connected(self, url=None):
        """A client that is connected by its owner."""
        client = self.new(url)
        await client.connect()
        try:
            yield client
        finally:
            if client.is_connected():
                await client.disconnect()


@pytest.fixture
def on_sqlite(databases, tmp_path):
    """Clients on a file of the test's own."""
    databases.url("prisma")  # skips, or fails, where there is no engine
    return Clients("sqlite", f"file:{tmp_path}/sagas.db")


@pytest.fixture
def on_postgres(databases):
    """Clients on the shared server; tests make names of their own in it, and drop them."""
    databases.url("prisma")
    return Clients("postgresql", databases.url("postgres"))


@pytest.fixture(scope="session")
def private_postgres(databases):
    """A server that tests may kill; it is up at the start of each test."""
    databases.url("prisma")
    databases.url("postgres")
    try:
        server = PrivatePostgres({"fsync": "off", "full_page_writes": "off", "log_statement": "all"})
    except UnavailableError as error:
        pytest.skip(str(error))
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def on_private_postgres(private_postgres):
    return Clients("postgresql", private_postgres.url)

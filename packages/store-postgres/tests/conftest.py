import asyncio

import asyncpg
import pytest

from postgres_helpers import with_user
from providers import UnavailableError
from providers.pgbouncer import PrivatePgBouncer
from providers.postgres import PrivatePostgres
from providers.skipping import skip_unless_required


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("providers.plugin")


@pytest.fixture(scope="session")
def url(databases):
    """A database that the tests of this session share; each makes names of its own in it."""
    return databases.url("postgres")


class PrivateServer:
    """A server of these tests' own, unsafe on purpose, with a role ``guarded`` that needs its password."""

    def __init__(self, server: PrivatePostgres) -> None:
        self.server = server
        self.url = server.url

    def url_of(self, user: str, password: str) -> str:
        return with_user(self.url, user, password)


@pytest.fixture(scope="session")
def server():
    """A private server."""
    try:
        private = PrivatePostgres({"fsync": "off", "full_page_writes": "off"})
    except UnavailableError as error:
        skip_unless_required("postgres", str(error))
    try:
        rules = private.hba_file.read_text()
        private.hba_file.write_text(f"host all guarded 127.0.0.1/32 scram-sha-256\n{rules}")
        private.start()
        asyncio.run(add_role(private.url))
        yield PrivateServer(private)
    finally:
        private.remove()


@pytest.fixture(scope="session")
def pooler(server):
    """A transaction pooler in front of the private server."""
    try:
        private = PrivatePgBouncer(server.server.host, server.server.port)
    except UnavailableError as error:
        skip_unless_required("postgres", str(error))
    try:
        private.start()
        yield private
    finally:
        private.remove()


async def add_role(url):
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE ROLE guarded LOGIN PASSWORD 'r1ght-s3cret'")
    await connection.close()

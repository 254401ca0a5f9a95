import pytest
from pymongo import MongoClient

from mongodb_helpers import collect_sockets, private_server
from providers.mongodb import PrivateMongo


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("providers.plugin")


@pytest.fixture(scope="module", autouse=True)
def nothing_left():
    """Leave nothing that would be collected, with a warning, in somebody else's test."""
    yield
    collect_sockets()


@pytest.fixture(scope="session")
def url(databases):
    """A database that the tests of this session share; each makes names of its own in it."""
    return databases.url("mongodb")


class GuardedServer:
    """A server that asks for passwords, with a user ``owner`` who may do all and a ``reader`` who may only read."""

    password = "r1ght-s3cret"

    def __init__(self, server: PrivateMongo) -> None:
        self.server = server

    def url_of(self, user: str, password: str) -> str:
        return self.server.url.replace("mongodb://", f"mongodb://{user}:{password}@") + "&authSource=admin"


@pytest.fixture(scope="session")
def guarded():
    """A private server with users."""
    server = private_server()
    try:
        server.start()
        with MongoClient(server.url) as client:
            for user, role in (("owner", "root"), ("reader", "readAnyDatabase")):
                client.admin.command("createUser", user, pwd=GuardedServer.password, roles=[role])
        server.kill()  # quicker than stopping it, and it has written what it acknowledged
        server.options = ("--auth",)
        server.start()
        yield GuardedServer(server)
    finally:
        server.remove()

"""The whole kit: on a server, on a given client that decodes, on a Cluster, and on Valkey."""

from __future__ import annotations

import platform
import sys
from datetime import timedelta

import pytest
from redis.asyncio import Redis

from providers import UnavailableError
from providers.redis import find_valkey, private_redis
from saga_bus.store.conformance import SagaStoreConformance
from saga_bus.store_redis import RedisSagaStore

TTL = timedelta(seconds=1)
ODD = "odd/prefix:with.all_of-its"


class TestUrl(SagaStoreConformance):
    @pytest.fixture(autouse=True)
    def on_database(self, url):
        self.url = url

    def open_store(self, namespace):
        return RedisSagaStore(self.url, prefix=namespace, completed_ttl=TTL)


class StoreWithClient(RedisSagaStore):
    """Closes its given client, which the store itself must leave open, and whole."""

    async def close(self):
        client, was_open = self._client, not self._is_closed
        await super().close()
        if was_open:
            pool = client.connection_pool
            assert pool._in_use_connections == set(), "a connection was not given back"
            if self.was_used():
                assert await client.ping(), "the given client was closed"
            await client.aclose()
            await pool.disconnect()

    def was_used(self):
        return any(connection.is_connected for connection in self._client.connection_pool._available_connections)


class TestGivenClientThatDecodes(SagaStoreConformance):
    """A given client that makes texts of replies and sends commands again, few connections, and small states only."""

    secrets = ("s3cret-kit-password",)
    test_processes_share_the_sagas = None  # slow, and about the server, which is TestUrl's

    @pytest.fixture(autouse=True)
    def on_database(self, url, admin):
        self.url = url
        rights = ("on", ">s3cret-kit-password", "~odd/prefix*", "+@all", "-@dangerous", "+info")
        admin.execute_command("ACL", "SETUSER", "kit", "reset", *rights)
        yield
        admin.execute_command("ACL", "DELUSER", "kit")

    def open_store(self, namespace):
        client = Redis.from_url(
            self.url.replace("redis://", "redis://kit:s3cret-kit-password@"),
            decode_responses=True,
            protocol=3,
            max_connections=3,
            retry_on_timeout=True,
        )
        return StoreWithClient(
            client=client,
            prefix=ODD + namespace,
            max_connections=3,
            max_state_bytes=65_536,
            completed_ttl=TTL,
        )


class TestCluster(SagaStoreConformance):
    @pytest.fixture(autouse=True)
    def on_cluster(self, cluster_url):
        self.url = cluster_url

    def open_store(self, namespace):
        return RedisSagaStore(self.url, prefix=namespace, completed_ttl=TTL)


@pytest.fixture(scope="module")
def valkey_url():
    try:
        binary = find_valkey()
    except UnavailableError as error:
        if (sys.platform, platform.machine()) == ("linux", "x86_64"):
            pytest.fail(f"the test dependencies have a server for this machine: {error}")
        pytest.skip(str(error))
    with private_redis(binary=binary) as server:
        yield server.url


class TestValkey(SagaStoreConformance):
    test_processes_share_the_sagas = None  # slow, and about the store, which is TestUrl's

    @pytest.fixture(autouse=True)
    def on_valkey(self, valkey_url):
        self.url = valkey_url

    def open_store(self, namespace):
        return RedisSagaStore(self.url, prefix=namespace, completed_ttl=TTL)

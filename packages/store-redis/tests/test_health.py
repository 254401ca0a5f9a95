"""What ``ping`` warns about, each setting alone."""

import asyncio

import pytest

from providers.ports import free_port
from redis_helpers import store_on
from saga_bus.store import StoreUnavailableError

SAFE = {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "always"}


def warnings_of(url, prefix, **options):
    async def run():
        async with store_on(url, prefix, **options) as store:
            answer = await store.ping()
            assert answer.seconds > 0
            return answer.warnings

    return asyncio.run(run())


def configure(server, **changes):
    for name, value in {**SAFE, **changes}.items():
        server.ask("CONFIG", "SET", name, value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"maxmemory-policy": "allkeys-lru"}, "maxmemory-policy is allkeys-lru"),
        ({"maxmemory-policy": "volatile-ttl"}, "maxmemory-policy is volatile-ttl"),
        ({"appendonly": "no"}, "appendonly is no"),
        ({"appendfsync": "everysec"}, "appendfsync is everysec"),
    ],
)
def test_a_setting(server, prefix, changes, says):
    configure(server, **changes)
    warnings = warnings_of(server.url, prefix)
    assert [says in warning for warning in warnings] == ([True] if says else [])


def test_a_primary_that_goes_on_without_its_replicas(sentinel, prefix):
    for server in (sentinel.primary, sentinel.replica):
        configure(server)
    (warning,) = warnings_of(sentinel.url, prefix)
    assert "min-replicas-to-write is 0" in warning
    sentinel.primary.ask("CONFIG", "SET", "min-replicas-to-write", "1")
    assert warnings_of(sentinel.url, prefix) == ()
    (warning,) = warnings_of(sentinel.url, prefix, wait_replicas=2)
    assert "wait_replicas is 2, and the server has 1" in warning
    sentinel.primary.ask("CONFIG", "SET", "min-replicas-to-write", "0")
    (warning,) = warnings_of(sentinel.replica.url, prefix)
    assert "is a replica" in warning


def test_every_node_of_a_cluster_is_asked(cluster_url, prefix):
    warnings = warnings_of(cluster_url, prefix)
    assert [warning for warning in warnings if "appendonly is no" in warning] == list(warnings)
    assert len(warnings) == 1  # the same of three nodes


def test_a_server_that_hides_its_settings(server, prefix):
    server.ask("ACL", "SETUSER", "shy", "on", ">pass", "~*", "+@all", "-config", "-info")
    hidden, state = warnings_of(server.url.replace("redis://", "redis://shy:pass@"), prefix)
    assert "INFO" in hidden
    assert "CONFIG GET" in state


def test_no_server(prefix):
    with pytest.raises(StoreUnavailableError):
        warnings_of(f"redis://127.0.0.1:{free_port()}", prefix)

"""URLs: what they mean, what is refused, and that no secret is shown."""

import pytest
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection

from saga_bus.store import InvalidSagaError, open_store
from saga_bus.store_redis import RedisSagaStore
from saga_bus.store_redis._location import Location


def settings_of(url):
    client = Location(url).client(3.0)
    assert isinstance(client, Redis)
    return client.connection_pool.connection_class, client.connection_pool.connection_kwargs


def test_a_server():
    _, settings = settings_of("redis://ada:s%40crt@db.example:6380/3?client_name=shop")
    assert (settings["host"], settings["port"], settings["db"]) == ("db.example", 6380, 3)
    assert (settings["username"], settings["password"], settings["client_name"]) == ("ada", "s@crt", "shop")
    assert settings["socket_connect_timeout"] == 3.0
    assert settings["retry"]._retries == 0  # a write is never sent twice
    assert settings_of("redis://localhost")[1]["port"] == 6379
    assert settings_of("redis://[::1]:7000")[1]["host"] == "::1"
    assert int(settings_of("redis://localhost/0?protocol=3")[1]["protocol"]) == 3


def test_tls_and_sockets():
    kind, settings = settings_of("rediss://db.example/1?ssl_ca_certs=/ca.pem")
    assert issubclass(kind, SSLConnection)
    assert (settings["port"], settings["ssl_context"].ca_certs if "ssl_context" in settings else "/ca.pem") == (
        6379,
        "/ca.pem",
    )
    kind, settings = settings_of("unix:///run/redis/redis.sock?db=2")
    assert issubclass(kind, UnixDomainSocketConnection)
    assert (settings["path"], settings["db"]) == ("/run/redis/redis.sock", 2)


def test_sentinels():
    url = "redis://ada:secret@one:26380,two/5?sentinel=sagas&sentinel_username=eye&sentinel_password=s3ntinel"
    client = Location(url).client(3.0)
    pool = client.connection_pool
    assert pool.service_name == "sagas"
    assert (pool.connection_kwargs["username"], pool.connection_kwargs["password"]) == ("ada", "secret")
    assert pool.connection_kwargs["db"] == 5
    asked = [each.connection_pool.connection_kwargs for each in pool.sentinel_manager.sentinels]
    assert [(each["host"], each["port"]) for each in asked] == [("one", 26380), ("two", 26379)]
    assert {(each["username"], each["password"], each.get("db", 0)) for each in asked} == {("eye", "s3ntinel", 0)}
    assert (
        Location("rediss://one?sentinel=sagas")
        .client(3.0)
        .connection_pool.connection_class.__mro__.count(SSLConnection)
    )


def test_a_cluster():
    client = Location("rediss://ada:secret@127.0.0.1:7000,127.0.0.2?cluster=true").client(3.0)
    assert isinstance(client, RedisCluster)
    assert [(node.host, node.port) for node in client.nodes_manager.startup_nodes.values()] == [
        ("127.0.0.1", 7000),
        ("127.0.0.2", 6379),
    ]
    settings = client.get_connection_kwargs()
    assert (settings["username"], settings["password"]) == ("ada", "secret")
    assert issubclass(settings["connection_class"], SSLConnection)


@pytest.mark.parametrize(
    "url",
    [
        "",
        None,
        b"redis://localhost",
        "localhost:6379",
        "http://localhost",
        "redis:localhost",
        "redis://",
        "unix://",
        "unix://host/path",
        "redis://host:s3cretport",
        "redis://one,two",
        "redis://one,,two?cluster=true",
        "redis://one/2?cluster=true",
        "redis://one?cluster=perhaps",
        "redis://one?sentinel=",
        "redis://one?sentinel=a&cluster=true",
        "unix:///path?sentinel=a",
        "unix:///path?cluster=true",
    ],
)
def test_refuses_what_is_no_place(url):
    if url is None:
        with pytest.raises(InvalidSagaError):
            RedisSagaStore()
        return
    with pytest.raises(InvalidSagaError) as caught:
        RedisSagaStore(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None  # urllib's own error can hold a part of the URL
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_refuses_options_that_redis_py_does_not_know():
    with pytest.raises(InvalidSagaError):
        Location("redis://localhost?nonsense=1").client(3.0)


@pytest.mark.parametrize(
    "url",
    [
        "redis://ada:s3cret@host:6379/0?password=s3cret",
        "rediss://:s3cret@host",
        "redis://ada:s3cret@one,two?cluster=true&password=s3cret",
        "redis://ada:s3cret@one,two?sentinel=name&sentinel_password=s3cret",
        "unix://ada:s3cret@/path?password=s3cret",
    ],
)
def test_shows_the_place_and_no_secret(url):
    store = RedisSagaStore(url)
    assert "s3cret" not in repr(store)
    assert "path" in repr(store) or "host" in repr(store) or "one,two" in repr(store)


def test_every_scheme_opens_the_store():
    for url in ("redis://h", "rediss://h", "unix:///p", "REDIS://h"):
        assert type(open_store(url)) is RedisSagaStore

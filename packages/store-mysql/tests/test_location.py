"""URLs and arguments, none of which opens a connection or shows a password."""

import pytest

from saga_bus.store import InvalidSagaError, SagaStoreError, open_store
from saga_bus.store_mysql import MySqlSagaStore
from saga_bus.store_mysql._location import parse_location


def test_the_parts_of_a_url():
    location = parse_location("mysql://us%40er:p%3Ass%2F@db.example:3307/my%20sagas?table=t%3F&pool_size=3")
    address = location.address
    assert (address.host, address.port, address.user, address.password, address.database) == (
        "db.example",
        3307,
        "us@er",
        "p:ss/",
        "my sagas",
    )
    assert location.options == {"table": "t?", "pool_size": 3}
    assert address.tls is None
    address = parse_location("mariadb://root@/x?unix_socket=/run/mysqld.sock").address
    assert (address.host, address.port, address.unix_socket) == ("localhost", 3306, "/run/mysqld.sock")
    assert parse_location("mysql://root@[::1]/x").address.host == "::1"


@pytest.mark.parametrize(
    "url",
    [
        "postgres://user@host/db",
        "mysql://host/db",
        "mysql://user:secret@host:port/db",
        "mysql://user:secret@host:99999/db",
        "mysql://user:sec#ret@host/db",
        "mysql://user:secret@host/db?unknown=1",
        "mysql://user:secret@host/db?table=a&table=b",
        "mysql://user:secret@host/db?pool_size=many",
        "mysql://user:secret@host/db?pool_size=0",
        "mysql://user:secret@host/db?ssl_mode=sometimes",
        "mysql://user:secret@host/db?ssl_ca=/no/such/file",
        "mysql://user:secret@host/%ff",
        "mysql://us%00er:secret@host/db",
        "mysql://user:secret@host/db?=",
        "mysql://user:secret@host/db?lock_timeout=0.5",
        "mysql://user:secret@host/db?command_timeout=nan",
        b"mysql://user:secret@host/db",
    ],
)
def test_bad_urls_are_refused_without_being_shown(url):
    with pytest.raises(InvalidSagaError) as caught:
        MySqlSagaStore(url)
    assert "secret" not in f"{caught.value!r} {caught.value.__cause__!r}"


@pytest.mark.parametrize(
    "options",
    [{}, {"url": "mysql://u@h/d", "pool": object()}, {"pool": object()}, {"url": "mysql://u@h/d", "pool_size": True}]
    + [{"url": "mysql://u@h/d", name: "1"} for name in ("connect_timeout", "acquire_timeout", "lock_timeout")],
)
def test_bad_arguments_are_refused(options):
    with pytest.raises(InvalidSagaError):
        MySqlSagaStore(options.pop("url", None), **options)


def test_repr_shows_no_password():
    store = MySqlSagaStore("mysql://user:secret@host/db?table=t", schema="s")
    assert repr(store) == "MySqlSagaStore('mysql://user@host:3306/db', table='`s`.`t`')"
    assert "secret" not in repr(parse_location("mysql://user:secret@host/db"))


@pytest.mark.parametrize("scheme", ["mysql", "mariadb", "MySQL"])
def test_the_entry_points(scheme):
    assert isinstance(open_store(f"{scheme}://user@host/db"), MySqlSagaStore)


def test_modes_of_tls(tmp_path):
    def context(options):
        return parse_location(f"mysql://user@host/db?{options}").address.tls

    assert context("ssl_mode=disabled") is None
    assert (context("ssl_mode=required").check_hostname, context("ssl_mode=required").verify_mode) == (False, 0)
    assert (context("ssl_mode=verify_ca").check_hostname, context("ssl_mode=verify_ca").verify_mode) == (False, 2)
    assert (context("ssl_mode=verify_identity").check_hostname) is True


def test_tls_is_not_left_out_silently(run, place):
    async def test():
        async with place.store(url=f"{place.url}?ssl_mode=required") as store:
            await store.ping()

    if place.execute("SHOW VARIABLES LIKE 'have_ssl'") == (("have_ssl", "DISABLED"),):
        with pytest.raises(SagaStoreError, match="does not offer TLS"):
            run(test())
    else:
        run(test())

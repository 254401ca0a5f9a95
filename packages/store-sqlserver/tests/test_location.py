"""URLs and connection strings: read without I/O, written for both drivers, and never a password in any message."""

import asyncio
import struct
import threading

import pytest

from saga_bus.store import InvalidSagaError, SagaFilter, SagaState, SagaStoreError, StoreClosedError, open_store
from saga_bus.store_sqlserver import SqlServerSagaStore, _odbc, check_schema
from saga_bus.store_sqlserver._location import escaped, parse_location

MICROSOFT = "ODBC Driver 18 for SQL Server"
PASSWORDS = [
    "secret",
    "p;w",
    "p{w",
    "p}w",
    "{braces}",
    "a=b",
    "blank ",
    " blank",
    "ünï☃",
    "semi;{",
    "'\"",
    "a@b:c/d?e#f%g",
]
BEYOND_FREETDS = ["{braces}", "a};b"]


def keywords(url, driver=None):
    return parse_location(url).connection_string(driver)


def test_a_url_for_microsofts_driver():
    assert keywords("mssql://sa:secret@db.example.org:1444/shop", MICROSOFT) == (
        "Driver={ODBC Driver 18 for SQL Server};Server=db.example.org,1444;Database=shop;UID=sa;PWD=secret;"
    ).replace("{ODBC Driver 18 for SQL Server}", "ODBC Driver 18 for SQL Server")


def test_a_url_for_freetds_names_the_port_apart():
    text = keywords("sqlserver://sa:secret@db/shop?encrypt=yes", "FreeTDS")
    assert text == (
        "Driver=FreeTDS;Server=db;Port=1433;TDS_Version=7.4;Encryption=require;Database=shop;UID=sa;PWD=secret;"
    )


def test_an_instance_of_freetds_has_no_port():
    assert "Port" not in keywords("mssql://db%5CSQLEXPRESS/shop", "FreeTDS")


@pytest.mark.parametrize(
    ("given", "written"), [("yes", "yes"), ("true", "yes"), ("no", "no"), ("optional", "no"), ("strict", "strict")]
)
def test_encrypt_and_certificates(given, written):
    text = keywords(f"mssql://db/shop?encrypt={given}&trust_server_certificate=true", MICROSOFT)
    assert f"Encrypt={written};TrustServerCertificate=yes;" in text


def test_freetds_takes_its_certificates_from_elsewhere():
    with pytest.raises(InvalidSagaError, match=r"freetds\.conf"):
        keywords("mssql://db/shop?driver=FreeTDS&trust_server_certificate=no")


def test_the_drivers_own_keywords_pass_through():
    text = keywords("mssql://db/shop?driver=X&Authentication=ActiveDirectoryMsi&Trusted_Connection=yes&APP=a%3Bb")
    assert text.endswith("Authentication=ActiveDirectoryMsi;Trusted_Connection=yes;APP={a;b};")
    assert "UID" not in text
    assert "PWD" not in text


def test_the_best_registered_driver_is_chosen(monkeypatch):
    class Fake:
        names = ("FreeTDS", "ODBC Driver 9 for SQL Server", "ODBC Driver 18 for SQL Server", "SQLite3")

        def drivers(self):
            return self.names

    monkeypatch.setattr(_odbc, "load", Fake)
    assert _odbc.newest_driver() == MICROSOFT
    monkeypatch.setattr(Fake, "names", ["SQLite3", "FreeTDS"])
    assert _odbc.newest_driver() == "FreeTDS"
    monkeypatch.setattr(Fake, "names", ["SQLite3"])
    with pytest.raises(SagaStoreError, match="msodbcsql18"):
        _odbc.newest_driver()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain-1.2", "plain-1.2"),
        ("two words", "two words"),
        ("", "{}"),
        ("a;b", "{a;b}"),
        ("a}b", "{a}}b}"),
        ("{a", "{{a}"),
        (" a", "{ a}"),
        ("ü", "{ü}"),
    ],
)
def test_values_are_escaped(value, text):
    assert escaped(value) == text


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_arrives_as_it_is(password, driver, endpoint, url_of):
    server = endpoint()

    async def use():
        async with SqlServerSagaStore(url_of(server.port, user="so me", password=password, database="shöp")):
            pass

    if _odbc.is_freetds(driver) and password in BEYOND_FREETDS:
        with pytest.raises(InvalidSagaError, match="FreeTDS cannot take"):
            asyncio.run(use())
        return
    asyncio.run(use())
    (login,) = server.logins
    assert (login["user"], login["password"], login["database"]) == ("so me", password, "shöp")


def test_a_connection_string_is_taken_as_it_is():
    text = "DRIVER={ODBC Driver 18 for SQL Server}; Server = tcp:db,1444 ;Database=shop;UID=sa;PWD={a}};b};"
    location = parse_location(text)
    assert location.connection_string() == text
    assert location.shown == "tcp:db,1444/shop"
    assert location.secrets == ("a};b",)
    assert location.options == {}
    assert parse_location("DSN=shop;Password=x").secrets == ("x",)


def test_options_of_the_url_go_before_the_arguments():
    url = "mssql://db/shop?table=t&schema=s&pool_size=3&connect_timeout=2&command_timeout=5.5&acquire_timeout=1"
    store = SqlServerSagaStore(url, table="other", pool_size=9)
    assert repr(store) == "SqlServerSagaStore('db/shop', table='s.t')"


@pytest.mark.parametrize(
    "place",
    [
        "",
        "db",
        "postgresql://db/shop",
        "mssql:///shop",
        "mssql://sa:geheim@db:port/shop",
        "mssql://sa:geheim@[db/shop",
        "mssql://sa:geheim@db/shop#geheim",
        "mssql://sa:geheim@db/shop?pool_size=geheim",
        "mssql://sa:geheim@db/shop?encrypt=geheim",
        "mssql://sa:geheim@db/shop?pool_size=1&pool_size=2",
        "mssql://sa:geheim@db/shop?driver",
        "mssql://sa:geheim@db/shop?a;b=1",
        "mssql://sa:%ff@db/shop",
        "Server=db;PWD=geheim",
        "Driver={x;PWD=geheim",
        "Driver=x;PWD=geheim}",
        7,
    ],
)
def test_what_is_no_place_is_refused_without_the_password(place):
    with pytest.raises(InvalidSagaError) as raised:
        SqlServerSagaStore(place)
    shown = raised.value
    while shown is not None:
        assert "geheim" not in str(shown)
        shown = None if shown.__suppress_context__ else shown.__context__


@pytest.mark.parametrize(
    "options",
    [
        {"pool_size": 0},
        {"pool_size": True},
        {"pool_size": 1.5},
        {"connect_timeout": 0},
        {"command_timeout": float("nan")},
        {"acquire_timeout": "5"},
        {"acquire_timeout": -1},
        {"table": ""},
        {"table": "t" * 129},
        {"table": "saga_bus_schema"},
        {"table": "#sagas"},
        {"schema": "a\nb"},
        {"attrs_before": 5},
        {"connect": object},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(InvalidSagaError):
        SqlServerSagaStore("mssql://db/shop", **options)


@pytest.mark.parametrize("options", [{}, {"connect": 5}, {"connect": object, "attrs_before": {}}])
def test_one_place_is_needed(options):
    with pytest.raises(InvalidSagaError):
        SqlServerSagaStore(**options)


def test_no_password_is_shown():
    for place in ("mssql://sa:geheim@db/shop?PWD=geheim", "Driver=x;Server=db;UID=sa;PWD=geheim"):
        store = SqlServerSagaStore(place)
        assert "geheim" not in repr(store)
        assert "geheim" not in repr(parse_location(place))


@pytest.mark.parametrize("scheme", ["mssql", "sqlserver", "MSSQL"])
def test_the_entry_points_open_it(scheme):
    store = open_store(f"{scheme}://sa:geheim@db/shop", table="t")
    assert isinstance(store, SqlServerSagaStore)

    async def close():
        await store.close()
        await store.close()
        with pytest.raises(StoreClosedError):
            await store.get_by_id("OrderSaga", "1")

    asyncio.run(close())


TOKEN = 1256  # SQL_COPT_SS_ACCESS_TOKEN


def token(text):
    """A token as Microsoft's driver wants it."""
    raw = text.encode("utf-16-le")
    return struct.pack("<I", len(raw)) + raw


@pytest.fixture
def user(driver):
    """Microsoft's driver wants no user beside a token, and FreeTDS none without a name."""
    return "sa" if _odbc.is_freetds(driver) else None


@pytest.fixture
def given(driver, monkeypatch):
    """What pyodbc was given as attributes, connection by connection."""
    seen = []
    connect = _odbc.load().connect

    def note(text, *, attrs_before, **options):
        seen.append(attrs_before)
        # FreeTDS knows no access tokens, and takes no connection with one.
        return connect(text, attrs_before={} if _odbc.is_freetds(driver) else attrs_before, **options)

    monkeypatch.setattr(_odbc.load(), "connect", note)
    return seen


@pytest.fixture
def three_at_once(endpoint):
    """A server that answers only when three ask at the same time, and calls that do."""
    together = threading.Barrier(3, timeout=10)

    def answer(sql):
        together.wait()
        return endpoint.numbers("n", 7)

    async def use(url, attributes):
        # One connection more, as one is left to what waits for nobody.
        async with SqlServerSagaStore(url, pool_size=4, attrs_before=attributes) as store:
            assert await asyncio.gather(*(store.count(SagaFilter()) for _ in range(3))) == [7, 7, 7]

    return endpoint(answer), lambda url, attributes: asyncio.run(use(url, attributes))


def test_attributes_are_made_anew_for_each_connection(driver, given, three_at_once, url_of, user):
    server, use = three_at_once
    made = []

    def attributes():
        made.append({TOKEN: token(f"token no. {len(made)}")})
        return made[-1]

    use(url_of(server.port, user=user), attributes)
    assert len(made) == len(server.logins) == 3
    assert sorted(given, key=str) == sorted(made, key=str)
    if not _odbc.is_freetds(driver):
        sent = [[each for each in made if each[TOKEN][4:] in packet] for packet in server.login_packets]
        assert sorted(sent, key=str) == [[each] for each in made]


def test_attributes_that_are_no_function_are_those_of_each_connection(driver, given, three_at_once, url_of, user):
    server, use = three_at_once
    attributes = {TOKEN: token("the one token")}
    use(url_of(server.port, user=user), attributes)
    assert given == [attributes] * len(server.logins) == [attributes] * 3
    if not _odbc.is_freetds(driver):
        assert all("the one token".encode("utf-16-le") in packet for packet in server.login_packets)


@pytest.fixture
def connection_string(driver):
    """A connection string as it stands in each driver's documentation."""

    def make(port, password):
        if _odbc.is_freetds(driver):
            return f"DRIVER={driver};Server=127.0.0.1;Port={port};Database=shop;UID=so me;PWD={password}"
        return f"Driver={{{driver}}};Server=tcp:127.0.0.1,{port};Database=shop;UID=so me;PWD={{{password}}};Encrypt=no"

    return make


def test_a_store_opens_by_a_connection_string(endpoint, connection_string):
    server = endpoint(lambda sql: endpoint.counted(1) if "INSERT INTO" in sql else endpoint.numbers("version", 1))
    place = connection_string(server.port, "gehe!m")

    async def use():
        async with SqlServerSagaStore(place, pool_size=1) as store:
            await store.insert("OrderSaga", "order-1", SagaState())
            assert "gehe!m" not in repr(store)
        await check_schema(place)

    asyncio.run(use())
    assert [(each["user"], each["password"], each["database"]) for each in server.logins] == [
        ("so me", "gehe!m", "shop")
    ] * 2
    assert sum("INSERT INTO" in request for request in server.requests) == 1


def test_a_login_that_is_refused_by_a_connection_string_shows_no_password(endpoint, connection_string):
    server = endpoint(refusal=endpoint.error(18456, "Login failed for user 'so me' with gehe!m."))

    async def use():
        async with SqlServerSagaStore(connection_string(server.port, "gehe!m")):
            pass

    with pytest.raises(SagaStoreError, match="the login failed") as raised:
        asyncio.run(use())
    assert server.logins[0]["password"] == "gehe!m"
    assert "gehe!m" not in f"{raised.value} {raised.value.__cause__}"

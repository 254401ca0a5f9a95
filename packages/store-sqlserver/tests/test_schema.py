"""Creating, checking and dropping: what is sent, in which order, inside which transaction."""

import asyncio
import contextlib
import re

import pytest

from saga_bus.store import InvalidSagaError, SagaStoreError, SchemaError, StoreUnavailableError
from saga_bus.store_sqlserver import SqlServerSagaStore, _schema, check_schema, get_schema_sql

WORDS = (
    "sp_getapplock",
    "sys.schemas",
    "CREATE SCHEMA",
    "CREATE TABLE [x].[saga_bus_schema]",
    "CREATE TABLE [x].[order]",
    "CREATE NONCLUSTERED INDEX",
    "INSERT INTO [x].[saga_bus_schema]",
    "UPDATE [x].[saga_bus_schema]",
    "DELETE FROM [x].[saga_bus_schema]",
    "DROP TABLE [x].[order]",
    "DROP TABLE [x].[saga_bus_schema]",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
)


class Server:
    """Answers as a database would that has, or has not, the schema, the table of versions and the table."""

    def __init__(self, endpoint, *, has_schema=True, version=None, has_versions=True, has_table=True, outcome=0):
        self.numbers, self.counted = endpoint.numbers, endpoint.counted
        self.has_schema, self.version, self.outcome = has_schema, version, outcome
        self.has_versions, self.has_table = has_versions, has_table
        self.endpoint = endpoint(self.answer)

    def answer(self, sql):
        if "sp_getapplock" in sql:
            return self.numbers("outcome", self.outcome)
        if "sys.schemas" in sql:
            return self.numbers("n", int(self.has_schema))
        if "INFORMATION_SCHEMA.TABLES" in sql:
            return self.numbers("n", int(self.has_versions if "saga_bus_schema" in sql else self.has_table))
        if "SELECT version" in sql:
            return self.numbers("version", *([] if self.version is None else [self.version]))
        if "COUNT(*)" in sql:
            return self.numbers("n", 0)
        return self.counted(1)

    def run(self, url_of, act):
        async def use():
            url = url_of(self.endpoint.port)
            async with SqlServerSagaStore(url, table="order", schema="x") as store:
                self.endpoint.requests.clear()
                await act(store)

        asyncio.run(use())

    @property
    def steps(self):
        """The steps that were taken, in their order."""
        found = []
        for request in self.endpoint.requests:
            found += [word for word in WORDS if word in request.replace("READ COMMITTED", "")]
            if "IMPLICIT_TRANSACTIONS ON" in request:
                found.append("BEGIN")
            if re.search(r"IF @@TRANCOUNT > 0 (COMMIT|ROLLBACK)", request):
                assert found[-1] in ("COMMIT", "ROLLBACK")
        steps = [word for number, word in enumerate(found) if number == 0 or word != found[number - 1]]
        # Once it has committed, FreeTDS rolls back what is not there.
        return steps[: steps.index("COMMIT") + 1] if "COMMIT" in steps else steps


def test_creating_on_an_empty_database(endpoint, url_of):
    server = Server(endpoint, has_schema=False, has_versions=False, has_table=False)
    server.run(url_of, lambda store: store.create_schema())
    steps = [step for step in server.steps if step != "BEGIN"]
    assert steps == [
        "sp_getapplock",
        "sys.schemas",
        "CREATE SCHEMA",
        "CREATE TABLE [x].[saga_bus_schema]",
        "CREATE TABLE [x].[order]",
        "CREATE NONCLUSTERED INDEX",
        "INSERT INTO [x].[saga_bus_schema]",
        "COMMIT",
    ]
    assert "BEGIN" in server.steps


@pytest.mark.parametrize("verb", ["create_schema", "drop_schema"])
def test_no_other_isolation_level_is_in_the_way_or_lost(verb, endpoint, url_of):
    """SNAPSHOT allows no CREATE INDEX; the connection, of a level that is not known, is not used again."""
    server = Server(endpoint, has_schema=False, has_versions=verb == "drop_schema", has_table=False)

    async def act(store):
        await getattr(store, verb)()
        assert len(server.endpoint.logins) == 1
        with contextlib.suppress(SchemaError):
            await store.check_schema()

    server.run(url_of, act)
    requests = server.endpoint.requests
    (level,) = [place for place, request in enumerate(requests) if "ISOLATION LEVEL READ COMMITTED" in request]
    assert level < requests.index("BEGIN")
    assert len(server.endpoint.logins) == 2


def test_creating_again_changes_nothing(endpoint, url_of):
    server = Server(endpoint, version=_schema.package_version())
    server.run(url_of, lambda store: store.create_schema())
    assert not any(step.startswith(("CREATE", "INSERT", "UPDATE")) for step in server.steps)
    assert server.steps[-1] == "COMMIT"


def test_a_table_of_somebody_else_is_left_alone(endpoint, url_of):
    server = Server(endpoint, version=None)
    with pytest.raises(SchemaError, match=r"x\.order that create_schema\(\) did not make"):
        server.run(url_of, lambda store: store.create_schema())
    assert "ROLLBACK" in server.steps
    assert not any(step.startswith("CREATE") for step in server.steps)


def test_an_older_table_is_migrated(endpoint, url_of, monkeypatch):
    ran = []
    monkeypatch.setattr(_schema, "MIGRATIONS", (lambda session, place: ran.append((session, place)),))
    server = Server(endpoint, version=1)
    with pytest.raises(SchemaError, match=r"has schema version 1, the package needs 2: run create_schema\(\)"):
        server.run(url_of, lambda store: store.check_schema())
    server.run(url_of, lambda store: store.create_schema())
    assert [str(place) for _, place in ran] == ["x.order"]
    assert "UPDATE [x].[saga_bus_schema]" in server.steps


@pytest.mark.parametrize("verb", ["create_schema", "check_schema"])
def test_a_newer_table_is_refused(verb, endpoint, url_of):
    server = Server(endpoint, version=99)
    with pytest.raises(SchemaError, match="upgrade saga-bus-store-sqlserver"):
        server.run(url_of, lambda store: getattr(store, verb)())


@pytest.mark.parametrize("missing", [{"has_versions": False}, {"version": None}, {"version": 1, "has_table": False}])
def test_a_missing_table_says_what_to_run(missing, endpoint, url_of):
    server = Server(endpoint, **missing)
    with pytest.raises(SchemaError, match=r"run create_schema\(\)"):
        server.run(url_of, lambda store: store.check_schema())


def test_the_module_level_check(endpoint, url_of):
    server = Server(endpoint, version=1)
    asyncio.run(check_schema(url_of(server.endpoint.port), table="order", schema="x"))


def test_dropping_leaves_nothing_but_the_schema(endpoint, url_of):
    server = Server(endpoint, version=1)
    server.run(url_of, lambda store: store.drop_schema())
    steps = [step for step in server.steps if step.startswith(("D", "C", "R"))]
    assert steps == [
        "DROP TABLE [x].[order]",
        "DELETE FROM [x].[saga_bus_schema]",
        "DROP TABLE [x].[saga_bus_schema]",
        "COMMIT",
    ]


@pytest.mark.parametrize("nothing", [{"has_versions": False}, {"version": None}])
def test_dropping_what_is_not_there(nothing, endpoint, url_of):
    server = Server(endpoint, **nothing)
    server.run(url_of, lambda store: store.drop_schema())
    assert not any("DROP" in step for step in server.steps)


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [(1, None), (-1, StoreUnavailableError), (-3, StoreUnavailableError), (-999, SagaStoreError)],
)
def test_the_lock_on_the_schema(outcome, kind, endpoint, url_of):
    server = Server(endpoint, version=1, outcome=outcome)
    if kind is None:
        server.run(url_of, lambda store: store.create_schema())
        return
    with pytest.raises(kind):
        server.run(url_of, lambda store: store.create_schema())
    assert "ROLLBACK" in server.steps


def test_the_ping_and_its_warnings(endpoint, url_of):
    def answer(sql):
        if "dm_exec_sessions" in sql:
            return endpoint.numbers("transaction_isolation_level", 1)
        if "sys.databases" in sql or "INFORMATION_SCHEMA" in sql:
            return endpoint.error(207, "Invalid column name 'delayed_durability'.", severity=16)
        return endpoint.numbers("answer", 1)

    async def use():
        async with SqlServerSagaStore(url_of(endpoint(answer).port)) as store:
            return await store.ping()

    ping = asyncio.run(use())
    assert ping.seconds > 0
    assert [warning.partition(":")[0] for warning in ping.warnings] == ["the isolation level is READ UNCOMMITTED"]


@pytest.mark.parametrize("name", ["", "a\x00b", "t" * 129])
def test_bad_names_are_refused(name):
    with pytest.raises(InvalidSagaError):
        get_schema_sql(table=name)
    with pytest.raises(InvalidSagaError):
        get_schema_sql(schema=name)

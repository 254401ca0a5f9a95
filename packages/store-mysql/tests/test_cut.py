"""Columns that somebody has narrowed: nothing is cut without an error, whatever the SQL mode."""

import asyncio
from contextlib import asynccontextmanager

import aiomysql
import pytest
from msgspec.structs import replace

from providers.mysql import connection_options
from saga_bus.store import SchemaError, StateDecodeError
from saga_bus.store_mysql import _driver
from saga_bus.store_mysql._dialect import MYSQL
from saga_bus.store_mysql._driver import Session
from saga_bus.store_mysql._errors import MySQLError
from saga_bus.store_mysql._operations import _differs

NARROW = "MODIFY state TEXT CHARACTER SET utf8mb4 NOT NULL"
LONG = "x" * 70_000  # a TEXT holds 65,535 bytes


@pytest.fixture(params=["own", "mysql"])
def dialect(request, monkeypatch):
    """MySQL's way to be impatient works on MariaDB too."""
    if request.param == "mysql":
        monkeypatch.setattr(_driver, "dialect_of", lambda _: MYSQL)


async def inserted_and_updated(store, place):
    """The outcomes of inserts, then of updates, each first alone and then in a group of four."""

    def insert(key, note):
        return store.insert(place.name, f"order-{key}", place.state(key, note))

    def update(key, note):
        return store.update(place.name, place.state(key, note, version=1), 0)

    alone = await asyncio.gather(insert("alone", LONG), return_exceptions=True)
    group = [insert(key, LONG if key == "c" else "") for key in "abcd"]
    inserted = alone + await asyncio.gather(*group, return_exceptions=True)
    await place.insert(store, "alone-2", *"efgh")
    alone = await asyncio.gather(update("alone-2", LONG), return_exceptions=True)
    group = [update(key, LONG if key == "g" else "") for key in "efgh"]
    return inserted, alone + await asyncio.gather(*group, return_exceptions=True)


KINDS = [SchemaError, type(None), type(None), SchemaError, type(None)]


@pytest.mark.usefixtures("dialect")
def test_the_stores_own_connections_write_nothing_that_is_cut(run, careless_place):
    place = careless_place

    async def test():
        async with place.opened() as store:
            place.execute(f"ALTER TABLE {place.table} {NARROW}")
            outcomes = await inserted_and_updated(store, place)
            assert [[type(outcome) for outcome in each] for each in outcomes] == [KINDS, KINDS]
            assert "check_schema" in str(outcomes[0][0])
            for key in ("alone", "c"):
                assert await store.get_by_id(place.name, key) is None
            versions = [(await store.get_by_id(place.name, key)).metadata.version for key in ("alone-2", *"efgh")]
            assert versions == [0, 1, 1, 0, 1]

    run(test())


@asynccontextmanager
async def on_a_careless_pool(place):
    """A store on a pool whose sessions are not strict."""
    options = {**connection_options(place.url), "autocommit": True, "minsize": 0}
    async with (
        aiomysql.create_pool(**options, init_command="SET SESSION sql_mode = ''") as pool,
        place.opened(url=None, pool=pool) as store,
    ):
        yield store


@pytest.mark.usefixtures("dialect")
def test_a_given_pool_that_is_not_strict_says_so_of_each_state_that_was_cut(run, place):
    async def test():
        async with on_a_careless_pool(place) as store:
            place.execute(f"ALTER TABLE {place.table} {NARROW}")
            outcomes = await inserted_and_updated(store, place)
            assert [[type(outcome) for outcome in each] for each in outcomes] == [KINDS, KINDS]
            assert "has cut" in str(outcomes[0][0])
            with pytest.raises(StateDecodeError):
                await store.get_by_id(place.name, "c")
            versions = [(await store.get_by_id(place.name, key)).metadata.version for key in "abdefh"]
            assert versions == [0, 0, 0, 1, 1, 1]

    run(test())


def test_a_transaction_that_is_not_strict_can_still_be_rolled_back(run, place):
    async def test():
        async with place.opened() as store, place.connection(init_command="SET SESSION sql_mode = ''") as connection:
            place.execute(f"ALTER TABLE {place.table} {NARROW}")
            await place.insert(store, "a")
            await connection.begin()
            bound = store.bind(connection)
            for call in (
                bound.insert(place.name, "order-b", place.state("b", LONG)),
                bound.update(place.name, place.state("a", LONG, version=1), 0),
            ):
                with pytest.raises(SchemaError, match="has cut"):
                    await call
            await connection.rollback()
            assert (await store.get_by_id(place.name, "a")).metadata.version == 0
            assert await store.get_by_id(place.name, "b") is None

    run(test())


@pytest.mark.parametrize("column", ["saga_name", "saga_id", "correlation_id"])
def test_ids_are_not_cut_either(run, place, column):
    name = "X" * 20 if column == "saga_name" else place.name
    saga_id = "x" * 20 if column == "saga_id" else "a"
    correlation_id = "x" * 20 if column == "correlation_id" else "a"

    async def test():
        async with on_a_careless_pool(place) as store:
            place.execute(f"ALTER TABLE {place.table} MODIFY {column} VARCHAR(10) CHARACTER SET utf8mb4 NOT NULL")
            with pytest.raises(SchemaError, match="has cut"):
                await store.insert(name, correlation_id, place.state(saga_id))
            await store.insert(place.name, "b", place.state("b"))

    run(test())


def test_versions_are_not_cut_either(run, place):
    async def test():
        async with on_a_careless_pool(place) as store:
            place.execute(f"ALTER TABLE {place.table} MODIFY version TINYINT NOT NULL")
            (state,) = await place.insert(store, "a")
            place.execute(f"UPDATE {place.table} SET version = 127")
            state.metadata = replace(state.metadata, version=128)
            with pytest.raises(SchemaError, match="has cut"):
                await store.update(place.name, state, 127)

    run(test())


def test_a_warning_without_harm_costs_a_look_and_no_error(run, careless_place, monkeypatch):
    """With a log of statements the server calls every group of updates unsafe."""
    place, looks, own = careless_place, [], Session.run

    async def counted(self, sql, **options):
        results = await own(self, sql, **options)
        looks.append(b"version, CAST(correlation_id AS BINARY),\n       CAST(state" in sql)
        return results

    async def test():
        async with place.opened() as store:
            states = await place.insert(store, *"abcdef")
            monkeypatch.setattr(Session, "run", counted)
            outcomes = await asyncio.gather(*(store.update(place.name, place.follow(state), 0) for state in states))
            assert outcomes == [None] * 6
            assert sum(looks) == 1

    run(test())


def test_where_the_look_fails_the_outcome_is_unknown(run, careless_place, monkeypatch):
    place, own = careless_place, Session.run

    async def fails(self, sql, **options):
        if b"version, CAST(correlation_id AS BINARY),\n       CAST(state" in sql:
            sql = b"KILL QUERY CONNECTION_ID()"
        return await own(self, sql, **options)

    async def test():
        async with place.opened() as store:
            states = await place.insert(store, *"abcdef")
            monkeypatch.setattr(Session, "run", fails)
            outcomes = await asyncio.gather(
                *(store.update(place.name, place.follow(state), 0) for state in states), return_exceptions=True
            )
            unknown = [outcome for outcome in outcomes if outcome is not None]
            assert {type(outcome).__name__ for outcome in unknown} == {"OutcomeUnknownError"}
            assert len(unknown) >= 2
            assert isinstance(unknown[0].__cause__, MySQLError)

    run(test())


@pytest.mark.parametrize(
    ("correlation_id", "stored", "differs"),
    [
        ("order-a", None, True),
        (None, None, False),  # deleted since
        (None, (1, b"order-a", b"{}"), False),
        (None, (1, b"order-a", b"{"), True),
        (None, (2, b"order-a", b"{later}"), False),  # saved since
        ("order-a", (1, b"order-a", b"{}"), False),
        ("order-a", (1, b"order", b"{}"), True),
    ],
)
def test_what_is_stored_is_compared_with_what_was_sent(correlation_id, stored, differs):
    class Row:
        version = 1
        document = b"{}"

    assert _differs(Row(), correlation_id, stored) is differs

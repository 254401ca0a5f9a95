"""Groups: each call has its own outcome, and nobody waits for what somebody else holds."""

import asyncio
import re
from pathlib import Path

import pytest
import sqlglot

import saga_bus.store_mysql
from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
    OutcomeUnknownError,
    SagaNotFoundError,
    SagaStoreError,
    StateTooLargeError,
    StoreUnavailableError,
)
from saga_bus.store_mysql import _groups
from saga_bus.store_mysql._dialect import MARIADB, MYSQL, dialect_of
from saga_bus.store_mysql._driver import Session
from saga_bus.store_mysql._errors import MySQLError
from saga_bus.store_mysql._groups import ALONE, _outcome_of
from saga_bus.store_mysql._schema import Place
from saga_bus.store_mysql._statements import Statements


@pytest.fixture(params=["own", "mysql"], autouse=True)
def dialect(request, monkeypatch):
    """MySQL's way to be impatient works on MariaDB too, so both are tried wherever there is one server."""
    if request.param == "mysql":
        own = Session.__init__

        def init(self, *arguments):
            own(self, *arguments)
            self.dialect = MYSQL

        monkeypatch.setattr(Session, "__init__", init)
    return request.param


async def grouped(store, *calls):
    """Outcomes of calls that leave together: the first one alone, while the others gather behind it."""
    return await asyncio.gather(*calls, return_exceptions=True)


def test_the_version_tells_the_dialect():
    assert dialect_of("8.4.5") is MYSQL
    assert dialect_of("8.0.42-0ubuntu0.24.04.1") is MYSQL
    assert dialect_of("10.11.19-MariaDB-0+deb12u1") is MARIADB
    assert dialect_of("5.5.5-11.4.2-mariadb") is MARIADB


def test_all_version_comments_stand_in_one_module():
    package = Path(saga_bus.store_mysql.__file__).parent
    found = {path.name for path in package.rglob("*.py") if re.search(r"/\*M?!", path.read_text("utf-8"))}
    assert found == {"_dialect.py"}


def as_mysql_reads(sql):
    return re.sub(r"/\*M!.*?\*/", "", re.sub(r"/\*!80019 (.*?) ?\*/", r"\1", sql))


def test_a_group_of_updates_is_a_statement_that_mysql_reads_too():
    """MariaDB runs the others of these tests; MySQL spells the new values of a row in another way."""
    sql = Statements(Place("sagas"))
    columns = [f"{column.name} = new.{column.name}" for column in parsed(sql.insert_into + b"(1)").this.expressions]
    written = parsed(sql.insert_into + sql.values.filled(*[b"1"] * 12) + sql.over_what_is_there)
    changes = [each.sql("mysql") for each in written.args["conflict"].expressions]
    assert changes == [each for each in columns if each.split()[0] not in ("saga_name", "saga_id", "correlation_id")]
    assert "`new`" in written.sql("mysql", identify=True)


def parsed(sql):
    return sqlglot.parse_one(as_mysql_reads(sql.decode()), dialect="mysql")


def test_updates_have_their_own_outcomes(run, place):
    async def test():
        async with place.opened() as store:
            states = await place.insert(store, *"abcdef")
            await store.update(place.name, place.follow(states[2]), 0)
            outcomes = await grouped(
                store,
                *(store.update(place.name, place.follow(state, "new"), 0) for state in states),
                store.update(place.name, place.state("missing", version=1), 0),
            )
            assert [outcomes[number] for number in (0, 1, 3, 4, 5)] == [None] * 5
            assert type(outcomes[2]) is ConcurrencyError
            assert (outcomes[2].expected_version, outcomes[2].actual_version) == (0, 1)
            assert type(outcomes[6]) is SagaNotFoundError
            for number in (0, 1, 3, 4, 5):
                found = await store.get_by_id(place.name, states[number].metadata.saga_id)
                assert (found.metadata.version, found.note) == (1, "new")

    run(test())


def test_a_row_that_somebody_else_holds_stalls_no_other_update(run, place):
    async def test():
        async with place.opened() as store:
            states = await place.insert(store, *"abcd")
            async with place.holding("c"):
                tasks = [
                    asyncio.create_task(store.update(place.name, place.follow(state, "new"), 0)) for state in states
                ]
                others = [task for number, task in enumerate(tasks) if number != 2]
                done, _ = await asyncio.wait(others, timeout=5)
                assert len(done) == 3
                assert not tasks[2].done()
                await store.update(place.name, place.follow(place.follow(states[0])), 1)  # nor a later one
            assert await asyncio.gather(*tasks) == [None] * 4

    run(test())


def test_inserts_have_their_own_outcomes(run, place):
    async def test():
        async with place.opened() as store:
            await place.insert(store, "taken")
            outcomes = await grouped(
                store,
                *(store.insert(place.name, f"new-{number}", place.state(f"id-{number}")) for number in range(5)),
                store.insert(place.name, "new-5", place.state("taken")),
                store.insert(place.name, "order-taken", place.state("id-6")),
                store.insert(place.name, "new-0", place.state("id-7")),
            )
            first, *others, taken_id, taken_correlation_id, second = outcomes
            assert others == [None] * 4
            assert (taken_id.conflict, taken_correlation_id.conflict) == ("saga_id", "correlation_id")
            assert {type(first), type(second)} == {type(None), DuplicateSagaError}  # they ran for one correlation id
            assert place.execute(f"SELECT COUNT(*) FROM {place.table}") == ((6,),)

    run(test())


def test_an_insert_that_must_wait_stalls_no_other_for_long(run, place, dialect):
    async def test():
        async with place.opened(lock_timeout=5) as store, place.connection() as connection:
            await connection.begin()
            await store.bind(connection).insert(place.name, "held", place.state("held"))
            first = asyncio.create_task(store.insert(place.name, "first", place.state("first")))
            await asyncio.sleep(0)
            tasks = [
                asyncio.create_task(store.insert(place.name, f"new-{name}", place.state(name)))
                for name in ("a", "held", "b")
            ]
            done, _ = await asyncio.wait([first, tasks[0], tasks[2]], timeout=4)
            assert len(done) == 3
            assert not tasks[1].done()
            await connection.rollback()
            assert await asyncio.gather(first, *tasks) == [None] * 4

    run(test())


def test_gets_have_their_own_outcomes(run, place):
    async def test():
        async with place.opened() as store:
            await place.insert(store, *"abc")
            keys = ["a", "b", "missing", "a", "c", "A", "a "]
            found = await grouped(store, *(store.get_by_id(place.name, key) for key in keys))
            assert [state and state.metadata.saga_id for state in found] == ["a", "b", None, "a", "c", None, None]
            found = await grouped(store, *(store.get_by_correlation_id(place.name, f"order-{key}") for key in keys))
            assert [state and state.metadata.saga_id for state in found] == ["a", "b", None, "a", "c", None, None]

    run(test())


def test_a_large_group_is_sent_in_parts(run, place, monkeypatch):
    monkeypatch.setattr(_groups, "_MAX_BYTES", 5_000)

    async def test():
        async with place.opened() as store:
            states = [place.state(f"id-{number}", "x" * 3_000) for number in range(7)]
            outcomes = await grouped(
                store, *(store.insert(place.name, state.metadata.saga_id, state) for state in states)
            )
            assert outcomes == [None] * 7
            outcomes = await grouped(
                store, *(store.update(place.name, place.follow(state, "y" * 6_000), 0) for state in states)
            )
            assert outcomes == [None] * 7
            assert place.execute(f"SELECT SUM(version) FROM {place.table}") == ((7,),)

    run(test())


def test_quotes_make_no_text_of_a_group_of_updates_too_long(run, place, monkeypatch):
    """A server with a small max_allowed_packet would cut the connection in the middle of a write."""
    monkeypatch.setattr(_groups, "_MAX_BYTES", 30_000)
    lengths, own = [], Session.run

    async def measured(self, sql, **options):
        lengths.append(len(sql))
        return await own(self, sql, **options)

    async def test():
        async with place.opened() as store:
            states = await place.insert(store, *"abcdefgh")
            monkeypatch.setattr(Session, "run", measured)
            new = [place.follow(state, "'" * 7_000) for state in states]
            assert await grouped(store, *(store.update(place.name, state, 0) for state in new)) == [None] * 8
            assert 15_000 < max(lengths) <= 30_000

    run(test())


def test_one_state_that_is_too_large_fails_alone(run, place):
    async def test():
        async with place.opened() as store:
            quotes = "'" * (store.capabilities.max_state_bytes // 2 + 20_000)  # each takes two bytes on the way
            await store.insert(place.name, "first", place.state("first"))
            outcomes = await grouped(
                store,
                store.insert(place.name, "a", place.state("a")),
                store.insert(place.name, "b", place.state("b", quotes)),
                store.insert(place.name, "c", place.state("c")),
            )
            assert [type(outcome) for outcome in outcomes] == [type(None), StateTooLargeError, type(None)]
            outcomes = await grouped(
                store,
                store.update(place.name, place.state("a", version=1), 0),
                store.update(place.name, place.state("c", quotes, version=1), 0),
                store.update(place.name, place.state("first", version=1), 0),
            )
            assert [type(outcome) for outcome in outcomes] == [type(None), StateTooLargeError, type(None)]

    run(test())


def test_each_part_of_a_large_group_has_its_own_outcome(run, place, monkeypatch):
    """What an earlier part has written is not called lost, nor a conflict, where a later one fails."""
    monkeypatch.setattr(_groups, "_MAX_BYTES", 5_000)
    own, sent = Session.run, []

    def fails_in(part, error):
        async def run(self, sql, **options):
            if b"SKIP LOCKED" in sql or (b"INSERT" in sql and b"DUPLICATE" not in sql and len(sql) > 3_000):
                sent.append(sql)
                if len(sent) == part:
                    if isinstance(error, SagaStoreError):
                        self.close()
                    raise error
            return await own(self, sql, **options)

        sent.clear()
        return run

    async def test():
        async with place.opened() as store:
            for number, error in enumerate((StoreUnavailableError("lost"), MySQLError(1290, "read-only"))):
                states = [place.state(f"{number}-{key}", "x" * 3_000) for key in "abcdef"]
                with monkeypatch.context() as patched:
                    patched.setattr(Session, "run", fails_in(3, error))
                    inserts = [store.insert(place.name, state.metadata.saga_id, state) for state in states]
                    outcomes = await grouped(store, *inserts)
                assert_agree(outcomes, await stored(store, states))
                await grouped(store, *(store.insert(place.name, state.metadata.saga_id, state) for state in states))
                new = [place.follow(state, "y" * 3_000) for state in states]
                with monkeypatch.context() as patched:
                    patched.setattr(Session, "run", fails_in(3, error))
                    outcomes = await grouped(store, *(store.update(place.name, state, 0) for state in new))
                assert_agree(outcomes, [state.metadata.version for state in await stored(store, states)])

    async def stored(store, states):
        return [await store.get_by_id(place.name, state.metadata.saga_id) for state in states]

    def assert_agree(outcomes, written):
        assert outcomes.count(None) >= 2
        assert {type(outcome) for outcome in outcomes} == {type(None), StoreUnavailableError}
        assert [outcome is None for outcome in outcomes] == [bool(each) for each in written]

    run(test())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MySQLError(1180, "Got error 28 during COMMIT"), OutcomeUnknownError),
        (MySQLError(1290, "read-only"), StoreUnavailableError),
        (OutcomeUnknownError("lost"), OutcomeUnknownError),
        (MySQLError(1062, "Duplicate entry 'a' for key 'PRIMARY'"), type(ALONE)),
        (MySQLError(1062, "Duplicate entry 'a' for key 'theirs'"), type(ALONE)),
        (MySQLError(1213, "Deadlock"), type(ALONE)),
        (MySQLError(1406, "Data too long for column 'state'"), type(ALONE)),
        (SagaStoreError("no autocommit"), type(ALONE)),
    ],
)
def test_what_a_part_that_failed_is_told(error, kind):
    outcome = _outcome_of(error)
    assert type(outcome) is kind
    assert kind is type(ALONE) or outcome is error or outcome.__cause__ is error

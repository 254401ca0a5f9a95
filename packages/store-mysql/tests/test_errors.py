"""Every error of the tree on the real server, and the table of the server's errors."""

import asyncio
import socket
from datetime import UTC, datetime, timedelta

import aiomysql
import pytest
from msgspec.structs import replace

from providers.mysql import connection_options
from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
    InvalidSagaError,
    OutcomeUnknownError,
    SagaFilter,
    SagaNotFoundError,
    SagaStoreError,
    SchemaError,
    StateEncodeError,
    StateTooLargeError,
    StoreClosedError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from saga_bus.store_mysql._errors import conflict_of, connection_lost, is_lost, translated


async def waits_for_lock(place):
    """Wait until some session waits for a row lock."""
    for _ in range(200):
        rows = place.execute("SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'")
        if rows[0][0]:
            return
        await asyncio.sleep(0.15)  # the server looks anew only where nobody has asked for 0.1 s
    raise AssertionError("nobody waits")


async def session_of(place, text="UPDATE"):
    """The connection that runs a statement on the place's table, once there is one."""
    for _ in range(500):  # what innodb_trx says may be of the test before
        rows = place.execute(
            f"SELECT id FROM information_schema.processlist WHERE info LIKE '%{place.table}%' "
            f"AND info LIKE '{text}%' AND id <> CONNECTION_ID()"
        )
        if rows:
            return rows[0][0]
        await asyncio.sleep(0.01)
    raise AssertionError(f"no session runs an {text}")


def test_a_lock_timeout_is_unavailable(run, place):
    async def test():
        async with place.opened(lock_timeout=1) as store:
            (state,) = await place.insert(store, "a")
            async with place.holding("a"):
                with pytest.raises(StoreUnavailableError, match="1205") as caught:
                    await store.update(place.name, place.follow(state), 0)
                assert type(caught.value) is StoreUnavailableError
            await store.update(place.name, place.follow(state), 0)

    run(test())


def test_a_deadlock_is_unavailable_and_ends_the_bound_transaction(run, place):
    async def test():
        async with place.opened() as store, place.connection() as one, place.connection() as two:
            a, b = await place.insert(store, "a", "b")
            await one.begin()
            await two.begin()
            bound = [store.bind(one), store.bind(two)]
            await bound[0].update(place.name, place.follow(a), 0)
            await bound[1].update(place.name, place.follow(b), 0)
            outcomes = await asyncio.gather(
                bound[0].update(place.name, place.follow(b), 0),
                bound[1].update(place.name, place.follow(a), 0),
                return_exceptions=True,
            )
            (loser,) = (number for number, outcome in enumerate(outcomes) if outcome is not None)
            assert type(outcomes[loser]) is StoreUnavailableError
            assert "1213" in str(outcomes[loser])
            # The server has rolled back, so the next statement would be committed by itself.
            with pytest.raises(StoreUnavailableError, match="ended the transaction"):
                await bound[loser].insert(place.name, "never", place.state("never"))
            await one.rollback()
            await two.rollback()
            assert await store.get_by_id(place.name, "never") is None

    run(test())


def test_a_serialization_failure_is_unavailable(run, place):
    """Two transactions read a saga and both save it; only one of them may.

    A server with snapshot isolation refuses the second one's write (1020). Any other server does so at SERIALIZABLE,
    where each has locked what it read, so it ends one of them as a deadlock (1213).
    """
    if place.execute("SHOW VARIABLES LIKE 'innodb_snapshot_isolation'"):
        run(a_snapshot_that_is_too_old(place))
    run(a_deadlock_at_serializable(place))


async def a_snapshot_that_is_too_old(place):
    async with place.opened() as store, place.connection() as connection:
        (state,) = await place.insert(store, "snapshot")
        await connection.query("SET SESSION innodb_snapshot_isolation = ON")
        await connection.begin()
        bound = store.bind(connection)
        assert await bound.get_by_id(place.name, "snapshot") is not None
        await store.update(place.name, place.follow(state), 0)
        with pytest.raises(StoreUnavailableError, match="1020") as caught:
            await bound.update(place.name, place.follow(state), 0)
        assert type(caught.value) is StoreUnavailableError
        with pytest.raises(StoreUnavailableError, match="ended the transaction"):
            await bound.get_by_id(place.name, "snapshot")


async def a_deadlock_at_serializable(place):
    async with place.opened() as store, place.connection() as one, place.connection() as two:
        (state,) = await place.insert(store, "serializable")
        bound = []
        for connection in (one, two):
            await connection.query("SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            await connection.begin()
            bound.append(store.bind(connection))
        for each in bound:
            assert (await each.get_by_id(place.name, "serializable")).metadata.version == 0
        outcomes = await asyncio.gather(
            *(each.update(place.name, place.follow(state), 0) for each in bound), return_exceptions=True
        )
        assert {type(outcome) for outcome in outcomes} == {type(None), StoreUnavailableError}
        assert "1213" in str([outcome for outcome in outcomes if outcome is not None])
        winner = (one, two)[outcomes.index(None)]
        await winner.commit()
        assert (await store.get_by_id(place.name, "serializable")).metadata.version == 1


def test_in_a_transaction_a_conflict_names_the_version_that_is_there_now(run, place):
    async def test():
        async with place.opened() as store, place.connection() as connection:
            (state,) = await place.insert(store, "a")
            await connection.begin()
            bound = store.bind(connection)
            assert (await bound.get_by_id(place.name, "a")).metadata.version == 0
            await store.update(place.name, place.follow(state), 0)
            with pytest.raises(ConcurrencyError) as caught:
                await bound.update(place.name, place.follow(state), 0)
            assert caught.value.actual_version == 1

    run(test())


def test_a_connection_that_was_killed_while_idle_is_replaced(run, place):
    async def test():
        async with place.opened() as store:
            (state,) = await place.insert(store, "a")
            for session in store._engine._pool._free:
                place.execute(f"KILL {session.connection.thread_id()}")
            await asyncio.sleep(0.05)  # the news must arrive
            await store.update(place.name, place.follow(state), 0)

    run(test())


def test_a_connection_killed_with_a_write_in_flight_leaves_its_outcome_unknown(run, place):
    async def test():
        async with place.opened() as store:
            (state,) = await place.insert(store, "a")
            async with place.holding("a"):
                task = asyncio.create_task(store.update(place.name, place.follow(state), 0))
                await waits_for_lock(place)
                place.execute(f"KILL CONNECTION {await session_of(place)}")
                with pytest.raises(OutcomeUnknownError):
                    await task
            await store.update(place.name, place.follow(state), 0)

    run(test())


def test_a_statement_that_was_killed_is_unavailable(run, place):
    async def test():
        async with place.opened() as store:
            (state,) = await place.insert(store, "a")
            async with place.holding("a"):
                task = asyncio.create_task(store.update(place.name, place.follow(state), 0))
                await waits_for_lock(place)
                place.execute(f"KILL QUERY {await session_of(place)}")
                with pytest.raises(StoreUnavailableError) as caught:
                    await task
                assert type(caught.value) is StoreUnavailableError
            await store.update(place.name, place.follow(state), 0)

    run(test())


def test_a_command_timeout_leaves_the_outcome_unknown_and_no_used_connection(run, place):
    async def test():
        async with place.opened(command_timeout=0.5, pool_size=1) as store:
            (state,) = await place.insert(store, "a")
            async with place.holding("a"):
                with pytest.raises(OutcomeUnknownError, match="in time"):
                    await store.update(place.name, place.follow(state), 0)
            assert (await store.get_by_id(place.name, "a")) is not None

    run(test())


def test_wrong_passwords_and_users(run, place, user):
    good = user("SELECT", password="right-one")

    async def test():
        bad = good.replace("right-one", "wrong-one")
        with pytest.raises(SagaStoreError, match="1045") as caught:
            async with place.store(url=bad):
                pass
        assert not caught.value.retryable
        assert "wrong-one" not in f"{caught.value!r} {caught.value} {caught.value.__cause__!r}"

    run(test())


def test_missing_rights(run, place, user):
    async def test():
        async with place.opened() as admin:
            await place.insert(admin, "a")
            async with place.store(url=user("SELECT")) as store:
                assert await store.get_by_id(place.name, "a") is not None
                with pytest.raises(SagaStoreError, match="1142") as caught:
                    await store.insert(place.name, "b", place.state("b"))
                assert not caught.value.retryable

    run(test())


def test_a_role_without_ddl_rights_runs_everything_else(run, place, user):
    url = user("SELECT", "INSERT", "UPDATE", "DELETE")
    an_hour, now = timedelta(hours=1), datetime.now(UTC)

    async def test():
        async with place.opened() as admin, place.store(url=url) as store:
            await store.check_schema()
            await store.create_schema()  # there is nothing to do
            (state,) = await place.insert(store, "a")
            ids = [f"n{number}" for number in range(6)]
            await asyncio.gather(*(place.insert(store, saga_id) for saga_id in ids))
            await store.update(place.name, place.follow(state), 0)
            await asyncio.gather(*(store.update(place.name, place.state(saga_id, version=1), 0) for saga_id in ids))
            assert (await store.get_by_id(place.name, "a")).metadata.version == 1
            assert (await store.get_by_correlation_id(place.name, "order-a")).metadata.version == 1
            found = await asyncio.gather(*(store.get_by_id(place.name, saga_id) for saga_id in ids))
            assert [state.metadata.version for state in found] == [1] * 6
            await store.delete(place.name, "n0")
            await store.delete(place.name, "a", 1)

            completed = place.state("n1", version=2)
            completed.metadata = replace(completed.metadata, updated_at=now - an_hour, is_completed=True)
            await store.update(place.name, completed, 1)
            everything = SagaFilter(saga_name=place.name)
            assert await store.count(everything) == 5
            for order in ("newest", "stalest"):
                ordered = SagaFilter(saga_name=place.name, order=order)
                assert len((await store.find(ordered)).items) == 5
            assert await store.delete_completed_before(place.name, now, dry_run=True) == 1
            assert await store.delete_completed_before(place.name, now) == 1
            assert await store.count(everything) == 4

            async with aiomysql.connect(**connection_options(url)) as connection:
                await connection.begin()
                bound = store.bind(connection)
                (state,) = await place.insert(bound, "b")
                await bound.update(place.name, place.follow(state), 0)
                await bound.delete(place.name, "n2", 1)
                await connection.commit()
            assert await store.count(everything) == 4
            assert (await store.ping()).warnings == (await admin.ping()).warnings

            with pytest.raises(SagaStoreError, match="1142"):
                await store.drop_schema()
            async with place.store(url=url, table=place.table + "_other") as other:
                with pytest.raises(SagaStoreError, match="1142"):
                    await other.create_schema()
            assert await store.count(everything) == 4

    run(test())


def test_too_many_connections_of_the_user(run, place, user):
    url = user("SELECT", limit="WITH MAX_USER_CONNECTIONS 1")

    async def test():
        async with place.opened(), place.store(url=url):
            with pytest.raises(StoreUnavailableError):
                async with place.store(url=url):
                    pass

    run(test())


def test_a_read_only_server_is_unavailable(run, place, user):
    url = user("SELECT", "INSERT")

    async def test():
        async with place.opened(), place.store(url=url) as store:
            place.execute("SET GLOBAL read_only = ON")
            try:
                with pytest.raises(StoreUnavailableError, match="1290"):
                    await store.insert(place.name, "a", place.state("a"))
                assert any("read_only" in warning for warning in (await store.ping()).warnings)
            finally:
                place.execute("SET GLOBAL read_only = OFF")
            await store.insert(place.name, "a", place.state("a"))

    run(test())


def test_no_server_and_no_database(run, place):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

        async def test():
            with pytest.raises(StoreUnavailableError):
                await place.store(url=f"mysql://root@127.0.0.1:{port}/x").get_by_id(place.name, "a")
            database = connection_options(place.url)["db"]
            with pytest.raises(SchemaError, match="1049"):
                await place.store(url=place.url.replace(database, "no_such_database")).get_by_id(place.name, "a")

        run(test())


def test_a_server_that_does_not_answer_is_given_up(run, place):
    async def test():
        given_up = asyncio.Event()

        async def say_nothing(reader, writer):
            await reader.read()
            writer.close()
            await writer.wait_closed()
            given_up.set()

        async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent:
            port = silent.sockets[0].getsockname()[1]
            with pytest.raises(StoreUnavailableError):
                await place.store(url=f"mysql://root@127.0.0.1:{port}/x", connect_timeout=0.2).ping()
            await given_up.wait()

    run(test())


def test_a_state_over_the_packet_limit(run, place):
    async def test():
        async with place.opened() as store:
            limit = store.capabilities.max_state_bytes
            assert limit > 1_000_000
            with pytest.raises(StateTooLargeError) as caught:
                await store.insert(place.name, "a", place.state("a", "x" * limit))
            assert caught.value.limit == limit
            await store.insert(place.name, "a", place.state("a", "x" * (limit - 1000)))
            found = await store.get_by_id(place.name, "a")
            assert len(found.note) == limit - 1000

    run(test())


def test_documents_that_are_no_utf8_are_refused(run, place):
    class Broken:
        def encode(self, state):
            return b'{"a": "\xff"}'

        def decode(self, saga_name, document):
            return place.state("a")

    async def test():
        async with place.opened() as store:
            broken = place.store(codec=Broken(), state_types=None)
            async with broken:
                with pytest.raises(StateEncodeError, match="UTF-8"):
                    await broken.insert(place.name, "a", place.state("a"))
            assert await store.get_by_id(place.name, "a") is None

    run(test())


def test_use_after_close_and_outside_a_transaction(run, place):
    async def test():
        async with place.opened() as store, place.connection(autocommit=True) as connection:
            with pytest.raises(UnsupportedOperationError, match="begin"):
                store.bind(connection)
            with pytest.raises(InvalidSagaError, match=r"aiomysql\.Connection"):
                store.bind(object())
        with pytest.raises(StoreClosedError):
            await store.get_by_id(place.name, "a")
        with pytest.raises(StoreClosedError):
            await store._engine.get_by_id(place.name, "a")

    run(test())


def test_the_other_errors_of_the_tree(run, place):
    async def test():
        async with place.opened() as store:
            (state,) = await place.insert(store, "a")
            with pytest.raises(DuplicateSagaError):
                await store.insert(place.name, "order-a", state)
            with pytest.raises(SagaNotFoundError):
                await store.delete(place.name, "b", 0)
            place.execute(f"DROP TABLE {place.table}")
            with pytest.raises(SchemaError, match=r"1146.*|create_schema"):
                await store.get_by_id(place.name, "a")
            with pytest.raises(SchemaError, match="create_schema"):
                await asyncio.gather(*(store.update(place.name, place.follow(state), 0) for _ in range(3)))

    run(test())


# -- the table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "conflict"),
    [
        ("Duplicate entry 'OrderSaga-a' for key 'PRIMARY'", "saga_id"),
        ("Duplicate entry 'OrderSaga-a' for key 'saga_instances.PRIMARY'", "saga_id"),
        ("Duplicate entry 'OrderSaga-a' for key 'my.odd'table.PRIMARY'", "saga_id"),
        ("Duplicate entry 'x' for key 'PRIMARY'' for key 'saga_correlation_id'", "correlation_id"),
        ("Duplicate entry 'a-b' for key 'saga_instances.saga_correlation_id'", "correlation_id"),
        ("Duplicate entry 'saga_correlation_id' for key 'somebody_elses'", None),
        ("something else", None),
    ],
)
def test_which_key_is_taken(message, conflict):
    assert conflict_of(aiomysql.IntegrityError(1062, message)) == conflict


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1020, StoreUnavailableError),
        (1040, StoreUnavailableError),
        (1044, SagaStoreError),
        (1045, SagaStoreError),
        (1049, SchemaError),
        (1054, SchemaError),
        (1142, SagaStoreError),
        (1146, SchemaError),
        (1180, OutcomeUnknownError),
        (1264, SchemaError),
        (1265, SchemaError),
        (1366, SchemaError),
        (1406, SchemaError),
        (1205, StoreUnavailableError),
        (1213, StoreUnavailableError),
        (1290, StoreUnavailableError),
        (1317, StoreUnavailableError),
        (1836, StoreUnavailableError),
        (2003, StoreUnavailableError),
        (2006, StoreUnavailableError),
        (3572, StoreUnavailableError),
        (9999, SagaStoreError),
    ],
)
def test_errors_by_number(code, kind):
    error = translated(aiomysql.OperationalError(code, "what the server says"))
    assert type(error) is kind


def test_a_lost_connection_by_what_was_sent():
    lost = aiomysql.OperationalError(2013, "Lost connection")
    assert is_lost(lost)
    assert type(connection_lost(lost, write_sent=False)) is StoreUnavailableError
    assert type(connection_lost(lost, write_sent=True)) is OutcomeUnknownError
    assert "in time" in str(connection_lost(TimeoutError(), write_sent=False))
    assert "ConnectionResetError" in str(connection_lost(ConnectionResetError(), write_sent=False))
    assert not is_lost(aiomysql.OperationalError(1213, "Deadlock"))


def test_foreign_unique_keys_are_no_duplicates(run, place):
    async def test():
        async with place.opened() as store:
            place.execute(f"ALTER TABLE {place.table} ADD UNIQUE KEY theirs (version)")
            await place.insert(store, "a")
            with pytest.raises(SagaStoreError, match="1062") as caught:
                await place.insert(store, "b")
            assert not isinstance(caught.value, ConcurrencyError)

    run(test())

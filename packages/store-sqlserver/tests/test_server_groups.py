"""What only a SQL Server can show of groups: locks of others, isolation levels, plans, and every caller's outcome."""

import asyncio
import functools
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import msgspec
import pytest

from providers.sqlserver import connected
from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
    SagaFilter,
    SagaNotFoundError,
    SagaRow,
    SagaState,
)
from saga_bus.store_sqlserver import SqlServerSagaStore, drop_schema
from saga_bus.store_sqlserver._location import parse_location
from saga_bus.store_sqlserver._odbc import load
from sqlserver_helpers import NAME, holding, is_babelfish, opened, state

SCANS = ("Index Scan", "Clustered Index Scan", "Table Scan")


@pytest.fixture
def url(databases):
    return databases.url("sqlserver")


@pytest.fixture
def table(url):
    name = f"t_{uuid4().hex[:12]}"
    yield name
    asyncio.run(drop_schema(url, table=name))


async def following(store, ids):
    """The next version of each saga, created when it was: only such updates go in groups."""
    found = await asyncio.gather(*(store.get_by_id(NAME, key) for key in ids))
    return {key: SagaState(metadata=saga.metadata.next()) for key, saga in zip(ids, found, strict=True)}


def watched(groups):
    """What the groups of a kind say, item by item: what was found, or whether it was written."""
    told = []
    together = groups._together

    def do_and_tell(items, session):
        outcomes = together(items, session)
        told.extend(outcomes)
        return outcomes

    groups._together = do_and_tell
    return told


async def all_but(locked, tasks):
    """Wait for the others, and see that this one still waits."""
    done, _ = await asyncio.wait([task for key, task in tasks.items() if key != locked], timeout=10)
    assert len(done) == len(tasks) - 1
    assert not tasks[locked].done()
    return [task.result() for task in done]


@pytest.mark.parametrize("locked", ["id-0", "id-7"])  # the one is read alone, the other in a group
def test_a_locked_saga_stalls_no_other(url, table, locked):
    async def run():
        ids = [f"id-{number}" for number in range(20)]
        async with opened(url, table, *ids, command_timeout=20, pool_size=4) as store:
            with holding(url, table, locked):
                tasks = {key: asyncio.ensure_future(store.get_by_id(NAME, key)) for key in ids}
                others = [task for key, task in tasks.items() if key != locked]
                done, _ = await asyncio.wait(others, timeout=10)
                assert len(done) == 19
                assert all(task.result() is not None for task in done)
            assert await tasks[locked] is not None

    asyncio.run(run())


@pytest.mark.parametrize("locked", ["id-0", "id-7"])  # the one is updated alone, the other in a group
@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_locked_saga_stalls_no_update_of_another(url, table, locked, ends):
    async def run():
        ids = [f"id-{number}" for number in range(20)]
        async with opened(url, table, *ids, command_timeout=20, pool_size=4) as store:
            told, states = watched(store._engine._updates), await following(store, ids)
            with connected(url) as connection:
                connection.autocommit = False
                await store.bind(connection).update(NAME, states[locked], 0)
                tasks = {key: asyncio.ensure_future(store.update(NAME, each, 0)) for key, each in states.items()}
                assert await all_but(locked, tasks) == [None] * 19
                if not is_babelfish(url):  # which gives a whole group up for a locked row
                    assert told.count(True) >= 18
                (connection.commit if ends == "commit" else connection.rollback)()
            if ends == "commit":
                with pytest.raises(ConcurrencyError):
                    await tasks[locked]
            else:
                await tasks[locked]
            assert await store.count(SagaFilter(saga_name=NAME)) == 20
            assert (await store.get_by_id(NAME, locked)).metadata.version == 1

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["read", "update"])
def test_more_locked_sagas_than_connections_stall_no_other(url, table, kind):
    async def run():
        ids = [f"id-{number}" for number in range(20)]
        async with opened(url, table, *ids, command_timeout=20, pool_size=3) as store:
            states = await following(store, ids)
            with connected(url) as connection:
                connection.autocommit = False
                bound = store.bind(connection)
                for key in ids[5:10]:
                    await bound.update(NAME, states[key], 0)
                calls = {
                    key: store.get_by_id(NAME, key) if kind == "read" else store.update(NAME, states[key], 0)
                    for key in ids
                }
                tasks = {key: asyncio.ensure_future(call) for key, call in calls.items()}
                done, _ = await asyncio.wait([tasks[key] for key in ids[:5] + ids[10:]], timeout=10)
                assert len(done) == 15
                assert all(task.exception() is None for task in done)
                connection.rollback()
            await asyncio.gather(*tasks.values())

    asyncio.run(run())


def test_each_update_of_a_group_has_its_own_outcome(url, table):
    async def run():
        ids = [f"id-{number}" for number in range(20)]
        async with opened(url, table, *ids) as store:
            told, states = watched(store._engine._updates), await following(store, ids)
            await store.update(NAME, states["id-4"], 0)
            await store.delete(NAME, "id-9")
            outcomes = await asyncio.gather(
                *(store.update(NAME, each, 0) for each in states.values()), return_exceptions=True
            )
            expected = {4: ConcurrencyError, 9: SagaNotFoundError}
            assert [type(outcome) for outcome in outcomes] == [expected.get(n, type(None)) for n in range(20)]
            assert told == [key not in ("id-4", "id-9") for key in sorted(ids[1:])]  # the first went alone

    asyncio.run(run())


@pytest.mark.parametrize("locked", ["id-0", "id-7"])  # the one is written alone, the other in a group
@pytest.mark.parametrize("ends", ["commit", "rollback"])
@pytest.mark.parametrize("taken", ["saga_id", "correlation_id"])
def test_an_insert_that_waits_for_another_transaction_stalls_no_other(url, table, locked, ends, taken):
    async def run():
        ids = [f"id-{number}" for number in range(20)]
        async with opened(url, table, command_timeout=20, pool_size=4) as store:
            with connected(url) as connection:
                connection.autocommit = False
                theirs = (locked, "theirs") if taken == "saga_id" else ("theirs", f"order-{locked}")
                await store.bind(connection).insert(NAME, theirs[1], state(theirs[0]))
                tasks = {key: asyncio.ensure_future(store.insert(NAME, f"order-{key}", state(key))) for key in ids}
                assert await all_but(locked, tasks) == [None] * 19
                (connection.commit if ends == "commit" else connection.rollback)()
            if ends == "commit":
                with pytest.raises(DuplicateSagaError) as raised:
                    await tasks[locked]
                assert raised.value.conflict == taken
            else:
                await tasks[locked]
            assert await store.count(SagaFilter(saga_name=NAME)) == 20

    asyncio.run(run())


def test_a_connection_waits_for_locks_again_after_a_group_that_did_not(url, table):
    async def run():
        async with opened(url, table, command_timeout=20, pool_size=1) as store:
            with connected(url) as connection:
                connection.autocommit = False
                await store.bind(connection).insert(NAME, "order-id-3", state("theirs"))
                inserts = [store.insert(NAME, f"order-id-{number}", state(f"id-{number}")) for number in range(6)]
                tasks = [asyncio.ensure_future(each) for each in inserts]
                await asyncio.wait(tasks, timeout=1)
                assert not tasks[3].done()  # a lock timeout of its group would have ended it
                connection.rollback()
            assert await asyncio.gather(*tasks) == [None] * 6

    asyncio.run(run())


def test_each_insert_of_a_group_has_its_own_outcome(url, table):
    async def run():
        async with opened(url, table, "id-4", "other") as store:
            told = watched(store._engine._inserts)
            correlation_ids = ["order-other" if number == 9 else f"new-{number}" for number in range(20)]
            new = [store.insert(NAME, each, state(f"id-{number}")) for number, each in enumerate(correlation_ids)]
            outcomes = await asyncio.gather(*new, return_exceptions=True)
            conflicts = {number: each.conflict for number, each in enumerate(outcomes) if each is not None}
            assert conflicts == {4: "saga_id", 9: "correlation_id"}
            assert {type(each) for each in outcomes if each is not None} == {DuplicateSagaError}
            assert told == []  # a group is written as a whole or not at all
            assert await store.count(SagaFilter(saga_name=NAME)) == 20
            more = [store.insert(NAME, f"more-{number}", state(f"more-{number}")) for number in range(20)]
            await asyncio.gather(*more)
            assert told == [True] * 19

    asyncio.run(run())


def test_a_group_inserts_ids_that_the_databases_collation_may_not_tell_from_none(url, table):
    async def run():
        ids = ["plain", "😀", "⭐", "㴆", "😀⭐", " ", "\N{ETHIOPIC SYLLABLE HA}"]
        async with opened(url, table) as store:
            await asyncio.gather(*(store.insert(NAME, f"order-{key}", state(key)) for key in ids))
            assert [(await store.get_by_id(NAME, key)).metadata.saga_id for key in ids] == ids

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["inserts", "updates"])
def test_a_group_keeps_every_field_of_its_sagas(url, table, kind):
    async def run():
        moment = datetime(2031, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
        ids = [f"id-{number}{' ' * number}" for number in range(10)]
        async with opened(url, table, *(ids if kind == "updates" else ())) as store:
            if kind == "updates":
                told, states = watched(store._engine._updates), await following(store, ids)
            else:
                told, states = watched(store._engine._inserts), {key: state(key) for key in ids}
            written = []
            for number, each in enumerate(states.values()):
                odd = bool(number % 2)
                changed_fields = {
                    "is_completed": odd,
                    "archived_at": moment if odd else None,
                    "timeout_expires_at": None if odd else moment,
                }
                metadata = msgspec.structs.replace(each.metadata, updated_at=moment, **changed_fields)
                written.append(SagaState(metadata=metadata))
            if kind == "updates":
                await asyncio.gather(*(store.update(NAME, each, 0) for each in written))
            else:
                await asyncio.gather(*(store.insert(NAME, f"order-{each.metadata.saga_id}", each) for each in written))
            assert await asyncio.gather(*(store.get_by_id(NAME, key) for key in ids)) == written
            found = await asyncio.gather(*(store.get_by_correlation_id(NAME, f"order-{key}") for key in ids))
            assert found == written
            assert told == [True] * 9
            for where in (
                SagaFilter(completed=True),
                SagaFilter(archived=True),
                SagaFilter(timeout_due_before=moment + timedelta(seconds=1)),
                SagaFilter(updated_after=moment - timedelta(microseconds=1), completed=False),
            ):
                assert await store.count(where) == 5

    asyncio.run(run())


def test_groups_seek(url, table):
    """However small the table is: a plan that scans it would be kept when it has grown."""
    if is_babelfish(url):
        pytest.skip("Babelfish shows plans of another kind")

    def plans(session, statement, parameters):
        session.run("SET STATISTICS XML ON")
        cursor = session.connection.cursor()
        cursor.setinputsizes([session._binding(binding) for binding in statement.bindings])
        cursor.execute(statement.sql, *parameters)
        found = []
        while True:
            if cursor.description is not None and "Showplan" in cursor.description[0][0]:
                found += [text for (text,) in cursor.fetchall()]
            if not cursor.nextset():
                break
        session.run("SET STATISTICS XML OFF")
        return found

    def explained(operations, session):
        shown = []
        session.write_group = session.read = lambda *args: shown.extend(plans(session, *args)) or []
        rows = [state(f"id-{number}", 1) for number in range(8)]
        row = [SagaRow(NAME, each.metadata.saga_id, 1, b"{}", False, *[each.metadata.created_at] * 2, None, None, False)
               for each in rows]  # fmt: skip
        session._is_babelfish = False
        operations.update_group([(each, 0) for each in row], session)
        operations.get_group([(NAME, each.saga_id) for each in row], session, by_correlation_id=False)
        operations.get_group([(NAME, each.saga_id) for each in row], session, by_correlation_id=True)
        del session.write_group, session.read
        return shown

    async def run():
        async with opened(url, table, "a", "b") as store:
            shown = await store._engine._pool.run(functools.partial(explained, store._operations))
            assert len(shown) == 3
            for plan in shown:
                assert 'PhysicalOp="Index Seek"' in plan
                assert not any(f'PhysicalOp="{scan}"' in plan for scan in SCANS)

    asyncio.run(run())


def test_a_purge_passes_over_a_locked_saga(url, table):
    if is_babelfish(url):
        pytest.skip("Babelfish ignores the hint, so a purge waits there")

    async def run():
        async with opened(url, table, "a", "b", "c", command_timeout=20) as store:
            for key in "abc":
                saga = await store.get_by_id(NAME, key)
                saga.metadata = msgspec.structs.replace(saga.metadata.next(), is_completed=True)
                await store.update(NAME, saga, 0)
            later = datetime.now(UTC) + timedelta(days=1)
            with connected(url) as connection:
                connection.autocommit = False
                busy = await store.get_by_id(NAME, "b")
                busy.metadata = busy.metadata.next()
                await store.bind(connection).update(NAME, busy, 1)
                assert await store.delete_completed_before(NAME, later) == 2
                connection.rollback()
            assert await store.delete_completed_before(NAME, later) == 1

    asyncio.run(run())


@pytest.mark.parametrize("isolation", ["SNAPSHOT", "SERIALIZABLE", "REPEATABLE READ", "READ UNCOMMITTED"])
def test_every_isolation_level_serves(url, table, isolation):
    """Where the server does not pass over locked rows, everything goes alone."""

    def connect():
        connection = load().connect(parse_location(url).connection_string(), autocommit=True, timeout=10)
        connection.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
        return connection

    try:
        if isolation == "SNAPSHOT":
            with connected(url) as admin:
                admin.execute("ALTER DATABASE CURRENT SET ALLOW_SNAPSHOT_ISOLATION ON")
        connect().close()
    except load().Error as error:
        if not is_babelfish(url):
            raise
        pytest.skip(f"{isolation} is not to be had here: {error}")  # Babelfish has not all of them

    async def run():
        async with SqlServerSagaStore(connect=connect, table=table, state_types={NAME: SagaState}) as store:
            await store.create_schema()
            ids = [f"id-{number}" for number in range(20)]
            for _ in range(4):  # more often than the store tries what is refused
                await asyncio.gather(*(store.insert(NAME, f"order-{key}", state(key)) for key in ids))
                states = await following(store, ids)
                await asyncio.gather(*(store.update(NAME, each, 0) for each in states.values()))
                found = await asyncio.gather(*(store.get_by_correlation_id(NAME, f"order-{key}") for key in ids))
                assert [each.metadata.version for each in found] == [1] * 20
                await asyncio.gather(*(store.delete(NAME, key) for key in ids[1:]))
                last = await store.get_by_id(NAME, ids[0])
                last.metadata = msgspec.structs.replace(last.metadata.next(), is_completed=True)
                await store.update(NAME, last, 1)
                assert await store.delete_completed_before(NAME, datetime.now(UTC) + timedelta(days=1)) == 1

    asyncio.run(run())

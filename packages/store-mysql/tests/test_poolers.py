"""Poolers that share out connections: what a session keeps, and what a store does without.

No real one is at hand here. So the kit runs behind what a transaction pooler does to its clients at its worst.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from typing import Any

import aiomysql
import pytest

from providers.mysql import connection_options, execute
from saga_bus.store import ConcurrencyError, DuplicateSagaError, SagaStoreError, SchemaError
from saga_bus.store.conformance import SagaStoreConformance
from saga_bus.store_mysql import MySqlSagaStore, _driver
from saga_bus.store_mysql._dialect import MYSQL
from saga_bus.store_mysql._driver import Session
from saga_bus.store_mysql._errors import MySQLError

_SPARE = 4  # so that hardly any request goes where the one before went


class _Backends:
    """The connections that all clients share."""

    def __init__(self, url: str) -> None:
        self._options = connection_options(url)
        self._free: list[Any] = []

    async def take(self) -> Any:
        while len(self._free) < _SPARE:
            self._free.append(await aiomysql.connect(**self._options, autocommit=None))
        return self._free.pop(random.randrange(len(self._free)))

    def give(self, connection: Any) -> None:
        if not connection.closed:
            self._free.append(connection)

    def close(self) -> None:
        while self._free:
            self._free.pop().close()


class _ForgottenSession(Session):
    """Each request outside a transaction runs on another connection, of which none knows what the client has set."""

    __slots__ = ("_backends", "_held")

    def __init__(self, session: Session, backends: _Backends) -> None:
        super().__init__(session.connection, session.command_timeout)
        self._backends = backends
        self._held: Any = None

    async def run(self, sql: bytes, *, commits: bool = False) -> list[Any]:
        mine = self.connection
        self.connection = backend = self._held or await self._backends.take()
        self._held = None
        try:
            return await super().run(sql, commits=commits)
        finally:
            self.connection = mine
            mine.server_status = backend.server_status
            if backend.closed:
                mine.close()
            elif backend.get_transaction_status():
                self._held = backend
            else:
                self._backends.give(backend)

    def close(self) -> None:
        super().close()
        if self._held is not None:
            self._held.close()
            self._held = None


class StoreBehindAPooler(MySqlSagaStore[Any]):
    """A store whose connections a pooler shares out, transaction by transaction.

    Args:
        url: The server.
        **options: As the store has them.
    """

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._backends: _Backends | None = _Backends(url)
        backends, pool = self._backends, self._engine._pool
        dial = pool._connect

        async def behind() -> Session:
            return _ForgottenSession(await dial(), backends)

        pool._connect = behind

    def _bind(self, connection: Any) -> Any:
        bound = super()._bind(connection)
        bound._backends = None
        return bound

    async def close(self) -> None:
        await super().close()
        if self._backends is not None:
            self._backends.close()


class TestBehindAPooler(SagaStoreConformance):
    """By URL, on a server with SERIALIZABLE, no SQL mode and a log of statements."""

    # They take half a minute, and test_conformance has them.
    test_stateful_behaves_like_the_model = None
    test_processes_share_the_sagas = None

    @pytest.fixture(autouse=True)
    def with_server(self, careless_url):
        self.url = careless_url
        execute(self.url, "CREATE TABLE IF NOT EXISTS saga_business (name VARCHAR(200) PRIMARY KEY)")

    def open_store(self, namespace):
        return StoreBehindAPooler(self.url, table=namespace)

    @asynccontextmanager
    async def open_transaction(self, namespace):
        connection = await aiomysql.connect(**connection_options(self.url))
        try:
            yield Transaction(self.url, connection, namespace)
        finally:
            connection.close()


class Transaction:
    """A caller's own transaction."""

    def __init__(self, url, connection, namespace):
        self.url = url
        self.connection = connection
        self.namespace = namespace

    async def commit(self):
        await self.connection.commit()

    async def rollback(self):
        await self.connection.rollback()

    async def put_row(self, key):
        await self.connection.query(f"INSERT INTO saga_business VALUES ('{self.namespace}{key}')")

    async def has_row(self, key):
        return bool(execute(self.url, f"SELECT 1 FROM saga_business WHERE name = '{self.namespace}{key}'"))


@pytest.fixture(params=["own", "mysql"])
def dialect(request, monkeypatch):
    """MySQL's way to be impatient works on MariaDB too."""
    if request.param == "mysql":
        monkeypatch.setattr(_driver, "dialect_of", lambda _: MYSQL)


async def kept(store):
    """What of the store's one session outlives a request."""
    pool = store._engine._pool
    session = await pool.acquire()
    try:
        (settings,) = await session.run(
            b"SELECT @@autocommit, @@innodb_lock_wait_timeout, @@sql_mode, @@time_zone, CAST(DATABASE() AS BINARY), "
            b"RELEASE_ALL_LOCKS()"
        )
        (variable,) = await session.run(b"SHOW VARIABLES LIKE '%isolation'")
        await session.run(b"DO 1")  # rows come without the status
        return settings.rows, variable.rows, session.connection.get_transaction_status(), session.connection.closed
    finally:
        await pool.release(session)


@pytest.mark.usefixtures("dialect")
def test_no_operation_leaves_anything_in_its_session(run, place):
    async def test():
        async with place.store(pool_size=1) as store:
            before = await kept(store)
            assert before[2:] == (False, False)
            assert before[0][0][:2] == (1, 10)
            assert before[0][0][-1] == 0

            async def left(*calls):
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
                assert await kept(store) == before
                return [type(outcome) for outcome in outcomes]

            def insert(key):
                return store.insert(place.name, f"order-{key}", place.state(key))

            def update(key):
                return store.update(place.name, place.state(key, version=1), 0)

            nothing = type(None)
            await left(store.create_schema(), store.create_schema())
            assert await left(insert("a")) == [nothing]
            assert await left(insert("a")) == [DuplicateSagaError]
            assert await left(*(insert(key) for key in "bcdef")) == [nothing] * 5
            assert await left(*(insert(key) for key in "efgh")) == [DuplicateSagaError] * 2 + [nothing] * 2
            assert await left(update("a")) == [nothing]
            assert await left(update("a")) == [ConcurrencyError]
            assert await left(*(update(key) for key in "bcd")) == [nothing] * 3
            assert await left(*(update(key) for key in "bcd")) == [ConcurrencyError] * 3
            assert await left(*(update(key) for key in "cdef")) == [ConcurrencyError] * 2 + [nothing] * 2
            await left(store.get_by_id(place.name, "a"), store.get_by_id(place.name, "b"))
            assert await left(store.delete(place.name, "a", 0)) == [ConcurrencyError]
            assert await left(store.delete(place.name, "a", 1)) == [nothing]
            await left(store.delete_completed_before(place.name, place.state("x").metadata.created_at))
            await left(store.ping(), store.check_schema())
            await left(store.drop_schema())
            assert set(await left(insert("z"), *(update(key) for key in "bcd"))) == {SchemaError}

    run(test())


@pytest.mark.parametrize("call", ["insert", "update", "delete", "inserts", "updates"])
def test_without_autocommit_no_write_is_acknowledged(run, place, call):
    """The server's own setting where a pooler forgets the store's."""

    async def test():
        async with place.opened(pool_size=1) as store:
            await place.insert(store, *"abcd")
            session = await store._engine._pool.acquire()
            await session.run(b"SET autocommit = 0")
            await store._engine._pool.release(session)
            calls = {
                "insert": [lambda: store.insert(place.name, "new", place.state("new"))],
                "update": [lambda: store.update(place.name, place.state("a", version=1), 0)],
                "delete": [lambda: store.delete(place.name, "a")],
                # The first one fails, and has its connection replaced: so they leave as a group of four.
                "inserts": [lambda key=key: store.insert(place.name, f"n-{key}", place.state(key)) for key in "wxyz"],
                "updates": [lambda key=key: store.update(place.name, place.state(key, version=1), 0) for key in "abcd"],
            }[call]
            outcomes = await asyncio.gather(*(each() for each in calls), return_exceptions=True)
            refused = [each for each, outcome in zip(calls, outcomes, strict=True) if outcome is not None]
            assert len(refused) == 1
            for outcome in outcomes:
                if outcome is not None:
                    assert type(outcome) is SagaStoreError
                    assert "autocommit" in str(outcome)
            for each in refused:
                await each()  # nothing was written: it is no duplicate, and no conflict
            rows = place.execute(f"SELECT COUNT(*), SUM(version) FROM {place.table}")
            assert rows == ((expected_rows(call), expected_versions(call)),)

    def expected_rows(call):
        return {"insert": 5, "update": 4, "delete": 3, "inserts": 8, "updates": 4}[call]

    def expected_versions(call):
        return {"update": 1, "updates": 4}.get(call, 0)

    run(test())


@pytest.mark.parametrize("refused", [False, True])
def test_a_lost_variable_hurts_no_group_of_inserts(run, place, monkeypatch, refused):
    """MySQL's timeout is put back by a request of its own where a group fails; a pooler may have it elsewhere."""
    monkeypatch.setattr(_driver, "dialect_of", lambda _: MYSQL)
    own, put_back = Session.run, []

    async def elsewhere(self, sql, **options):
        if sql.startswith(b"SET SESSION innodb_lock_wait_timeout"):
            put_back.append(self)
            await own(self, b"SET @saga_bus_lock_wait = NULL")
            if refused:
                raise MySQLError(1231, "Variable 'innodb_lock_wait_timeout' can't be set to the value of 'NULL'")
        return await own(self, sql, **options)

    async def test():
        async with place.opened() as store:
            await place.insert(store, "a")
            monkeypatch.setattr(Session, "run", elsewhere)
            outcomes = await asyncio.gather(
                *(store.insert(place.name, f"order-{key}", place.state(key)) for key in "bcdae"), return_exceptions=True
            )
            kinds = [type(outcome) for outcome in outcomes]
            assert kinds == [type(None)] * 3 + [DuplicateSagaError, type(None)]
            (session,) = put_back
            assert session.connection.closed is refused
            if not refused:
                (timeouts,) = await session.run(
                    b"SELECT @@SESSION.innodb_lock_wait_timeout = @@GLOBAL.innodb_lock_wait_timeout"
                )
                assert timeouts.rows == ((1,),)

    run(test())

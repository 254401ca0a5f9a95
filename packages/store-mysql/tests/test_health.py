"""What ping warns of."""

import pytest

from saga_bus.store import SchemaError
from saga_bus.store_mysql._driver import Result
from saga_bus.store_mysql._health import warnings_about
from saga_bus.store_mysql._literals import quote
from saga_bus.store_mysql._schema import Place

KEY = "CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci NOT NULL"


async def warnings_of(place, store, *settings, table=None):
    pool = store._engine._pool
    session = await pool.acquire()
    try:
        for setting in settings:
            await session.run(f"SET SESSION {setting}".encode())
    finally:
        await pool.release(session)
    return (await store.ping()).warnings


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("sql_mode = ''", "not strict"),
        ("TRANSACTION ISOLATION LEVEL READ UNCOMMITTED", "READ UNCOMMITTED"),
        ("character_set_client = 'latin1'", "latin1"),
        ("autocommit = 0", "autocommit is off"),
    ],
)
def test_settings_of_the_session(run, place, setting, word):
    async def test():
        async with place.opened(pool_size=1) as store:
            before = await warnings_of(place, store)
            after = await warnings_of(place, store, setting)
            assert not any(word in warning for warning in before)
            assert [word in warning for warning in after if warning not in before] == [True]

    run(test())


@pytest.mark.parametrize("variable", ["innodb_flush_log_at_trx_commit"])
def test_settings_of_the_server(run, place, variable):
    ((before,),) = place.execute(f"SELECT @@GLOBAL.{variable}")

    async def test():
        async with place.opened() as store:
            place.execute(f"SET GLOBAL {variable} = 2")
            try:
                assert any(variable in warning for warning in (await store.ping()).warnings)
            finally:
                place.execute(f"SET GLOBAL {variable} = {before}")

    run(test())


def test_a_table_without_transactions(run, place):
    async def test():
        async with place.opened() as store:
            place.execute(f"DROP TABLE {place.table}", f"CREATE TABLE {place.table} (a INT) ENGINE = MyISAM")
            assert any("MyISAM" in warning for warning in (await store.ping()).warnings)

    run(test())


def test_careless_settings_of_a_server(run, careless_place, place):
    words = [
        "innodb_flush_log_at_trx_commit is not 1",
        "sync_binlog is not 1",
        "innodb_doublewrite is OFF",
    ]

    async def test():
        async with careless_place.opened() as careless, place.opened() as store:
            there, here = (await careless.ping()).warnings, (await store.ping()).warnings
            for word in words:
                assert [word in warning for warning in there].count(True) == 1
                assert not any(word in warning for warning in here)
            assert len(there) == len(words)  # the store's own sessions are strict

    run(test())


@pytest.mark.parametrize(
    ("variable", "value", "warns"),
    [
        ("innodb_doublewrite", "DETECT_ONLY", True),  # MySQL's, from 8.0.30 on
        ("innodb_doublewrite", "DETECT_AND_RECOVER", False),
        ("innodb_doublewrite", "ON", False),
        ("sync_binlog", "0", True),
        ("sync_binlog", "100", True),
        ("sync_binlog", "1", False),
        ("read_only", "ON", True),
        ("autocommit", "OFF", True),
    ],
)
def test_what_servers_say(run, variable, value, warns):
    class Session:
        quote = staticmethod(quote)

        async def run(self, sql):
            assert f"'{variable}'".encode() in sql
            said = {"log_bin": "ON", "sql_mode": "STRICT_TRANS_TABLES", variable: value}
            return [Result(list(said.items()), 0, 0), Result([("InnoDB",)], 0, 0), Result([], 0, 0)]

    warnings = run(warnings_about(Place("sagas"), Session(), commits=True))
    assert [variable in warning for warning in warnings] == [True] * warns


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (f"MODIFY correlation_id VARCHAR(256) {KEY}", ["correlation_id has the collation utf8mb4_general_ci"]),
        (f"MODIFY saga_id VARCHAR(128) {KEY}", ["saga_id has the collation utf8mb4_general_ci"]),
        # It is binary, but takes "a" and "a " for one id.
        (
            f"MODIFY saga_name VARCHAR(128) {KEY.replace('general_ci', 'bin')}",
            ["saga_name has the collation utf8mb4_bin"],
        ),
        (
            "CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci",
            [f"{name} has the collation utf8mb4_unicode_ci" for name in ("saga_name", "saga_id", "correlation_id")],
        ),
        ("MODIFY state TEXT CHARACTER SET utf8mb4 NOT NULL", ["state holds 65535 bytes"]),
        ("MODIFY state LONGTEXT CHARACTER SET latin1 NOT NULL", ["state has the character set latin1"]),
        ("MODIFY saga_id VARBINARY(128) NOT NULL", ["saga_id holds 128 bytes"]),
        ("DROP COLUMN state", ["state is missing"]),
        ("MODIFY saga_id VARBINARY(512) NOT NULL", []),
        ("MODIFY state LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci NOT NULL", []),  # nothing compares it
        ("ADD COLUMN mine VARCHAR(10) CHARACTER SET latin1", []),
    ],
)
def test_columns_that_were_altered(run, place, change, words):
    async def test():
        async with place.opened() as store:
            await store.check_schema()
            before = (await store.ping()).warnings
            place.execute(f"ALTER TABLE {place.table} {change}")
            warnings = [warning for warning in (await store.ping()).warnings if warning not in before]
            assert len(warnings) == len(words)
            for word, warning in zip(words, warnings, strict=True):
                assert word in warning
            if not words:
                await store.check_schema()
                return
            with pytest.raises(SchemaError, match="get_schema_sql") as caught:
                await store.check_schema()
            for word in words:
                assert word in str(caught.value)

    run(test())


def test_the_callers_transaction_needs_no_autocommit(run, place):
    async def test():
        async with place.opened() as store, place.connection() as connection:
            assert not connection.get_autocommit()
            assert not any("autocommit" in warning for warning in (await store.bind(connection).ping()).warnings)

    run(test())

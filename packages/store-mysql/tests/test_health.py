"""What ping warns of."""

import pytest


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

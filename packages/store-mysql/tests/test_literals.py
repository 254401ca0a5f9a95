"""Texts become literals, and come back as they were, in both ways that a session reads them."""

import asyncio
from datetime import UTC, datetime

import pymysql
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.mysql import connection_options
from saga_bus.store_mysql._literals import Template, moment, optional_moment, quote, quote_plain
from saga_bus.store_mysql._schema import Place

NASTY = st.text(
    st.one_of(st.sampled_from("'\\\"`%;-#/*\0\n\r\x1a_?{}"), st.characters(exclude_categories=["Cs"])), max_size=50
)


@pytest.fixture(scope="module")
def cursors(url):
    options = connection_options(url)
    options["database"] = options.pop("db")
    with pymysql.connect(**options) as one, pymysql.connect(**options, sql_mode="NO_BACKSLASH_ESCAPES") as two:
        yield (one.cursor(), quote), (two.cursor(), quote_plain)


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(NASTY, min_size=1, max_size=5))
def test_texts_come_back(cursors, texts):
    for cursor, quoted in cursors:
        cursor.execute(b"SELECT " + b", ".join(b"CAST(%b AS BINARY)" % quoted(text.encode()) for text in texts))
        assert [value.decode() for value in cursor.fetchone()] == texts


def test_the_session_says_which_way(run, place):
    async def test():
        async with place.opened() as store:
            for mode, expected in (("NO_BACKSLASH_ESCAPES", quote_plain), ("ANSI_QUOTES", quote)):
                async with place.connection() as connection:
                    await connection.query(f"SET SESSION sql_mode = '{mode}'")
                    await connection.begin()
                    bound = store.bind(connection)
                    assert bound._engine._session.quote is expected
                    await bound.insert(place.name, f"o\\'{mode}", place.state(f"\\'{mode}", "\\n'\\\\''"))
                    await connection.commit()
                found = await store.get_by_correlation_id(place.name, f"o\\'{mode}")
                assert found.note == "\\n'\\\\''"

    asyncio.run(test())


def test_moments():
    assert moment(datetime(1, 1, 1, tzinfo=UTC)) == b"'0001-01-01 00:00:00.000000'"
    assert moment(datetime.max.replace(tzinfo=UTC)) == b"'9999-12-31 23:59:59.999999'"
    assert optional_moment(None) == b"NULL"


def test_templates():
    template = Template("SELECT ? FROM {table} WHERE a = ?", table=Place("what? {0} %s").quoted)
    assert template.filled(b"'?'", b"2") == b"SELECT '?' FROM `what? {0} %s` WHERE a = 2"
    with pytest.raises(ValueError, match="zip"):
        template.filled(b"1")

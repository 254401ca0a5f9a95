"""SQL names: refused or quoted, never put into a statement raw."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga_bus.store import InvalidSagaError
from saga_bus.store.identifiers import QuoteStyle, check_identifier, derived_identifier, quote_identifier

HOSTILE = ['saga"; DROP TABLE x; --', "a`b", "a]b", "it's", "order", "Mixed Case", "a.b", "größe", "", "%s", ":x", "?"]


@pytest.mark.parametrize(
    ("style", "quoted"),
    [("ansi", '"a""b`c]d[e"'), ("mysql", '`a"b``c]d[e`'), ("sqlserver", '[a"b`c]]d[e]')],
)
def test_each_dialect_quotes_with_its_own_quotes_doubled(style: QuoteStyle, quoted: str) -> None:
    assert quote_identifier('a"b`c]d[e', style=style) == quoted


def test_a_quoted_name_is_one_name_whatever_it_holds() -> None:
    for style in get_args(QuoteStyle):  # SQLite understands all three ways
        for name in HOSTILE:
            with closing(sqlite3.connect(":memory:")) as connection:
                if style == "sqlserver" and "]" in name:
                    continue  # doubling ] is SQL Server's own
                connection.execute(f"CREATE TABLE {quote_identifier(name, style=style)} (x)")
                assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [(name,)]


@pytest.mark.parametrize("name", [*(name for name in HOSTILE if name), "a" * 63, "ä" * 31, "\U0001f600" * 15])
def test_a_name_of_up_to_63_bytes_passes_unchanged(name: str) -> None:
    assert check_identifier(name) == name


@pytest.mark.parametrize(
    "name", ["", "a" * 64, "ä" * 32, "\U0001f600" * 16, "a\x00", "a\nb", "\x7f", "\ud800", None, 1, b"saga"], ids=ascii
)
def test_a_name_that_a_database_would_cut_or_misread_is_refused(name: Any) -> None:
    with pytest.raises(InvalidSagaError, match="the index name"):
        check_identifier(name, what="index")


def test_the_limit_is_the_databases() -> None:
    assert check_identifier("a" * 128, max_bytes=128)
    with pytest.raises(InvalidSagaError, match="has 129 bytes, the limit is 128"):
        check_identifier("a" * 129, max_bytes=128)


def test_a_derived_name_that_fits_is_plain() -> None:
    assert derived_identifier("sagas", "due") == "sagas_due"
    assert derived_identifier("a" * 59, "due") == "a" * 59 + "_due"


@given(table=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=70), suffix=st.sampled_from("abc"))
def test_a_derived_name_never_passes_the_limit_nor_breaks_a_character(table: str, suffix: str) -> None:
    name = derived_identifier(table, suffix)
    assert len(name.encode()) <= 63
    assert name.endswith(f"_{suffix}")


def test_long_tables_that_differ_only_at_the_end_get_names_of_their_own() -> None:
    tables = [*("t" * 62 + last for last in "abc"), *("ä" * 31 + last for last in "abc")]
    names = {derived_identifier(table, suffix) for table in tables for suffix in ("due", "stale")}
    assert len(names) == len(tables) * 2

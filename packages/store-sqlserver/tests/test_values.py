"""Keys are stored so that SQL Server's padded comparison tells them apart; keys and moments come back as they were."""

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from saga_bus.store.checks import microseconds
from saga_bus.store_sqlserver._values import key_of, moment_text, moment_value, stored_key

MARK = "\N{SYMBOL FOR SPACE}"
KEYS = st.text(st.sampled_from(["a", "b", " ", MARK, "\t", "\N{IDEOGRAPHIC SPACE}", "😀"]), min_size=1, max_size=6)


def compared(stored):
    """What SQL Server compares: the text without the blanks at its end."""
    return stored.rstrip(" ")


@given(KEYS, KEYS)
def test_different_keys_stay_different_without_trailing_blanks(one, other):
    assert (compared(stored_key(one)) == compared(stored_key(other))) == (one == other)


@given(KEYS)
def test_a_key_comes_back(key):
    assert key_of(stored_key(key)) == key


def test_ordinary_keys_are_stored_as_they_are():
    assert stored_key("order-1") == "order-1"
    assert stored_key("order-1 ") == "order-1 " + MARK


def test_the_longest_keys_fit_their_columns():
    for characters, units in ((128, 257), (256, 513)):
        longest = "😀" * (characters - 1) + " "
        assert len(stored_key(longest).encode("utf-16-le")) // 2 <= units
        assert len(stored_key("😀" * characters).encode("utf-16-le")) // 2 <= units


START = datetime(2026, 1, 1, tzinfo=UTC)
YEARS = timedelta(days=730_000)


@given(st.timedeltas(-YEARS, YEARS), st.integers(-14 * 60, 14 * 60))
def test_a_moment_comes_back_from_any_zone(since, minutes):
    moment = START + since
    for zone in (UTC, timezone(timedelta(0)), timezone(timedelta(minutes=minutes))):
        text = moment_text(moment.astimezone(zone))
        assert len(text) == 26
        assert moment_value(text) == microseconds(moment)

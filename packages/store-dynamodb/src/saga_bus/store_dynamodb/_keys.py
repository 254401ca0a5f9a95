"""Keys: how a saga is found in the table, and how it is placed in the indexes."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import blake2b

from saga_bus.store.checks import microseconds

__all__ = [
    "NAMES_SLOT",
    "SLOTS",
    "correlation_key",
    "edge",
    "micros_of",
    "moment_text",
    "name_key",
    "slot_of",
    "slots_of",
    "sort_text",
    "split_state_key",
    "state_key",
]

# An index takes 1,000 write units a second for each value of its partition key, and an update needs two of them,
# so the sagas of one name are spread over several. A reader has to ask all of them.
SLOTS = 8
NAMES_SLOT = "names"  # no other one: theirs begin with a digit

_MOMENT_CHARS = 26  # 2025-01-01T00:00:00.000000, always in UTC
_BEFORE_ALL, _AFTER_ALL = "0000", "9999-99"


def state_key(saga_name: str, saga_id: str) -> str:
    """The partition key of a state item; the length keeps apart what would be the same text when joined.

    Args:
        saga_name: The saga's name.
        saga_id: The saga's id.
    """
    return f"S#{len(saga_name)}#{saga_name}#{saga_id}"


def correlation_key(saga_name: str, correlation_id: str) -> str:
    """The partition key of a correlation item.

    Args:
        saga_name: The saga's name.
        correlation_id: The saga's correlation id.
    """
    return f"C#{len(saga_name)}#{saga_name}#{correlation_id}"


def name_key(saga_name: str) -> str:
    """The partition key of the item that says that there are sagas of a name.

    Args:
        saga_name: The name.
    """
    return f"N#{saga_name}"


def split_state_key(key: str) -> tuple[str, str]:
    """The saga's name and id in the partition key of a state item.

    Args:
        key: What `state_key` made.
    """
    _, length, rest = key.split("#", 2)
    end = int(length)
    return rest[:end], rest[end + 1 :]


def slot_of(saga_name: str, saga_id: str) -> str:
    """The partition of the indexes that a saga is in.

    Args:
        saga_name: The saga's name.
        saga_id: The saga's id.
    """
    return f"{blake2b(saga_id.encode(), digest_size=1).digest()[0] % SLOTS}#{saga_name}"


def slots_of(saga_name: str) -> list[str]:
    """All partitions of the indexes that the sagas of a name can be in.

    Args:
        saga_name: The name.
    """
    return [f"{number}#{saga_name}" for number in range(SLOTS)]


def moment_text(moment: datetime) -> str:
    """A moment as a text that sorts as moments do.

    Args:
        moment: Aware, in UTC.
    """
    return moment.isoformat(timespec="microseconds")[:_MOMENT_CHARS]


def sort_text(moment: datetime, saga_id: str) -> str:
    """The sort key of an index entry.

    Args:
        moment: What the index is sorted by; aware, in UTC.
        saga_id: The saga's id.
    """
    return f"{moment_text(moment)}#{saga_id}"


def micros_of(sort: str) -> int:
    """The moment in a sort key, in microseconds since 1970 (UTC).

    Args:
        sort: What `sort_text` made.
    """
    return microseconds(datetime.fromisoformat(sort[:_MOMENT_CHARS]).replace(tzinfo=UTC))


def edge(moment: datetime) -> str:
    """What sorts before every entry of a moment, and after every entry of an earlier one.

    Args:
        moment: Aware, in any time zone, so perhaps beyond the years 1 to 9999 in UTC.
    """
    try:
        return moment_text(moment.astimezone(UTC))
    except OverflowError:
        return _BEFORE_ALL if moment.year == 1 else _AFTER_ALL

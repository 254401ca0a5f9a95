"""Key names, and what the keys hold: unambiguous whatever bytes the names and ids are made of.

With the prefix ``saga_instances`` the saga type ``OrderSaga`` has these keys, all in one hash slot of a Cluster:

- ``saga_instances:{OrderSaga}:s:<saga id>``: a saga, its record (seven fields, each ended by NUL) and its document;
- ``saga_instances:{OrderSaga}:c:<correlation id>``: the saga's id;
- ``saga_instances:{OrderSaga}:i``: the index, one sorted set whose scores are all 0, so that its members are in the
  order of their bytes: a letter, a moment of 18 digits, and a saga id.

``saga_instances:schema`` is a hash with the version of this layout and the names of the saga types.
"""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from msgspec import Struct

from saga_bus.store import InvalidSagaError, SagaRow
from saga_bus.store.checks import microseconds

__all__ = [
    "LAYOUT",
    "MARK",
    "Fields",
    "Keys",
    "Record",
    "check_prefix",
    "fields_of",
    "keys_of",
    "moment_of_text",
    "names_of_fields",
    "parse_record",
    "schema_key",
    "text_of_microseconds",
    "text_of_moment",
    "type_field",
]

LAYOUT = 1  # the version of what this module says
MARK = b"v%d" % LAYOUT  # in the index of each type: inserts look for it

_PREFIX = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")
_YEAR_1 = 62_135_596_800_000_000  # microseconds from year 1 to 1970, so that every moment is a number of 18 digits
_TYPE = b"type:"


class Keys(NamedTuple):
    """The keys of one saga type.

    Args:
        index_key: The key of its sorted set.
        states: What the keys of its sagas begin with.
        pointers: What the keys of its correlation ids begin with.
    """

    index_key: bytes
    states: bytes
    pointers: bytes


class Fields(Struct, frozen=True, gc=False):
    """The fields of a record that a write brings, as texts; the server adds the others."""

    version: str
    created_at: str
    updated_at: str
    due_at: str
    flags: str

    def head(self) -> str:
        """What a record begins with, before the correlation id, where the saga does not expire."""
        return f"{self.version}\0{self.created_at}\0{self.updated_at}\0{self.due_at}\0\0{self.flags}\0"

    def pattern(self, version: str) -> str:
        """A pattern of Lua's that a record matches from which only version, updated_at and document are to change.

        It catches updated_at, and the correlation id with its NUL. Digits and letters stand for themselves.

        Args:
            version: The version that the record must have.
        """
        return f"^{version}%z{self.created_at}%z(%d*)%z{self.due_at}%z%z{self.flags}%z([^%z]*%z)"

    @property
    def is_plain(self) -> bool:
        """Whether the saga runs, and no messages wait."""
        return self.flags in ("", "A")


class Record(Struct, frozen=True, gc=False):
    """What the key of a saga holds.

    Args:
        version: The version.
        created_at: Its 18 digits.
        updated_at: Its 18 digits.
        due_at: The 18 digits of its timeout, or nothing.
        expiry: When it expires, in milliseconds since 1970 (15 digits), or nothing.
        flags: Of ``C`` (completed), ``A`` (archived) and ``O`` (messages wait in the outbox) those that hold.
        correlation_id: The correlation id, in UTF-8.
        document: The encoded state.
    """

    version: bytes
    created_at: bytes
    updated_at: bytes
    due_at: bytes
    expiry: bytes
    flags: bytes
    correlation_id: bytes
    document: bytes


def check_prefix(prefix: str) -> str:
    """Refuse a prefix that would make keys ambiguous or hard to name in an access rule.

    Args:
        prefix: 1 to 64 of the ASCII letters, the digits and ``_ . : / -``.

    Returns:
        The same prefix.

    Raises:
        InvalidSagaError: It is another one.
    """
    if not isinstance(prefix, str) or _PREFIX.fullmatch(prefix) is None:
        raise InvalidSagaError(f"the prefix must be 1 to 64 of the characters A-Z a-z 0-9 _ . : / -, not {prefix!r}")
    return prefix


@lru_cache(maxsize=1024)
def keys_of(prefix: str, saga_name: str) -> Keys:
    """The keys of a saga type.

    The saga's name is the hash tag, with the three characters escaped that would end it or begin another one.

    Args:
        prefix: A checked prefix.
        saga_name: The saga's name.
    """
    tag = saga_name.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    base = f"{prefix}:{{{tag}}}:".encode()
    return Keys(base + b"i", base + b"s:", base + b"c:")


def schema_key(prefix: str) -> bytes:
    """The key of the layout's version and the names of the saga types.

    Args:
        prefix: A checked prefix.
    """
    return f"{prefix}:schema".encode()


def type_field(saga_name: str) -> bytes:
    """The field of a saga type in the hash of ``schema_key``.

    Args:
        saga_name: The saga's name.
    """
    return _TYPE + saga_name.encode()


def names_of_fields(fields: list[bytes]) -> list[str]:
    """The saga types that the fields of ``schema_key`` name.

    Args:
        fields: All fields.
    """
    return sorted(field[len(_TYPE) :].decode() for field in fields if field.startswith(_TYPE))


def text_of_moment(moment: datetime) -> str:
    """A moment as 18 digits, which sort as moments do.

    Args:
        moment: An aware datetime.
    """
    return text_of_microseconds(microseconds(moment))


def text_of_microseconds(moment: int) -> str:
    """A moment as 18 digits.

    Args:
        moment: Microseconds since 1970.
    """
    return f"{moment + _YEAR_1:018d}"


def moment_of_text(text: bytes) -> int:
    """The microseconds since 1970 that 18 digits mean.

    Args:
        text: 18 digits.
    """
    return int(text) - _YEAR_1


def fields_of(row: SagaRow) -> Fields:
    """The fields of a record that a write brings.

    Args:
        row: The row.
    """
    due = row.timeout_expires_at
    return Fields(
        str(row.version),
        text_of_moment(row.created_at),
        text_of_moment(row.updated_at),
        "" if due is None else text_of_moment(due),
        ("C" if row.is_completed else "") + ("A" if row.archived_at else "") + ("O" if row.outbox_pending else ""),
    )


def parse_record(value: bytes) -> Record:
    """Read what the key of a saga holds.

    Args:
        value: The value; no field before the document can hold a NUL.
    """
    return Record(*value.split(b"\0", 7))

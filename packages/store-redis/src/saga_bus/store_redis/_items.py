"""What is asked of the server: the items of groups, and which of them go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from saga_bus.store_redis._keys import Keys

__all__ = ["Candidate", "Read", "Write", "key_of", "parts_of"]

_BYTES = 4 * 1024 * 1024  # one script runs at a time: a larger one would hold up everybody


class Candidate(NamedTuple):
    """A completed saga that may be purged.

    Args:
        saga_id: Its id.
        correlation_id: Its correlation id.
        updated_at: The 18 digits of its last update.
    """

    saga_id: bytes
    correlation_id: bytes
    updated_at: bytes


class Read(Struct, frozen=True, gc=False):
    """A saga to be read, by its id or by its correlation id."""

    keys: Keys
    kind: bytes  # s for a saga, c for a correlation id
    value: bytes

    @property
    def size(self) -> int:
        """The bytes that it sends, roughly."""
        return 0

    def key(self) -> bytes:
        """The key that is read."""
        return (self.keys.states if self.kind == b"s" else self.keys.pointers) + self.value


class Write(Struct, frozen=True, gc=False):
    """A saga to be written or deleted.

    Args:
        keys: The keys of its type.
        operation: insert, update, delete or purge.
        saga_id: Its id.
        expected: The version that must be there, or nothing.
        usual: What makes the write a usual one, which the script does first: of an update a pattern of the record
            that is there, of an insert created_at; else nothing.
        updated_at: The 18 digits of its last update: the new one, and of a purge that which must be there.
        head: What its new record begins with, before the correlation id.
        correlation_id: Its correlation id where it is known, so that its key can be named.
        document: The encoded state.
    """

    keys: Keys
    operation: str
    saga_id: str
    expected: str = ""
    usual: str = ""
    updated_at: str = ""
    head: str = ""
    correlation_id: str | None = None
    document: bytes = b""

    @property
    def size(self) -> int:
        """The bytes that it sends, roughly."""
        return len(self.document)


def key_of(item: Write) -> tuple[bytes, str]:
    """What no two writes of a group may share, and what a group is sorted by."""
    return item.keys.index_key, item.saga_id


def parts_of(items: Sequence[Read] | Sequence[Write] | Sequence[Any], *, apart: bool) -> Iterator[list[int]]:
    """The places of the items that go together: not more than a server should do at once, and in one hash slot."""
    open_parts: dict[bytes, tuple[list[int], int]] = {}
    for place, item in enumerate(items):
        tag = item.keys.index_key if apart else b""
        places, size = open_parts.get(tag, ([], 0))
        if places and size + item.size > _BYTES:
            yield places
            places, size = [], 0
        places.append(place)
        open_parts[tag] = places, size + item.size
    for places, _ in open_parts.values():
        yield places

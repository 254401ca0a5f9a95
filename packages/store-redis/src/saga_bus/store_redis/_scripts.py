"""The scripts, each made of files of ``lua/`` and sent whole to a server that does not know its digest yet."""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files

import msgspec

__all__ = ["COUNT", "DROP", "FIND", "HEAL", "READ", "REGISTER", "WRITE", "Script", "unpacked"]

_values_in = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_NOTHING = b"\xc2"  # false
_HEADERS = {0xD9: 2, 0xDA: 3, 0xDB: 5}  # the bytes before longer texts; those up to 31 bytes have one before them


class Script:
    """A script of this package.

    Args:
        *parts: The names of its files.
    """

    def __init__(self, *parts: str) -> None:
        folder = files("saga_bus.store_redis").joinpath("lua")
        self.source = b"\n".join(folder.joinpath(f"{part}.lua").read_bytes() for part in parts)
        self.digest = sha1(self.source, usedforsecurity=False).hexdigest().encode()

    def by_digest(self, keys: list[bytes], *arguments: bytes) -> list[bytes]:
        """The command that runs the script where the server knows it.

        Args:
            keys: The keys.
            *arguments: The other arguments.
        """
        return [b"EVALSHA", self.digest, b"%d" % len(keys), *keys, *arguments]

    def whole(self, command: list[bytes]) -> list[bytes]:
        """The same command with the script's text, after which the server knows it.

        Args:
            command: What ``by_digest`` made.
        """
        return [b"EVAL", self.source, *command[2:]]


def unpacked(packed: bytes) -> list[bytes | None]:
    """The texts that a script packed, whatever bytes they are of; None where it packed ``false``.

    Args:
        packed: What it returned.
    """
    values = map(bytes, _values_in(packed))
    return [None if value == _NOTHING else value[_HEADERS.get(value[0], 1) :] for value in values]


WRITE = Script("usual", "library", "write")
READ = Script("read")
FIND = Script("library", "find")
COUNT = Script("library", "count")
HEAL = Script("library", "heal")
REGISTER = Script("register")
DROP = Script("library", "drop")

"""The layout of the keys: its version, and which saga types there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from saga_bus.store import SchemaError
from saga_bus.store_redis._errors import error_of_reply
from saga_bus.store_redis._keys import (
    LAYOUT,
    MARK,
    Keys,
    check_prefix,
    keys_of,
    names_of_fields,
    schema_key,
    type_field,
)
from saga_bus.store_redis._routes import Route, run_script
from saga_bus.store_redis._scripts import DROP, REGISTER
from saga_bus.store_redis._servers import Command

__all__ = ["check", "create", "drop", "get_key_layout", "register", "types"]

_VERSION = b"%d" % LAYOUT


def get_key_layout(*, prefix: str = "saga_instances", saga_name: str | None = None) -> dict[str, str]:
    """The keys that a store uses and what they hold, for access rules and for people who look into a server.

    Args:
        prefix: The prefix of the store.
        saga_name: The name of a saga type; None for a pattern of all.

    Returns:
        A pattern of keys (``*`` stands for any text) and its meaning, in the order of the importance.

    Raises:
        InvalidSagaError: A bad prefix.
    """
    check_prefix(prefix)
    base = f"{prefix}:{{*}}:" if saga_name is None else keys_of(prefix, saga_name).index_key[:-1].decode()
    return {
        f"{base}s:*": "string: a saga by its id; seven fields, each ended by NUL, and the document",
        f"{base}c:*": "string: the id of the saga with this correlation id",
        f"{base}i": "sorted set: the index of find, count and purge",
        f"{prefix}:schema": f"hash: the layout's version ({LAYOUT}) and the names of the saga types",
    }


async def create(route: Route, prefix: str) -> None:
    """Note the layout's version; nothing to do is no error.

    Args:
        route: Where the keys are.
        prefix: The prefix.

    Raises:
        SchemaError: There is another version.
    """
    await _ask(route, schema_key(prefix), b"HSETNX", b"layout", _VERSION)
    await check(route, prefix)


async def check(route: Route, prefix: str) -> None:
    """Refuse a layout that is missing, or of another version.

    Args:
        route: Where the keys are.
        prefix: The prefix.

    Raises:
        SchemaError: It is; the message says what to do.
    """
    _refuse_other(prefix, await _ask(route, schema_key(prefix), b"HGET", b"layout"))


async def types(route: Route, prefix: str) -> list[tuple[str, Keys]]:
    """The saga types that there are, and their keys.

    Args:
        route: Where the keys are.
        prefix: The prefix.

    Raises:
        SchemaError: The layout is missing.
    """
    fields = await _ask(route, schema_key(prefix), b"HKEYS")
    if b"layout" not in fields:
        _refuse_other(prefix, None)
    return [(name, keys_of(prefix, name)) for name in names_of_fields(fields)]


async def register(route: Route, prefix: str, saga_name: str) -> None:
    """Note a saga type, so that a search over all types finds it.

    Args:
        route: Where the keys are.
        prefix: The prefix.
        saga_name: The type's name.

    Raises:
        SchemaError: The layout is missing, or of another version.
    """
    index = keys_of(prefix, saga_name).index_key
    (found,) = await run_script(route, REGISTER, [schema_key(prefix)], _VERSION, type_field(saga_name))
    _refuse_other(prefix, found or None)
    await _ask(route, index, b"ZADD", b"0", MARK)
    # Who dropped the layout meanwhile has perhaps not seen the mark.
    if not await _ask(route, schema_key(prefix), b"HEXISTS", type_field(saga_name)):
        await _ask(route, index, b"ZREM", MARK)
        _refuse_other(prefix, None)


async def drop(route: Route, prefix: str) -> None:
    """Delete every key of the prefix; nothing to delete is no error.

    Args:
        route: Where the keys are.
        prefix: The prefix.
    """
    try:
        there = await types(route, prefix)
    except SchemaError:
        there = []
    await _ask(route, schema_key(prefix), b"DEL")  # nobody can register a type any more
    for _, keys in there:
        await _ask(route, keys.index_key, b"ZREM", MARK)  # nor insert a saga
    for _, keys in there:
        while (await run_script(route, DROP, [keys.index_key]))[0]:
            pass


async def _ask(route: Route, key: bytes, command: bytes, *arguments: bytes) -> Any:
    commands: Sequence[Command] = [[command, key, *arguments]]
    (reply,) = await route.ask(key, commands, writing=True)
    if isinstance(reply, ResponseError):
        raise error_of_reply(reply) from reply
    return reply


def _refuse_other(prefix: str, found: bytes | None) -> None:
    if found is None:
        raise SchemaError(f"there are no sagas under the prefix {prefix!r}: run create_schema()")
    if found == _VERSION:
        return
    if found.isdigit() and int(found) > LAYOUT:
        raise SchemaError(
            f"the keys of {prefix!r} have layout {int(found)}, newer than this package's {LAYOUT}: "
            "upgrade saga-bus-store-redis"
        )
    raise SchemaError(f"the key {prefix}:schema was not made by create_schema(): choose another prefix")

"""What about a server puts saga state at risk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from saga_bus.store_redis._errors import error_of_reply
from saga_bus.store_redis._routes import Route
from saga_bus.store_redis._servers import Server

__all__ = ["warnings_about"]

_OLDEST = (6, 2)
_SETTINGS = (b"maxmemory-policy", b"appendonly", b"appendfsync", b"min-replicas-to-write")


async def warnings_about(route: Route, replicas: int) -> list[str]:
    """Ask every server that takes writes for its settings.

    Args:
        route: The servers.
        replicas: How many replicas the store waits for.

    Returns:
        A sentence for each setting that puts saga state at risk, once.

    Raises:
        StoreUnavailableError: One of them did not answer.
    """
    warnings: dict[str, None] = {}
    for server in await route.servers():
        warnings.update(dict.fromkeys(await _warnings_of(server, replicas)))
    return list(warnings)


async def _warnings_of(server: Server, replicas: int) -> list[str]:
    questions = [[b"PING"], [b"INFO"], *([b"CONFIG", b"GET", setting] for setting in _SETTINGS)]
    pong, info, *answers = await server.ask(questions)
    if isinstance(pong, ResponseError):
        raise error_of_reply(pong) from pong
    facts = {} if isinstance(info, ResponseError) else _facts(info)
    settings = [_setting(answer) for answer in answers]
    warnings = [] if facts else ["the user may not run INFO: the server's state is not known"]
    if None in settings:
        warnings.append("the server does not show its settings (CONFIG GET): whether it keeps sagas is not known")
    policy, appends, syncs, least = settings
    if policy not in (None, "noeviction"):
        warnings.append(f"maxmemory-policy is {policy}: the server may throw sagas away; set it to noeviction")
    if appends == "no":
        warnings.append("appendonly is no: a crash of the server loses everything since its last snapshot")
    elif syncs in ("everysec", "no"):
        warnings.append(f"appendfsync is {syncs}: a crash of the server loses the last acknowledged writes")
    return warnings + _about_replicas(facts, replicas, least) + _about_version(facts)


def _about_replicas(facts: dict[str, str], replicas: int, least: str | None) -> list[str]:
    if facts.get("role") == "slave":
        return ["the server is a replica: it takes no writes, and reads may be behind the primary"]
    connected = int(facts.get("connected_slaves", "0"))
    warnings = []
    if connected and least == "0":
        warnings.append(
            "min-replicas-to-write is 0: a primary that is cut off from its replicas acknowledges writes that a "
            "failover loses"
        )
    if facts and connected < replicas:
        warnings.append(f"wait_replicas is {replicas}, and the server has {connected}: no write can be acknowledged")
    return warnings


def _about_version(facts: dict[str, str]) -> list[str]:
    text = facts.get("redis_version", "")
    version = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if version and version < _OLDEST:
        return [f"Redis {text} is older than 6.2, the oldest one that has what the store needs"]
    return []


def _facts(info: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _setting(answer: Any) -> str | None:
    pairs: Sequence[Any] = () if isinstance(answer, ResponseError) else answer
    if isinstance(answer, dict):  # in RESP3
        pairs = [part for pair in answer.items() for part in pair]
    return pairs[1].decode() if len(pairs) == 2 else None

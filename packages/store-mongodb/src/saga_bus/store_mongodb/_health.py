"""What about a client or its server puts saga state at risk."""

from __future__ import annotations

from pymongo import ReadPreference

from saga_bus.store_mongodb._collections import Collections

__all__ = ["warnings_about"]

_SAFE_READS = ("majority", "linearizable", "snapshot")


async def warnings_about(collections: Collections) -> list[str]:
    """Ask the server who it is, and look at what the client was told.

    Args:
        collections: The collection.

    Returns:
        A sentence for each setting that puts saga state at risk.
    """
    with collections.calls(writing=False):
        hello = await collections.database.command("hello")
    return [*_of_client(collections), *_of_server(hello)]


def _of_client(collections: Collections) -> list[str]:
    warnings = []
    concern = collections.sagas.write_concern.document
    if concern.get("w") != "majority":
        w = concern.get("w")
        warnings.append(
            f"the client's write concern is w={w!r}, not 'majority': a failover can lose acknowledged writes"
        )
    if concern.get("j") is False:
        warnings.append("the client writes with j=False, not journaled: a crash can lose acknowledged writes")
    level = collections.sagas.read_concern.level
    if level not in _SAFE_READS:
        warnings.append(f"the client reads with {level!r}, not 'majority': what was read can be rolled back")
    if collections.sagas.read_preference != ReadPreference.PRIMARY:
        warnings.append("the client does not read from the primary: reads can be behind the last writes")
    if not collections.database.client.options.retry_writes:
        warnings.append("retryWrites is off: each lost connection leaves the outcome of a write unknown")
    return warnings


def _of_server(hello: dict[str, object]) -> list[str]:
    if "setName" in hello or hello.get("msg") == "isdbgrid":
        return []
    return ["the server is neither a replica set nor a sharded cluster: no transactions, and writes are not retried"]

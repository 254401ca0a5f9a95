"""What the tests of the Redis store share, in its package and here."""

from __future__ import annotations

from typing import Any

from saga_bus.store import SagaMetadata, SagaState
from saga_bus.store_redis import RedisSagaStore

__all__ = ["NAME", "following", "key", "members", "state", "store_on"]

NAME = "OrderSaga"


def store_on(url: str, prefix: str, **options: Any) -> RedisSagaStore[Any]:
    """A store that knows the type of ``NAME``."""
    return RedisSagaStore(url, prefix=prefix, state_types={NAME: SagaState}, **options)


def state(saga_id: str, version: int = 0) -> SagaState:
    """A running saga at a version."""
    metadata = SagaMetadata.fresh(saga_id)
    for _ in range(version):
        metadata = metadata.next()
    return SagaState(metadata=metadata)


def following(saga: SagaState, **changes: Any) -> SagaState:
    """The next version of a saga."""
    return SagaState(metadata=saga.metadata.next(**changes))


def key(prefix: str, suffix: str) -> str:
    """A key of the sagas ``NAME``."""
    return f"{prefix}:{{{NAME}}}:{suffix}"


def members(client: Any, prefix: str) -> list[tuple[str, str]]:
    """The members of the index, without the mark, each as its letter and its saga id."""
    found = client.zrange(key(prefix, "i"), 0, -1)
    return sorted(
        (member[:1].decode(), member[52 if member[:1] == b"x" else 19 :].decode())
        for member in found
        if member[:1] != b"v"
    )

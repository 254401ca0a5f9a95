"""How the kit opens the Redis store."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from saga_bus.store.conformance import Hooks
from saga_bus.store_redis import RedisSagaStore

__all__ = ["RedisTarget"]


@dataclass
class RedisTarget:
    """A place is a prefix; completed sagas expire soon, so that the kit sees it."""

    url: str

    def open_store(self, namespace: str) -> RedisSagaStore[Any]:
        return RedisSagaStore(self.url, prefix=namespace, completed_ttl=timedelta(seconds=2))

    def hooks(self) -> Hooks:
        return Hooks(open_store=self.open_store)

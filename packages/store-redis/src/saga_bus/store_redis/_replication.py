"""How many replicas must have a write before it counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from saga_bus.store import OutcomeUnknownError
from saga_bus.store_redis._servers import Command

__all__ = ["Replication"]


@dataclass(frozen=True)
class Replication:
    """How many replicas must have a write before it is acknowledged.

    Args:
        replicas: How many; 0 asks none.
        timeout: How long to wait for them, in seconds.
    """

    replicas: int
    timeout: float

    def commands(self) -> list[Command]:
        """What to send behind a write."""
        if not self.replicas:
            return []
        return [[b"WAIT", b"%d" % self.replicas, b"%d" % math.ceil(self.timeout * 1000)]]  # 0 would be for ever

    def shortage(self, replies: Sequence[Any]) -> OutcomeUnknownError | None:
        """What is wrong where too few replicas have the write.

        Args:
            replies: The replies to `commands`.
        """
        if not replies or (isinstance(replies[0], int) and replies[0] >= self.replicas):
            return None
        found = f"{replies[0]} of {self.replicas} replicas had it in time"
        if not isinstance(replies[0], int):
            found = f"the server refused to wait for replicas ({replies[0]})"
        return OutcomeUnknownError(f"the write was applied, but {found}: a failover may lose it")

"""A saga store in this process's memory, for tests and single-process tools; nothing survives the process."""

from saga_bus.store_inmemory._store import InMemorySagaStore

__all__ = ["InMemorySagaStore"]

"""How the kit opens the Prisma store."""

from __future__ import annotations

from typing import Any

from prisma_places import MODELS, PrismaPlaces, imported
from providers.prisma import PrismaEngine, generated_client, shared_schema
from saga_bus.store.conformance import Hooks
from saga_bus.store_prisma import get_schema_prisma

__all__ = ["PrismaTarget", "kit_schema"]

_BUSINESS_ROW = """
model BusinessRow {
  name String @id

  @@map("business_rows")
}
"""


def kit_schema(provider: Any) -> str:
    """A schema with some models of sagas, and one of business rows.

    Args:
        provider: "sqlite" or "postgresql".
    """
    models = [
        get_schema_prisma(provider=provider, model=f"Saga{number}", table=f"Saga {number} é")
        for number in range(MODELS)
    ]
    return shared_schema(provider, "\n".join(models) + _BUSINESS_ROW)


class PrismaTarget(PrismaPlaces):
    """The places on a database of a URL, with an engine of its own that ends with this process."""

    def __init__(self, url: str) -> None:
        folder = generated_client(kit_schema("postgresql" if url.startswith("postgres") else "sqlite"))
        self._engine = PrismaEngine(imported(folder), url)
        super().__init__(folder, self._engine.url)

    def hooks(self) -> Hooks:
        return PrismaPlaces(self.folder, self.engine_url).hooks()

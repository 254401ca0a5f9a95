"""The whole kit on SQLite and on PostgreSQL, each with a client that ``prisma generate`` made."""

from __future__ import annotations

import pytest

from prisma_places import PrismaPlaces, imported
from providers.prisma import PrismaEngine, generated_client
from run_conformance.prisma import kit_schema
from saga_bus.store.conformance import SagaStoreConformance
from saga_bus.store.conformance.cases import stateful


class OnPlaces(SagaStoreConformance):
    """A subclass sets ``places``."""

    places: PrismaPlaces

    @pytest.fixture(autouse=True)
    def fewer_random_scripts(self, monkeypatch):
        """A call crosses processes, and 50 scripts take a minute; `hatch run conformance prisma` runs them all."""
        monkeypatch.setattr(stateful, "EXAMPLES", 15)

    def hooks(self):
        return self.places.hooks()

    @staticmethod
    def places_on(provider, url):
        folder = generated_client(kit_schema(provider))
        engine = PrismaEngine(imported(folder), url)
        return engine, PrismaPlaces(folder, engine.url)


class TestSqlite(OnPlaces):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def on_engine(cls, databases):
        engine, cls.places = cls.places_on("sqlite", databases.url("prisma"))
        yield
        engine.stop()


class TestPostgresql(OnPlaces):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def on_engine(cls, databases):
        databases.url("prisma")  # the engine, or the reason why there is none
        engine, cls.places = cls.places_on("postgresql", databases.url("postgres"))
        yield
        engine.stop()

"""SAGA_TEST_REQUIRE: what it names must be there, and nothing that it says is ignored."""

import asyncio
import os
import subprocess
import sys

import pytest

import providers
from brokers import BROKERS
from providers import (
    BROKER_NAMES,
    EQUIPMENT_NAMES,
    PROVIDERS,
    UnavailableError,
    UnknownBackendError,
    required_backends,
    serve,
)
from providers.plugin import Databases
from saga_bus.store import open_store

NO_STORE_URL = {"prisma"}  # its provider's URL is for the engine of a generated client; the store's own tests use it


@pytest.mark.parametrize("backend", sorted(set(PROVIDERS) - NO_STORE_URL))
def test_a_backend_answers_or_is_skipped_with_the_reason(backend, databases):
    url = databases.url(backend)

    async def use():
        async with open_store(url) as store:
            if store.capabilities.schema:
                await store.create_schema()
            assert (await store.ping()).seconds > 0
            assert await store.get_by_id("ProviderSaga", "1") is None
            if store.capabilities.schema:
                await store.drop_schema()

    asyncio.run(use())


def test_names_are_split_and_all_means_every_backend():
    assert required_backends({}) == frozenset()
    assert required_backends({"SAGA_TEST_REQUIRE": " sqlite, inmemory,"}) == {"sqlite", "inmemory"}
    assert required_backends({"SAGA_TEST_REQUIRE": "nats"}) == {"nats"}
    assert required_backends({"SAGA_TEST_REQUIRE": "odbc"}) == {"odbc"}
    assert required_backends({"SAGA_TEST_REQUIRE": "sqlserver"}) == {"sqlserver", "odbc"}
    assert required_backends({"SAGA_TEST_REQUIRE": "all"}) == set(PROVIDERS) | set(BROKERS) | EQUIPMENT_NAMES
    assert set(BROKERS) == BROKER_NAMES


def test_an_unknown_name_is_refused():
    with pytest.raises(UnknownBackendError, match="unknown backend 'sqlight'"):
        required_backends({"SAGA_TEST_REQUIRE": "inmemory,sqlight"})
    with pytest.raises(UnknownBackendError), serve("sqlight"):
        pass


def test_an_unknown_name_stops_pytest():
    environment = {**os.environ, "SAGA_TEST_REQUIRE": "sqlight"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", __file__],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "SAGA_TEST_REQUIRE: unknown backend 'sqlight'" in done.stderr


def test_a_running_server_goes_before_a_private_one():
    with serve("sqlite", {"SAGA_TEST_SQLITE_URL": "sqlite:///there.db"}) as url:
        assert url == "sqlite:///there.db"


def test_a_missing_backend_is_skipped_unless_it_is_required(monkeypatch):
    def none_here():
        raise UnavailableError("no server here")

    monkeypatch.setattr(providers, "PROVIDERS", {"absent": none_here})
    monkeypatch.delenv("SAGA_TEST_REQUIRE", raising=False)
    with pytest.raises(pytest.skip.Exception, match="absent: no server here"):
        Databases().url("absent")
    monkeypatch.setenv("SAGA_TEST_REQUIRE", "absent")
    with pytest.raises(pytest.fail.Exception, match="SAGA_TEST_REQUIRE names absent: no server here"):
        Databases().url("absent")

"""What ``ping`` warns of, on servers that are so."""

from __future__ import annotations

import asyncio
import uuid

import asyncpg
import pytest

from postgres_helpers import SAGA, OrderState, connected, store_on
from providers import UnavailableError
from providers.postgres import PrivatePostgres
from providers.skipping import skip_unless_required
from saga_bus.store import DuplicateSagaError, SagaStoreError
from saga_bus.store_postgres import PostgresSagaStore
from saga_bus.store_postgres import _health as health
from saga_bus.store_postgres._errors import sqlstate_of


async def warnings_on(url):
    async with PostgresSagaStore(url) as store:
        return (await store.ping()).warnings


def test_settings_that_lose_data(server):
    risky = {"synchronous_commit": "off", "default_transaction_read_only": "on"}

    async def run():
        async with (
            asyncpg.create_pool(server.url, min_size=0, server_settings=risky) as pool,
            PostgresSagaStore(pool=pool) as store,
        ):
            warnings = (await store.ping()).warnings
        return warnings, await warnings_on(server.url)

    risky_warnings, server_warnings = asyncio.run(run())
    assert [warning.split()[0] for warning in risky_warnings] == [
        "synchronous_commit",
        "fsync",
        "full_page_writes",
        "transactions",
    ]
    assert [warning.split()[0] for warning in server_warnings] == ["fsync", "full_page_writes"]


def test_a_standby():
    try:
        private = PrivatePostgres()
    except UnavailableError as error:
        skip_unless_required("postgres", str(error))

    async def as_primary():
        async with PostgresSagaStore(private.url) as store:
            await store.create_schema()
            await store.insert(SAGA, "order-1", OrderState())
            assert (await store.ping()).warnings == ()

    async def as_standby():
        async with PostgresSagaStore(private.url) as store:
            (warning,) = (await store.ping()).warnings
            assert warning.startswith("the server is a standby")
            assert await store.get_by_correlation_id(SAGA, "order-1") is not None
            with pytest.raises(SagaStoreError, match="takes no writes") as caught:
                await store.insert(SAGA, "order-2", OrderState())
            assert sqlstate_of(caught.value) == "25006"

    try:
        private.start()
        asyncio.run(as_primary())
        private.stop()
        (private.hba_file.parent / "standby.signal").touch()
        private.start()
        asyncio.run(as_standby())
    finally:
        private.remove()


def test_another_encoding(server):
    database = f"latin_{uuid.uuid4().hex[:8]}"

    async def run():
        async with connected(server.url) as connection:
            await connection.execute(
                f"CREATE DATABASE {database} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"
            )
            try:
                return await warnings_on(server.url.rpartition("/")[0] + f"/{database}")
            finally:
                await connection.execute(f"DROP DATABASE {database}")

    assert "the database's encoding is LATIN1, not UTF8" in asyncio.run(run())[-1]


def test_a_server_that_is_too_old(url, monkeypatch):
    monkeypatch.setattr(health, "_OLDEST", 990_000)
    (warning,) = asyncio.run(warnings_on(url))
    assert "is older than 13" in warning


async def collation(connection, name, *, deterministic):
    """An ICU collation that takes upper and lower case for equal, where it may: if deterministic, bytes decide."""
    try:
        await connection.execute(
            f"CREATE COLLATION {name} (provider = icu, locale = 'und-u-ks-level2', deterministic = {deterministic})"
        )
    except asyncpg.FeatureNotSupportedError as error:
        pytest.skip(f"this server can have no nondeterministic collation: {error}")


@pytest.mark.parametrize("column", ["saga_name", "saga_id", "correlation_id"])
def test_keys_that_do_not_compare_exactly(url, column):
    async def run():
        async with store_on(url) as store, connected(url) as connection:
            name = f"c_{uuid.uuid4().hex[:8]}"
            await collation(connection, name, deterministic=False)
            assert (await store.ping()).warnings == ()
            await connection.execute(f"ALTER TABLE {store._quoted} ALTER {column} TYPE text COLLATE {name}")
            (warning,) = (await store.ping()).warnings
            assert warning.startswith(f"{column} has a nondeterministic collation")
            async with connection.transaction():
                assert (await store.bind(connection).ping()).warnings == (warning,)
            await connection.execute(f'ALTER TABLE {store._quoted} ALTER {column} TYPE text COLLATE "C"')
            await connection.execute(f"DROP COLLATION {name}")

    asyncio.run(run())


@pytest.mark.parametrize("deterministic", [True, False])
def test_why_it_warns_of_nondeterministic_collations_alone(url, deterministic):
    async def run():
        async with store_on(url) as store, connected(url) as connection:
            name = f"c_{uuid.uuid4().hex[:8]}"
            await collation(connection, name, deterministic=deterministic)
            await connection.execute(f"ALTER TABLE {store._quoted} ALTER correlation_id TYPE text COLLATE {name}")
            await store.insert(SAGA, "order-a", OrderState())
            exact = await store.get_by_correlation_id(SAGA, "ORDER-A") is None
            try:
                await store.insert(SAGA, "ORDER-A", OrderState())
            except DuplicateSagaError:
                exact = False
            warned = (await store.ping()).warnings != ()
            await store.drop_schema()
            await connection.execute(f"DROP COLLATION {name}")
            return exact, warned

    assert asyncio.run(run()) == (deterministic, not deterministic)

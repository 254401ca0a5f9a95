"""open_store: by the scheme of a URL, through entry points."""

from __future__ import annotations

import asyncio
import importlib.metadata
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from saga_bus.store import InvalidSagaError, SagaState, UnsupportedOperationError, open_store


class OrderState(SagaState, kw_only=True):
    paid: bool = False


class FakeStore:
    def __init__(self, url: str, **options: Any) -> None:
        self.url = url
        self.options = options


def only_backend(monkeypatch: pytest.MonkeyPatch, *schemes: str) -> None:
    entries = [EntryPoint(scheme, f"{__name__}:FakeStore", "saga_bus.stores") for scheme in schemes]
    monkeypatch.setattr(EntryPoint, "load", lambda self: FakeStore)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: entries)


def test_a_store_is_opened_by_its_url_and_gets_its_options() -> None:
    async def scenario() -> None:
        async with open_store("memory://", state_types={"Order": OrderState}) as store:
            await store.insert("Order", "c", OrderState(paid=True))
            state = await store.get_by_correlation_id("Order", "c")
            assert isinstance(state, OrderState)

    asyncio.run(scenario())


def test_the_scheme_is_case_insensitive_and_the_rest_of_the_url_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    only_backend(monkeypatch, "mongodb+srv")
    store = open_store("MongoDB+SRV://User:Pass@Host/Db?A=B", table="t")
    assert vars(store) == {"url": "mongodb+srv://User:Pass@Host/Db?A=B", "options": {"table": "t"}}


@pytest.mark.parametrize(
    ("url", "distribution"),
    [
        ("memory://", "saga-bus-store-inmemory"),
        ("sqlite:///x.db", "saga-bus-store-sqlite"),
        ("postgresql://h/d", "saga-bus-store-postgres"),
        ("postgres://h/d", "saga-bus-store-postgres"),
        ("mysql://h/d", "saga-bus-store-mysql"),
        ("mariadb://h/d", "saga-bus-store-mysql"),
        ("mssql://h/d", "saga-bus-store-sqlserver"),
        ("sqlserver://h/d", "saga-bus-store-sqlserver"),
        ("mongodb://h/d", "saga-bus-store-mongodb"),
        ("mongodb+srv://h/d", "saga-bus-store-mongodb"),
        ("dynamodb://t", "saga-bus-store-dynamodb"),
        ("redis://h/0", "saga-bus-store-redis"),
        ("rediss://h/0", "saga-bus-store-redis"),
        ("unix:///run/redis.sock", "saga-bus-store-redis"),
        ("prisma://", "saga-bus-store-prisma"),
    ],
)
def test_a_known_backend_that_is_not_installed_is_named(
    url: str, distribution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_backend(monkeypatch)
    with pytest.raises(UnsupportedOperationError, match=rf"pip install {distribution}$"):
        open_store(url)


@pytest.mark.parametrize(("installed", "listed"), [((), "none"), (("sqlite", "memory"), "memory, sqlite")])
def test_an_unknown_scheme_names_what_is_installed(
    installed: tuple[str, ...], listed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_backend(monkeypatch, *installed)
    with pytest.raises(UnsupportedOperationError, match=f"'oracle'.*installed are {listed}$"):
        open_store("oracle://h")


@pytest.mark.parametrize(
    "url", ["", "sagas.db", "://x", "memory:", "a b://x", "1st://x", "/tmp/x", None, 5, b"memory://"]
)
def test_what_is_no_url_is_refused(url: Any) -> None:
    with pytest.raises(InvalidSagaError, match="begins with a scheme"):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "oracle://user:s3cret@host/db",
        "postgresql://user:s3cret@host/db",
        "user:s3cret@host/db",
        "user:s3cret@host/db?next=http://x",
        "password=s3cret://x",
        "postgresql:user:s3cret@host",
    ],
)
def test_no_error_shows_a_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    only_backend(monkeypatch)
    with pytest.raises((InvalidSagaError, UnsupportedOperationError)) as caught:
        open_store(url)
    assert "s3cret" not in f"{caught.value!r}"

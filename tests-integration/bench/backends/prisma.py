"""The Prisma store, beside the raw client doing the same calls, each with an engine and an SQLite file of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from bench.backends.sqlite import _FILE as FILE
from bench.backends.sqlite import _TABLE as TABLE
from bench.backends.sqlite import BACKEND as SQLITE
from bench.subjects import StoreSubject, Subject, Target
from bench.workload import SAGA_NAME, OrderState
from prisma_places import imported
from providers.prisma import generated_client, shared_schema, use_engine
from saga_bus.store.checks import microseconds
from saga_bus.store_prisma import PrismaSagaStore, get_schema_prisma

__all__ = ["BACKEND"]

_HOUR = 3_600_000_000  # microseconds
_TOTALS = f"SELECT count(*), coalesce(sum(version), 0) FROM {TABLE}"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(OrderState).decode


def _client_on(path: Path) -> Any:
    schema = shared_schema("sqlite", get_schema_prisma(provider="sqlite", table=TABLE))
    package = imported(generated_client(schema))
    use_engine()
    return package.Prisma(use_dotenv=False, datasource={"url": f"file:{path}"})


def _data(state: OrderState) -> dict[str, Any]:
    metadata = state.metadata
    updated_at = microseconds(metadata.updated_at)
    return {
        "version": metadata.version,
        "is_completed": metadata.is_completed,
        "created_at": microseconds(metadata.created_at),
        "updated_at": updated_at,
        "updated_hour": updated_at // _HOUR,
        "archived_at": None,
        "timeout_expires_at": None,
        "outbox_pending": bool(metadata.outbox),
        "state": _encode(state).decode(),
    }


class _File:
    """What both share: the file, and the totals read from it through a connection of their own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def totals(self) -> tuple[int, int]:
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
            count, versions = connection.execute(_TOTALS).fetchone()
            return count, versions


class PrismaSubject(StoreSubject, _File):
    """The store."""

    def __init__(self, path: Path) -> None:
        _File.__init__(self, path)
        StoreSubject.__init__(self, PrismaSagaStore(prisma=_client_on(path)))


class ClientSubject(_File):
    """The client as its documentation shows it."""

    async def open(self) -> None:
        self.client = _client_on(self.path)
        await self.client.connect()
        self.sagas = self.client.sagainstance

    async def close(self) -> None:
        await self.client.disconnect()

    async def insert(self, correlation_id: str, state: OrderState) -> None:
        key = {"saga_name": SAGA_NAME, "saga_id": state.metadata.saga_id, "correlation_id": correlation_id}
        await self.sagas.create_many([{**key, **_data(state)}])

    async def get_by_id(self, saga_id: str) -> OrderState | None:
        return await self._get({"saga_name_saga_id": {"saga_name": SAGA_NAME, "saga_id": saga_id}})

    async def get_by_correlation_id(self, correlation_id: str) -> OrderState | None:
        key = {"saga_name": SAGA_NAME, "correlation_id": correlation_id}
        return await self._get({"saga_name_correlation_id": key})

    async def _get(self, where: dict[str, Any]) -> OrderState | None:
        record = await self.sagas.find_unique(where)
        return None if record is None else _decode(record.state)

    async def update(self, state: OrderState, expected_version: int) -> None:
        where = {"saga_name": SAGA_NAME, "saga_id": state.metadata.saga_id, "version": expected_version}
        if await self.sagas.update_many(_data(state), where) != 1:
            raise LookupError(state.metadata.saga_id)

    async def find(self, cursor: Any, limit: int) -> tuple[Sequence[OrderState], Any]:
        where: dict[str, Any] = {"saga_name": SAGA_NAME}
        if cursor is not None:
            moment, saga_id = cursor
            same = {"created_at": moment, "saga_id": {"lt": saga_id}}
            where["AND"] = [{"created_at": {"lte": moment}}, {"OR": [{"created_at": {"lt": moment}}, same]}]
        order = [{"created_at": "desc"}, {"saga_id": "desc"}]
        rows = await self.sagas.find_many(take=limit + 1, where=where, order=order)
        last = rows[limit - 1] if len(rows) > limit else None
        return [_decode(row.state) for row in rows[:limit]], None if last is None else (last.created_at, last.saga_id)


class PrismaBackend:
    """Sagas in an SQLite file behind Prisma's engine."""

    name = "prisma"
    server = "prisma"  # the engine; each subject has a file of its own
    variants = ("sqlite",)
    peers = ("prisma client",)
    packages = ("saga-bus-store-prisma", "prisma")
    targets = tuple(
        Target("ratio", 0.85, operation, "sqlite", callers=callers, peer="prisma client")
        for operation in ("get_by_id", "get_by_correlation_id", "update", "cycle", "find", "insert")
        for callers in (1, 32)
    )

    def versions(self) -> dict[str, str]:
        return {"httpx": version("httpx")}

    async def prepare(self, directory: Path, rows: int) -> None:
        """The table is that of the SQLite store, so are the rows."""
        await SQLITE.prepare(directory, rows)

    def subject(self, name: str, variant: str, directory: Path, rows: int) -> Subject:  # noqa: ARG002
        return (ClientSubject if name == "prisma client" else PrismaSubject)(directory / FILE)


BACKEND = PrismaBackend()

"""Groups: what several callers ask for at once becomes one script, and each gets its own outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from saga_bus.store import (
    Coalescer,
    DuplicateSagaError,
    SagaRow,
    SagaStoreError,
    SchemaError,
    StoreUnavailableError,
    version_conflict,
)
from saga_bus.store.coalesce import Activity
from saga_bus.store_redis._errors import error_of_reply
from saga_bus.store_redis._items import Candidate, Read, Write, key_of, parts_of
from saga_bus.store_redis._keys import MARK, Keys, fields_of, parse_record
from saga_bus.store_redis._replication import Replication
from saga_bus.store_redis._routes import Route, run_script
from saga_bus.store_redis._scripts import READ, WRITE, unpacked

__all__ = ["Groups"]

ItemT = TypeVar("ItemT", bound="Read | Write")
ResultT = TypeVar("ResultT")
Outcome = bool | list[str]

_IN_FLIGHT = 2  # while the server works on one group, the next one is packed
_MOST = 64
_SHARE = 8  # of fewer calls than twice this, halves cost more than they spare

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Outcome]).decode


class Groups:
    """The five operations.

    Args:
        route: Where the keys are.
        ttl: How long a completed saga lives, in milliseconds; None for ever.
        replication: How many replicas must have a write.
    """

    def __init__(self, route: Route, ttl: int | None, replication: Replication) -> None:
        self._route = route
        self._ttl = b"" if ttl is None else b"%d" % ttl
        self._replication = replication
        activity = Activity()
        self._reads: Coalescer[Read, bytes | None] = Coalescer(
            self._read,
            max_size=_MOST,
            max_in_flight=_IN_FLIGHT,
            share=_SHARE,
            alone=self._read_alone,
            activity=activity,
        )
        self._writes: Coalescer[Write, Outcome] = Coalescer(
            self._write,
            key=key_of,
            max_size=_MOST,
            max_in_flight=_IN_FLIGHT,
            share=_SHARE,
            alone=self._write_alone,
            activity=activity,
        )

    async def close(self) -> None:
        """Wait for what is in hand."""
        await self._reads.join()
        await self._writes.join()

    # -- what the store asks for ---------------------------------------------------------------------------

    async def get_by_id(self, keys: Keys, saga_id: str) -> bytes | None:
        """Fetch a document.

        Args:
            keys: The keys of its type.
            saga_id: The saga's id.
        """
        return await self._reads.call(Read(keys, b"s", saga_id.encode()))

    async def get_by_correlation_id(self, keys: Keys, correlation_id: str) -> bytes | None:
        """Fetch a document.

        Args:
            keys: The keys of its type.
            correlation_id: The saga's correlation id.
        """
        return await self._reads.call(Read(keys, b"c", correlation_id.encode()))

    async def insert(self, keys: Keys, row: SagaRow, correlation_id: str) -> bool:
        """Insert a saga.

        Args:
            keys: The keys of its type.
            row: The row.
            correlation_id: Its correlation id.

        Returns:
            False if its type is not registered: nothing was written.

        Raises:
            DuplicateSagaError: A key is taken.
        """
        fields = fields_of(row)
        item = Write(
            keys,
            "insert",
            row.saga_id,
            usual=fields.created_at if fields.is_plain and not fields.due_at else "",
            updated_at=fields.updated_at,
            head=fields.head(),
            correlation_id=correlation_id,
            document=row.document,
        )
        outcome = await self._writes.call(item)
        if outcome is True:
            return True
        match outcome:
            case ["unregistered"]:
                return False
            case ["saga_id" | "correlation_id" as conflict]:
                raise DuplicateSagaError(
                    saga_name=row.saga_name,
                    saga_id=row.saga_id,
                    correlation_id=correlation_id,
                    conflict=conflict,
                )
        raise _unexpected(outcome)

    async def update(self, keys: Keys, row: SagaRow, expected_version: int) -> None:
        """Update a saga.

        Args:
            keys: The keys of its type.
            row: The row.
            expected_version: The version that must be there.

        Raises:
            ConcurrencyError: Another version is there, or none.
        """
        fields, expected = fields_of(row), str(expected_version)
        item = Write(
            keys,
            "update",
            row.saga_id,
            expected=expected,
            usual=fields.pattern(expected) if fields.is_plain else "",
            updated_at=fields.updated_at,
            head=fields.head(),
            document=row.document,
        )
        await self._change(item, row.saga_name, expected_version)

    async def delete(self, keys: Keys, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        """Delete a saga.

        Args:
            keys: The keys of its type.
            saga_name: The saga's name.
            saga_id: The saga's id.
            expected_version: The version that must be there, None for any or none.

        Raises:
            ConcurrencyError: Another version is there, or none.
        """
        expected = "" if expected_version is None else str(expected_version)
        item = Write(keys, "delete", saga_id, expected=expected)
        await self._change(item, saga_name, expected_version)

    async def purge(self, keys: Keys, candidates: Sequence[Candidate]) -> int:
        """Delete completed sagas that nobody touched since they were chosen; how many.

        Args:
            keys: The keys of their type.
            candidates: The sagas.
        """
        deleted = 0
        for first in range(0, len(candidates), _MOST):
            items = [
                Write(
                    keys,
                    "purge",
                    saga_id.decode(),
                    updated_at=updated_at.decode(),
                    correlation_id=correlation_id.decode(),
                )
                for saga_id, correlation_id, updated_at in candidates[first : first + _MOST]
            ]
            for outcome in await self._write_part(items):
                if isinstance(outcome, BaseException):
                    raise outcome
                deleted += outcome is True
        return deleted

    async def _change(self, item: Write, saga_name: str, expected_version: int | None) -> None:
        outcome = await self._writes.call(item)
        match outcome:
            case ["pointer", correlation_id]:
                outcome = await self._writes.call(replace(item, correlation_id=correlation_id))
        if outcome is True:
            return
        match outcome:
            case ["absent"] if expected_version is None:
                return
            case ["absent"] if expected_version is not None:
                raise version_conflict(saga_name, item.saga_id, expected_version=expected_version, actual_version=None)
            case ["version", actual] if expected_version is not None:
                raise version_conflict(
                    saga_name, item.saga_id, expected_version=expected_version, actual_version=int(actual)
                )
        raise _unexpected(outcome)

    # -- reads ---------------------------------------------------------------------------------------------

    async def _read_alone(self, item: Read) -> bytes | None:
        if item.kind == b"s":
            return _document(await self._value(item.key()), item)
        (found,) = await self._read_part((item,))
        if isinstance(found, BaseException):
            raise found
        return found

    async def _read(self, items: Sequence[Read]) -> Sequence[bytes | BaseException | None]:
        return await self._in_parts(items, self._read_part)

    async def _read_part(self, items: Sequence[Read]) -> Sequence[bytes | BaseException | None]:
        keys = [item.key() for item in items]
        try:
            (reply,) = await run_script(self._route, READ, keys, b"".join(item.kind for item in items), writing=False)
        except StoreUnavailableError:
            if not self._route.is_cluster:
                raise
            # Keys of several sagas may be on two nodes while their slot moves; one key never is.
            return await _each(items, self._read_slowly)
        documents: list[bytes | BaseException | None] = []
        for item, value in zip(items, unpacked(reply), strict=True):
            if value:
                documents.append(_document(value, item))
            elif value is not None and self._route.is_cluster:
                documents += await _each((item,), self._read_slowly)  # the saga may be on another node
            else:
                documents.append(None)
        return documents

    async def _read_slowly(self, item: Read) -> bytes | None:
        key: bytes | None = item.key()
        if item.kind == b"c":
            saga_id = await self._value(item.key())
            key = None if saga_id is None else item.keys.states + saga_id
        return None if key is None else _document(await self._value(key), item)

    async def _value(self, key: bytes) -> bytes | None:
        (value,) = await self._route.ask(key, [[b"GET", key]])
        if isinstance(value, Exception):
            raise error_of_reply(value) from value
        found: bytes | None = value
        return found

    # -- writes --------------------------------------------------------------------------------------------

    async def _write(self, items: Sequence[Write]) -> Sequence[Outcome | BaseException]:
        return await self._in_parts(items, self._write_part)

    async def _write_alone(self, item: Write) -> Outcome:
        (outcome,) = await self._write_part((item,))
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def _write_part(self, items: Sequence[Write]) -> Sequence[Outcome | BaseException]:
        places: dict[bytes, int] = {}
        packed = []
        for item in items:
            index, states, pointers = item.keys
            correlation_id = item.correlation_id
            values = (
                item.operation,
                places.setdefault(index, len(places) + 1),
                places.setdefault(states + item.saga_id.encode(), len(places) + 1),
                0 if correlation_id is None else places.setdefault(pointers + correlation_id.encode(), len(places) + 1),
                item.saga_id,
                item.expected,
                item.usual,
                item.updated_at,
                item.head,
                correlation_id or "",
            )
            packed.append(_encode(values)[1:])  # without its length, so that Lua makes no table of it
        reply, *waited = await run_script(
            self._route,
            WRITE,
            list(places),
            b"".join(packed),
            self._ttl,
            MARK,
            *[item.document for item in items],
            then=self._replication.commands(),
        )
        return self._judged([True] * len(items) if isinstance(reply, int) else _decode(reply), waited)

    def _judged(self, found: list[Outcome], waited: Sequence[Any]) -> list[Outcome | BaseException]:
        """The outcomes of a script, once the replicas have been waited for."""
        outcomes: list[Outcome | BaseException] = list(found)
        shortage = self._replication.shortage(waited)
        for place, outcome in enumerate(outcomes):
            match outcome:
                case True if shortage is not None:
                    outcomes[place] = shortage
                case ["error", text]:
                    outcomes[place] = error_of_reply(text)
        return outcomes

    # -- groups --------------------------------------------------------------------------------------------

    async def _in_parts(
        self,
        items: Sequence[ItemT],
        run: Callable[[Sequence[ItemT]], Awaitable[Sequence[ResultT | BaseException]]],
    ) -> Sequence[ResultT | BaseException]:
        """Run a group in as many parts as it needs, so that an error is that of its part alone."""
        parts = list(parts_of(items, apart=self._route.is_cluster))
        if len(parts) == 1:
            return await run(items)
        outcomes: list[ResultT | BaseException] = [_unexpected("nothing")] * len(items)
        results = await asyncio.gather(*(_by_itself([items[place] for place in places], run) for places in parts))
        for places, result in zip(parts, results, strict=True):
            for place, outcome in zip(places, result, strict=True):
                outcomes[place] = outcome
        return outcomes


def _document(value: bytes | None, item: Read) -> bytes | None:
    if value is None:
        return None
    try:
        record = parse_record(value)
    except TypeError:
        raise SchemaError("a key of the store holds something else: choose another prefix") from None
    # A correlation id whose saga was evicted may name one that came later.
    return record.document if item.kind == b"s" or record.correlation_id == item.value else None


async def _by_itself(
    items: Sequence[ItemT], run: Callable[[Sequence[ItemT]], Awaitable[Sequence[ResultT | BaseException]]]
) -> Sequence[ResultT | BaseException]:
    try:
        return await run(items)
    except StoreUnavailableError as error:
        return [error] * len(items)
    except SagaStoreError as error:
        return [error] if len(items) == 1 else [(await _by_itself([item], run))[0] for item in items]


async def _each(
    items: Sequence[Read], read: Callable[[Read], Awaitable[bytes | None]]
) -> list[bytes | BaseException | None]:
    outcomes = await asyncio.gather(*(read(item) for item in items), return_exceptions=True)
    return list(outcomes)


def _unexpected(outcome: object) -> SagaStoreError:
    return SagaStoreError(f"a script of the store answered {outcome!r}")

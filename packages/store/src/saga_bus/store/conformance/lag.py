"""Looking into an index: once, or again and again for as long as the store says that it may lag behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from saga_bus.store.conformance import expect
from saga_bus.store.conformance.model import descends, place_in, selects, shown_fields
from saga_bus.store.query import Page, SagaFilter

__all__ = ["InexcusableError", "find_page", "purged", "settled"]

T = TypeVar("T")

_PAUSE = 0.02  # seconds between two looks


class InexcusableError(AssertionError):
    """A fault that no lag explains."""


async def settled(look: Callable[[], Awaitable[T]], lag: timedelta) -> T:
    """Look until the answer is the expected one; a look that begins when the lag has passed is the last one.

    The lag is counted from the first look, when everything that the answer depends on has been written. Without a
    lag there is one look.

    Args:
        look: Asks the store, and raises an AssertionError when the answer is not the expected one.
        lag: The ``index_lag`` that the store declares.

    Returns:
        What the look returned.

    Raises:
        AssertionError: What the last look raised, or what any look raised that no lag explains.
    """
    deadline = time.monotonic() + lag.total_seconds()
    while True:
        is_last = time.monotonic() >= deadline
        try:
            return await look()
        except InexcusableError:
            raise
        except AssertionError:
            if is_last:
                raise
        await asyncio.sleep(_PAUSE)


async def find_page(
    store: Any, where: SagaFilter, what: str, *, limit: int = 100, cursor: str | None = None
) -> Page[Any]:
    """Find a page: no saga of it comes twice, and each is in its place and what the filter asks for, by its own state.

    Args:
        store: The store.
        where: The filter.
        what: What is looked for.
        limit: The most records.
        cursor: The cursor of the page before.

    Raises:
        InexcusableError: It is otherwise. An index that is late tells of what was, and that was in order too.
    """
    page: Page[Any] = await store.find(where, limit=limit, cursor=cursor)
    met: set[tuple[str, str]] = set()
    places: list[tuple[datetime, str, str]] = []
    for record in page.items:
        metadata = record.state.metadata
        saga = f"{record.saga_name} {metadata.saga_id!r} at version {metadata.version}"
        if (record.saga_name, metadata.saga_id) in met:
            raise InexcusableError(f"{what}: one page has {saga} a second time")
        if not selects(where, record.saga_name, metadata):
            raise InexcusableError(f"{what}: found {saga}, which does not match SagaFilter({shown_fields(where)})")
        met.add((record.saga_name, metadata.saga_id))
        places.append(place_in(where, record.saga_name, metadata))
        if sorted(places[-2:], reverse=descends(where)) != places[-2:]:
            raise InexcusableError(f"{what}: {saga} comes too late in the order of SagaFilter({shown_fields(where)})")
    return page


async def purged(purge: Callable[..., Awaitable[int]], number: int, lag: timedelta) -> int:
    """Purge, and return how many were deleted.

    Where a lag may hide some, it is purged again when a dry run counts those that are left, and at last when the lag
    has passed; not until all are gone, for that would hide a purge that ends too early.

    Args:
        purge: ``delete_completed_before`` with its arguments; takes ``dry_run``.
        number: How many there are to be deleted.
        lag: The ``index_lag`` that the store declares.
    """
    deleted = await purge()
    if lag and deleted in range(number):

        async def knows_the_rest() -> None:
            expect.equal(await purge(dry_run=True), number - deleted, "the number of those that are left")

        try:
            await settled(knows_the_rest, lag)
        except InexcusableError:
            raise
        except AssertionError:
            pass  # the number that is deleted tells
        deleted += await purge()
    if lag and deleted in range(number):
        await asyncio.sleep(lag.total_seconds())
        deleted += await purge()
    return deleted

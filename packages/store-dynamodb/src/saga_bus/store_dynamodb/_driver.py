"""boto3 in threads of the store's own: one request at a time each, tried again where that can help."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from threading import Thread
from typing import Any, TypeVar

from saga_bus.store import OutcomeUnknownError, SagaStoreError, StoreClosedError
from saga_bus.store.threads import report, succeed
from saga_bus.store_dynamodb._errors import BOTO_ERRORS, Fate, fate_of, old_items, translated
from saga_bus.store_dynamodb._threads import Threads

__all__ = ["Ask", "Driver", "RefusedError", "all_of"]

ResultT = TypeVar("ResultT")
# Makes a request: the client's method, and its arguments.
Ask = Callable[[str, dict[str, Any]], dict[str, Any]]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.025, 1.0  # seconds


class RefusedError(Exception):
    """A condition of a request did not hold; never leaves the package.

    Args:
        found: For each action, whether its condition failed, and the item that it found.
        uncertain: Whether an earlier try of the same request may have been applied.
    """

    def __init__(self, found: list[tuple[bool, dict[str, Any] | None]], *, uncertain: bool) -> None:
        super().__init__("a condition of the request did not hold")
        self.found = found
        self.uncertain = uncertain


class Driver:
    """A client and the threads that it is used in; `open` it first.

    botocore cannot tell which try of a request failed in which way, so the store's own client tries once, and
    the tries are made here. Every write can be sent again without harm: a transaction carries a token that the
    service knows it by, and an update leaves a token in the item.

    Args:
        make_client: Makes the client; called in a thread.
        owned: Whether the client is closed at the end.
        table: The table's name, for messages.
        threads: The most requests at the same time.
        attempts: How often a request is tried.
    """

    def __init__(self, make_client: Callable[[], Any], *, owned: bool, table: str, threads: int, attempts: int) -> None:
        self._make_client = make_client
        self._owned = owned
        self._table = table
        self._attempts = attempts
        self._most_threads = threads
        self._tries_by_itself = False
        self._client: Any = None

    async def open(self) -> None:
        """Make the client.

        Raises:
            SagaStoreError: There is none for these settings.
        """
        self._threads = Threads(self._most_threads, "saga-bus-dynamodb")
        try:
            self._client = await self._threads.run(self._make_client)
        except BaseException as error:
            self._threads.stop()
            if isinstance(error, BOTO_ERRORS):
                raise translated(error, self._table) from error
            raise
        retries = self._client.meta.config.retries or {}
        self._tries_by_itself = not self._owned and retries.get("total_max_attempts", 2) > 1

    async def close(self) -> None:
        """Wait for the requests that are under way, and end the threads."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def end() -> None:
            self._threads.join()
            if self._owned:
                self._client.close()
            report(loop, succeed, ended, None)

        self._threads.stop()
        Thread(target=end, name="saga-bus-dynamodb-close").start()
        await ended

    async def read(self, operation: str, **request: Any) -> dict[str, Any]:
        """Make a request that changes nothing.

        Args:
            operation: The client's method.
            **request: Its arguments.

        Raises:
            SagaStoreError: What became of it.
        """
        return await self._try(partial(self._ask, operation, request), self._attempts)

    async def read_in_turn(self, reads: Callable[[Ask], ResultT]) -> ResultT:
        """Make requests of which one needs the answer of another, all in one visit of a thread.

        Args:
            reads: Makes them, with what it is given; called in a thread, and again as a whole where one of them failed.

        Raises:
            SagaStoreError: What became of them.
        """
        return await self._try(partial(reads, self._ask), self._attempts)

    async def write(
        self, operation: str, *, tries: int | None = None, uncertain: bool = False, **request: Any
    ) -> dict[str, Any]:
        """Make a request that may be made again without harm.

        Args:
            operation: The client's method.
            tries: How often it is tried at the most, instead of the usual number.
            uncertain: Whether it may have been applied already.
            **request: Its arguments.

        Raises:
            RefusedError: A condition did not hold.
            SagaStoreError: What became of it; `OutcomeUnknownError` where any try of it may have been applied.
        """
        request_it = partial(self._ask, operation, request)
        return await self._try(request_it, tries or self._attempts, writes=True, uncertain=uncertain)

    async def pause(self, number: int) -> None:
        """Wait before trying again; longer each time, and never as long as others do.

        Args:
            number: How many tries there were.
        """
        await asyncio.sleep(random.uniform(0.3, 1.0) * min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**number))  # noqa: S311

    def _ask(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        response: dict[str, Any] = getattr(self._client, operation)(**request)
        self._refuse_strangers(response)
        return response

    async def _try(
        self, work: Callable[[], ResultT], tries: int, *, writes: bool = False, uncertain: bool = False
    ) -> ResultT:
        for number in range(tries):
            try:
                return await self._threads.run(work)
            except StoreClosedError as error:
                if uncertain:
                    raise OutcomeUnknownError(
                        "the store was closed before the write was known to be applied"
                    ) from error
                raise
            except BOTO_ERRORS as error:
                fate = fate_of(error)
                uncertain = uncertain or (writes and (fate is Fate.LOST or self._was_tried_before(error)))
                if fate is Fate.REFUSED:
                    raise RefusedError(old_items(error), uncertain=uncertain) from error
                if fate is Fate.HOPELESS or number + 1 == tries:
                    raise translated(error, self._table, uncertain=uncertain) from error
            await self.pause(number)
        raise AssertionError("the last try returns or raises")

    def _was_tried_before(self, error: Exception) -> bool:
        """Whether a client that makes tries of its own may have hidden one that was lost."""
        if not self._tries_by_itself:
            return False
        response = getattr(error, "response", None)
        return response is None or response.get("ResponseMetadata", {}).get("RetryAttempts", 0) > 0

    def _refuse_strangers(self, response: dict[str, Any]) -> None:
        # botocore reads any page that some other server sends with status 200 as an answer that says nothing, so a
        # write would seem to have succeeded. DynamoDB names every request.
        if not response.get("ResponseMetadata", {}).get("RequestId"):
            raise SagaStoreError(
                f"table {self._table!r}: what answers at {self._client.meta.endpoint_url} is no DynamoDB"
            )


async def all_of(requests: Iterable[Coroutine[Any, Any, ResultT]]) -> Sequence[ResultT]:
    """Wait for all of them, also where one fails, so that none is left behind."""
    outcomes = await asyncio.gather(*requests, return_exceptions=True)
    results: list[ResultT] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results

"""A place of a test's own on a broker that others use too, and what the tests of transports put into it."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from brokers.inspection import remove
from saga_bus.core import Delivery, Envelope
from saga_bus.transport_faststream import FastStreamTransport

__all__ = ["Inbox", "Place", "envelope", "kafka_options", "whole_kafka"]

_PATIENCE = 30.0
_numbers = itertools.count(1)


def envelope(name: str = "OrderPlaced", body: bytes = b"{}", **headers: str) -> Envelope:
    """A new message."""
    return Envelope(
        id=f"message-{next(_numbers)}", name=name, body=body, sent_at=datetime.now(UTC), headers=dict(headers)
    )


def kafka_options(url: str) -> dict[str, Any]:
    """What the transport must be told of the Kafka at a URL: a mock cluster makes its topics by itself.

    Args:
        url: The broker.
    """
    return {"partitions": 3, "make_topics": url == os.environ.get("SAGA_TEST_KAFKA_URL")}


def whole_kafka() -> bool:
    """Whether all tests are to be run on Kafka: each listener waits seconds for its group there."""
    return bool(os.environ.get("SAGA_TEST_KAFKA_URL")) or os.environ.get("SAGA_TEST_KAFKA_MOCK") == "all"


class Place:
    """One prefix on one broker.

    Args:
        kind: The broker's name.
        url: The broker.
        prefix: The prefix.
        redeliver_after: As of the transport.
    """

    def __init__(self, kind: str, url: str, prefix: str, redeliver_after: timedelta) -> None:
        self.kind = kind
        self.url = url
        self.prefix = prefix
        self.redeliver_after = redeliver_after
        self.endpoints: set[str] = set()

    def transport(self, **options: Any) -> FastStreamTransport:
        """A transport, not started."""
        options = {"prefix": self.prefix, "redeliver_after": self.redeliver_after, **kafka_options(self.url), **options}
        if "broker" not in options:
            options["url"] = self.url
        return FastStreamTransport(**options)

    @asynccontextmanager
    async def transports(self, number: int, **options: Any) -> AsyncIterator[list[FastStreamTransport]]:
        """So many transports, started, and closed at the end."""
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(self.transport(**options)) for _ in range(number)]

    def endpoint(self, name: str) -> str:
        """Note an endpoint that a test makes, to be removed."""
        self.endpoints.add(name)
        return name

    def remove(self) -> None:
        """Leave nothing behind."""
        asyncio.run(remove(self.url, self.prefix, sorted(self.endpoints)))


class Inbox:
    """A receiver that remembers what it got.

    Args:
        end: Ends a delivery; acknowledges when left out.
    """

    def __init__(self, end: Callable[[Delivery], Any] | None = None) -> None:
        self.got: list[Delivery] = []
        self._end = end or (lambda delivery: delivery.ack())
        self._news = asyncio.Condition()

    @property
    def ids(self) -> list[str]:
        """The ids of what came, in order."""
        return [delivery.envelope.id for delivery in self.got]

    async def receive(self, delivery: Delivery) -> None:
        """What a transport calls."""
        self.got.append(delivery)
        async with self._news:
            self._news.notify_all()
        await self._end(delivery)

    async def wait(self, number: int) -> None:
        """Wait until so many deliveries came."""
        async with asyncio.timeout(_PATIENCE), self._news:
            await self._news.wait_for(lambda: len(self.got) >= number)

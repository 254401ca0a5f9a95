"""What a broker's module gives the transport: a link to the broker, and the parcels that come over it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

__all__ = ["Link", "Options", "Parcel", "Take"]


@dataclass(frozen=True)
class Options:
    """What the user chose; each link takes what its broker knows.

    Args:
        prefix: What all names on the broker begin with.
        redeliver_after: After how long the message of a dead worker comes again, where no connection tells of it.
        timeout: How long the broker may take to confirm.
        prefetch: How many messages an endpoint holds ready beside those in hand.
        retain: How long NATS keeps messages.
        replicas: How many servers of a cluster keep a copy, where the client decides it.
        partitions: Into how many parts a Kafka topic is made.
        make_topics: Whether topics are made here, and not by Kafka itself or by an administrator.
    """

    prefix: str
    redeliver_after: timedelta
    timeout: timedelta
    prefetch: int
    retain: timedelta
    replicas: int
    partitions: int
    make_topics: bool


class Parcel(Protocol):
    """Something that arrived, whatever it is."""

    @property
    def body(self) -> bytes:
        """Its bytes."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Its headers that are text."""
        ...

    @property
    def attempt(self) -> int:
        """The number of this delivery, from 1, as far as the broker tells."""
        ...

    async def ack(self) -> None:
        """It does not come again."""
        ...

    async def retry(self, delay: timedelta) -> None:
        """It comes again, not before the delay."""
        ...

    async def bury(self, note: str) -> None:
        """Put it among the endpoint's dead letters with its bytes, its headers and a note; then acknowledge it."""
        ...

    async def keep(self) -> None:
        """Tell the broker that it is still in hand."""
        ...

    async def release(self) -> None:
        """Give it back at once, unless losing the connection does that."""
        ...


Take = Callable[[Parcel], Awaitable[None]]


class Link(Protocol):
    """The connection to one kind of broker."""

    @property
    def refused(self) -> tuple[type[Exception], ...]:
        """The driver's errors after which trying again cannot help; looked at first."""
        ...

    @property
    def unavailable(self) -> tuple[type[Exception], ...]:
        """All others of the driver's errors."""
        ...

    async def start(self) -> None:
        """Connect, and make what all endpoints share."""
        ...

    async def publish(self, name: str, body: bytes, headers: dict[str, str]) -> None:
        """A copy for each endpoint that listens to the name; returns when it is confirmed."""
        ...

    async def send(self, endpoint: str, body: bytes, headers: dict[str, str]) -> None:
        """To one endpoint, made if it is not there; returns when it is confirmed."""
        ...

    async def listen(self, endpoint: str, names: Collection[str], take: Take, concurrency: int) -> None:
        """Begin to receive."""
        ...

    async def stop_receiving(self) -> None:
        """No new parcels."""
        ...

    async def close(self) -> None:
        """Give back what is in hand and disconnect."""
        ...

"""What the bus needs of a transport; `saga_bus.core.conformance` proves one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import timedelta
from typing import Protocol, runtime_checkable

from saga_bus.core.envelope import Envelope

__all__ = ["Delivery", "Receiver", "Transport"]


class Delivery(Protocol):
    """One message in hand; exactly one of ``ack``, ``retry`` and ``dead_letter`` ends it."""

    @property
    def envelope(self) -> Envelope:
        """The message."""
        ...

    @property
    def attempt(self) -> int:
        """1 at first, as far as the broker tells; more for a redelivery."""
        ...

    async def ack(self) -> None:
        """The message is done: it does not come again."""
        ...

    async def retry(self, delay: timedelta) -> None:
        """Give the message back, so that it is delivered again.

        Args:
            delay: Not before this, where the broker can wait.
        """
        ...

    async def dead_letter(self, reason: str, details: Mapping[str, str]) -> None:
        """Put the message aside with its bytes and its headers; then it is done.

        Args:
            reason: One short sentence.
            details: What is known of the failure, by name.
        """
        ...


Receiver = Callable[[Delivery], Awaitable[None]]


@runtime_checkable
class Transport(Protocol):
    """Carries messages at least once.

    An endpoint is a named queue. Those who listen on one endpoint, in one process or in several, compete for its
    messages. A message whose receiver raises, or whose receiver's process dies, is delivered again. What arrives
    and is no envelope is dead-lettered by the transport itself, with its bytes and the reason. Errors are
    `TransportError`, and ``retryable`` where trying again may help.
    """

    async def start(self) -> None:
        """Connect; starting twice is no error."""
        ...

    async def publish(self, envelope: Envelope) -> None:
        """Give a copy to every endpoint that listens to the message's name; return when the broker has it.

        Args:
            envelope: The message.

        Raises:
            TransportUnavailableError: The broker could not be reached or did not confirm; it may have the message.
        """
        ...

    async def send(self, endpoint: str, envelope: Envelope) -> None:
        """Give a message to one endpoint; return when the broker has it.

        Args:
            endpoint: The endpoint's name.
            envelope: The message.

        Raises:
            TransportUnavailableError: The broker could not be reached or did not confirm; it may have the message.
        """
        ...

    async def listen(self, endpoint: str, names: Collection[str], receive: Receiver, *, concurrency: int) -> None:
        """Begin to receive what is sent to an endpoint, and what is published under some names.

        When it returns, a message that is published under one of the names reaches the endpoint, also after the
        listener is gone.

        Args:
            endpoint: The endpoint's name.
            names: The names of the messages that it wants copies of.
            receive: Called with each delivery; it ends the delivery itself.
            concurrency: The most deliveries in hand at once.
        """
        ...

    async def stop_receiving(self) -> None:
        """Deliver nothing new; what is in hand may still be ended."""
        ...

    async def close(self) -> None:
        """Disconnect; what is still in hand is given back. Closing twice is no error."""
        ...

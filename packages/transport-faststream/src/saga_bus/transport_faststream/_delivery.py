"""One parcel as the bus sees it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from datetime import timedelta

from saga_bus.core import Envelope, Receiver, TransportError
from saga_bus.transport_faststream._errors import translated
from saga_bus.transport_faststream._link import Link, Parcel
from saga_bus.transport_faststream._wire import NoEnvelopeError, dead_note, unpack

__all__ = ["Desk"]

_log = logging.getLogger("saga_bus.transport_faststream")

_FIRST_DELAY = timedelta(milliseconds=100)
_LONGEST_DELAY = timedelta(seconds=30)


class _Delivery:
    """A message in hand; the first of ``ack``, ``retry`` and ``dead_letter`` that succeeds ends it."""

    def __init__(self, desk: Desk, parcel: Parcel, envelope: Envelope) -> None:
        self._desk = desk
        self._parcel = parcel
        self._envelope = envelope
        self.is_ended = False

    @property
    def envelope(self) -> Envelope:
        """The message."""
        return self._envelope

    @property
    def attempt(self) -> int:
        """1 at first; more for a redelivery."""
        return self._parcel.attempt

    async def ack(self) -> None:
        """The message is done."""
        self._check()
        async with self._desk.translated("acknowledge a message"):
            await self._parcel.ack()
        self.is_ended = True

    async def retry(self, delay: timedelta) -> None:
        """Give the message back, to come again after the delay."""
        self._check()
        async with self._desk.translated("give a message back"):
            await self._parcel.retry(max(delay, timedelta(0)))
        self.is_ended = True

    async def dead_letter(self, reason: str, details: Mapping[str, str]) -> None:
        """Put the message among the endpoint's dead letters."""
        self._check()
        async with self._desk.translated("dead-letter a message"):
            await self._parcel.bury(dead_note(self._desk.endpoint, self.attempt, reason, details))
        self.is_ended = True

    def _check(self) -> None:
        if self.is_ended:
            raise TransportError("the delivery has ended already")


class Desk:
    """Where the parcels of one endpoint are opened and handed to its receiver.

    Args:
        link: The broker's.
        endpoint: The endpoint's name.
        receive: The receiver.
        timeout: How long the broker may take to confirm what ends a delivery.
    """

    def __init__(self, link: Link, endpoint: str, receive: Receiver, timeout: timedelta) -> None:
        self._link = link
        self._receive = receive
        self._timeout = timeout
        self.endpoint = endpoint

    def translated(self, what: str) -> AbstractAsyncContextManager[None]:
        """The bus's errors for the driver's."""
        return translated(self._link, what, self._timeout)

    async def take(self, parcel: Parcel) -> None:
        """See one parcel through; what fails here leaves it to the broker, which delivers it again.

        Args:
            parcel: What arrived.
        """
        try:
            envelope = unpack(parcel.body, parcel.headers)
        except NoEnvelopeError as error:
            await self._bury(parcel, str(error))
            return
        delivery = _Delivery(self, parcel, envelope)
        try:
            await self._receive(delivery)
        except Exception:  # noqa: BLE001 - whatever it is, the message is given back
            _log.exception("the receiver of %r failed on message %s", self.endpoint, envelope.id)
        if not delivery.is_ended:
            await self._give_back(delivery)

    async def _bury(self, parcel: Parcel, reason: str) -> None:
        _log.error("dead-lettered what arrived at %r: %s", self.endpoint, reason)
        try:
            async with self.translated("dead-letter a message"):
                await parcel.bury(dead_note(self.endpoint, parcel.attempt, reason, {}))
        except TransportError:
            _log.exception("could not dead-letter what arrived at %r; it will come again", self.endpoint)

    async def _give_back(self, delivery: _Delivery) -> None:
        delay = min(_FIRST_DELAY * 2 ** min(delivery.attempt - 1, 16), _LONGEST_DELAY)
        try:
            await delivery.retry(delay)
        except TransportError as error:
            _log.warning("%s at %r; the broker will deliver it again by itself", error, self.endpoint)

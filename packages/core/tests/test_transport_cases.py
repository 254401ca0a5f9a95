"""The cases for transports are tested: each of these transports breaks one rule, and the named case must find it."""

import asyncio
from datetime import timedelta

import msgspec
import pytest

from saga_bus.core import InMemoryTransport
from saga_bus.core import inmemory as module
from saga_bus.core.conformance import CASES, PutAside, TransportConformance, cases, kit, suite

replace = msgspec.structs.replace


class LosesHeaders(InMemoryTransport):
    async def publish(self, envelope):
        await super().publish(replace(envelope, headers={}))


class LosesMicroseconds(InMemoryTransport):
    async def send(self, endpoint, envelope):
        await super().send(endpoint, replace(envelope, sent_at=envelope.sent_at.replace(microsecond=0)))


class CutsBodies(InMemoryTransport):
    async def publish(self, envelope):
        await super().publish(replace(envelope, body=envelope.body[:65_536]))


class PublishesToAll(InMemoryTransport):
    async def publish(self, envelope):
        for endpoint in self._broker.queues:
            self._broker.accept(endpoint, envelope)


class PublishesTwice(InMemoryTransport):
    async def publish(self, envelope):
        await super().publish(envelope)
        await super().publish(envelope)


class RefusesWhatNobodyWants(InMemoryTransport):
    async def publish(self, envelope):
        if envelope.name not in self._broker.endpoints:
            raise LookupError(envelope.name)
        await super().publish(envelope)


class SendsToListeners(InMemoryTransport):
    async def send(self, endpoint, envelope):
        await super().send(endpoint, envelope)
        await super().publish(envelope)


class TakesMoreAtOnce(InMemoryTransport):
    async def listen(self, endpoint, names, receive, *, concurrency):
        await super().listen(endpoint, names, receive, concurrency=concurrency + 1)


class TakesOneAtOnce(InMemoryTransport):
    async def listen(self, endpoint, names, receive, *, concurrency):
        await super().listen(endpoint, names, receive, concurrency=1)


class GivesToAllThatListen(InMemoryTransport):
    async def listen(self, endpoint, names, receive, *, concurrency):
        own = f"{endpoint}/{id(self)}"
        await super().listen(own, names, receive, concurrency=concurrency)


class GivesToTheFirstAlone(InMemoryTransport):
    async def listen(self, endpoint, names, receive, *, concurrency):
        if not self._broker.queue(endpoint).listeners:
            await super().listen(endpoint, names, receive, concurrency=concurrency)


def with_delivery(**methods):
    """A transport whose deliveries end in another way."""

    class Delivery(module._Delivery):
        __slots__ = ()

    for name, method in methods.items():
        setattr(Delivery, name, method)

    class Broken(InMemoryTransport):
        async def listen(self, endpoint, names, receive, *, concurrency):
            async def other(delivery):
                made = Delivery(delivery._broker, delivery._endpoint, delivery.envelope, delivery.attempt)
                try:
                    await receive(made)
                finally:
                    delivery.ended = made.ended

            await super().listen(endpoint, names, other, concurrency=concurrency)

    return Broken


async def back_again(self, *_):
    self._end()
    self._broker.put_later(self._endpoint, self.envelope, 2, 0.05)


async def lost(self, *_):
    self._end()


async def holds_up(self, delay):
    await asyncio.sleep(delay.total_seconds())
    await module._Delivery.retry(self, timedelta(0))


async def as_another(self, delay):
    self._end()
    self._broker.put(self._endpoint, replace(self.envelope, id="another"), 2)


async def without_reason(self, reason, details):
    await module._Delivery.dead_letter(self, "", details)


async def without_bytes(self, reason, details):
    self.envelope = replace(self.envelope, body=b"")
    await module._Delivery.dead_letter(self, reason, details)


class LosesWhatRaises(InMemoryTransport):
    async def listen(self, endpoint, names, receive, *, concurrency):
        async def silent(delivery):
            try:
                await receive(delivery)
            except ValueError:
                await delivery.ack()

        await super().listen(endpoint, names, silent, concurrency=concurrency)


class LosesWhatIsInHandAtTheClose(InMemoryTransport):
    async def listen(self, endpoint, names, receive, *, concurrency):
        async def early(delivery):
            try:
                await receive(delivery)
            except asyncio.CancelledError:
                delivery.ended = True
                raise

        await super().listen(endpoint, names, early, concurrency=concurrency)


class ForgetsWhoListened(InMemoryTransport):
    async def close(self):
        await super().close()
        self._broker.endpoints.clear()


class LosesWhatIsSentToNobody(InMemoryTransport):
    async def send(self, endpoint, envelope):
        if self._broker.queue(endpoint).listeners:
            await super().send(endpoint, envelope)


class GoesOnReceiving(InMemoryTransport):
    async def stop_receiving(self): ...


class StopsWhatIsInHand(InMemoryTransport):
    async def stop_receiving(self):
        await super().stop_receiving()
        for task in self._consumers:
            task.cancel()


class WorksAfterTheClose(InMemoryTransport):
    def _refuse_closed(self): ...


class ClosesOnce(InMemoryTransport):
    async def close(self):
        if self._is_closed:
            raise RuntimeError("closed before")
        await super().close()


class WaitsForWhatHangs(InMemoryTransport):
    async def close(self):
        self._is_closed = True
        await self.stop_receiving()
        await asyncio.gather(*self._consumers)


class ForgetsWhatItsSenderLeft(InMemoryTransport):
    async def publish(self, envelope):
        task = asyncio.ensure_future(self._later(envelope))
        self._sending = {*getattr(self, "_sending", ()), task}

    async def _later(self, envelope):
        await asyncio.sleep(0.05)
        if not self._is_closed:
            await super().publish(envelope)


class Deadlocks(InMemoryTransport):
    def __init__(self):
        super().__init__()
        self._one = asyncio.Lock()

    async def listen(self, endpoint, names, receive, *, concurrency):
        async def alone(delivery):
            async with self._one:
                await receive(delivery)

        await super().listen(endpoint, names, alone, concurrency=concurrency)

    async def publish(self, envelope):
        async with self._one:
            await super().publish(envelope)


class LosesSome(InMemoryTransport):
    async def publish(self, envelope):
        if len(self._broker.sent) % 50 != 49:
            await super().publish(envelope)
        else:
            self._broker.sent.append(envelope)


BROKEN = [
    (LosesHeaders, "an_envelope_arrives_whole"),
    (LosesMicroseconds, "an_envelope_arrives_whole"),
    (CutsBodies, "a_large_message_arrives"),
    (PublishesToAll, "publish_reaches_every_endpoint_that_listens"),
    (PublishesTwice, "publish_reaches_every_endpoint_that_listens"),
    (RefusesWhatNobodyWants, "publish_without_a_listener_is_no_error"),
    (SendsToListeners, "send_reaches_one_endpoint"),
    (TakesMoreAtOnce, "concurrency_is_a_bound_and_is_used"),
    (TakesOneAtOnce, "concurrency_is_a_bound_and_is_used"),
    (GivesToAllThatListen, "those_on_one_endpoint_compete"),
    (GivesToTheFirstAlone, "those_on_one_endpoint_compete"),
    (with_delivery(ack=back_again), "what_is_acknowledged_does_not_come_again"),
    (with_delivery(retry=lost), "what_is_given_back_comes_again"),
    (with_delivery(retry=as_another), "what_is_given_back_comes_again"),
    (with_delivery(retry=holds_up), "giving_back_holds_up_nothing_else"),
    (with_delivery(dead_letter=back_again), "a_dead_letter_does_not_come_again"),
    (with_delivery(dead_letter=lost), "a_dead_letter_keeps_bytes_headers_and_reason"),
    (with_delivery(dead_letter=without_reason), "a_dead_letter_keeps_bytes_headers_and_reason"),
    (with_delivery(dead_letter=without_bytes), "a_dead_letter_keeps_bytes_headers_and_reason"),
    (LosesWhatRaises, "a_receiver_that_raises_gets_the_message_again"),
    (LosesWhatIsInHandAtTheClose, "what_is_in_hand_at_the_close_comes_again"),
    (ForgetsWhoListened, "messages_wait_for_a_listener_that_is_away"),
    (LosesWhatIsSentToNobody, "messages_wait_for_a_listener_that_is_away"),
    (GoesOnReceiving, "stop_receiving_lets_what_is_in_hand_end"),
    (StopsWhatIsInHand, "stop_receiving_lets_what_is_in_hand_end"),
    (LosesSome, "many_messages_arrive_from_many"),
    (Deadlocks, "a_receiver_may_publish"),
    (ClosesOnce, "starting_and_closing_twice_is_no_error"),
    (WorksAfterTheClose, "use_after_the_close_is_refused"),
    (ForgetsWhatItsSenderLeft, "a_confirmed_message_survives_its_sender"),
    (WaitsForWhatHangs, "closing_does_not_wait_for_what_never_ends"),
]


def suite_of(transport):
    class Suite(TransportConformance):
        place = None

        def open_transport(self, namespace):
            made = transport()
            if self.place is None:
                self.place = made
            made._broker = self.place._broker
            return made

        def dead_letters(self, namespace, endpoint):
            return [
                PutAside(letter.envelope.body, letter.reason, dict(letter.envelope.headers))
                for letter in self.place.dead_letters
            ]

    return Suite()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(kit, "PATIENCE", 1.0)
    monkeypatch.setattr(suite, "_CASE_TIMEOUT", 5.0)


@pytest.mark.parametrize(("transport", "case"), BROKEN)
def test_a_broken_transport_is_found_out(transport, case, impatient):
    if case == "giving_back_holds_up_nothing_else":
        kit.PATIENCE = 5.0  # the case itself takes three seconds; the fixture puts it back
    with pytest.raises((Exception, pytest.fail.Exception)) as found:
        getattr(suite_of(transport), f"test_{case}")()
    assert not isinstance(found.value, NotImplementedError)


def test_every_case_is_proven_by_a_broken_transport():
    proven = {case for _, case in BROKEN}
    # In memory nothing can be put on the wire but envelopes; the transport for brokers proves this one.
    assert {case.__name__ for case in CASES} - proven == {"what_is_no_envelope_is_put_aside_by_the_transport"}
    assert all(hasattr(cases, case) for case in proven)

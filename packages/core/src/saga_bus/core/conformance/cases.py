"""The rules that a transport must keep, each a case."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from saga_bus.core.conformance.kit import QUIET, Kit, Listener, must, same, until
from saga_bus.core.envelope import Envelope
from saga_bus.core.errors import TransportClosedError
from saga_bus.core.transport import Delivery

__all__ = ["CASES"]

_BODY = b'{"text":"\xc3\xa4\xe2\x82\xac \xf0\x9f\x90\x98","zero":"\\u0000"}'
_HEADERS = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "own": "ä€ 🐘", "empty": ""}


async def publish_reaches_every_endpoint_that_listens(kit: Kit) -> None:
    """A published message reaches each endpoint that listens to its name once, and no other endpoint."""
    name, other = kit.name("event"), kit.name("event")
    first, second, third = Listener(), Listener(), Listener()
    client = await kit.client()
    await client.listen(kit.name("endpoint"), [name], first, concurrency=2)
    await client.listen(kit.name("endpoint"), [other, name], second, concurrency=2)
    await client.listen(kit.name("endpoint"), [other], third, concurrency=2)
    envelope = kit.envelope(name)
    await client.publish(envelope)
    await first.has(1)
    await second.has(1)
    await asyncio.sleep(QUIET)
    same((first.ids, second.ids, third.ids), ([envelope.id], [envelope.id], []))


async def publish_without_a_listener_is_no_error(kit: Kit) -> None:
    """A message that nobody listens to is no error for the one who publishes it."""
    await (await kit.client()).publish(kit.envelope(kit.name("event")))


async def send_reaches_one_endpoint(kit: Kit) -> None:
    """A message that is sent reaches its endpoint and no other one, whatever the others listen to."""
    name = kit.name("command")
    target, bystander = Listener(), Listener()
    client = await kit.client()
    endpoint = kit.name("endpoint")
    await client.listen(endpoint, [], target, concurrency=1)
    await client.listen(kit.name("endpoint"), [name], bystander, concurrency=1)
    envelope = kit.envelope(name)
    await client.send(endpoint, envelope)
    await target.has(1)
    await asyncio.sleep(QUIET)
    same((target.ids, bystander.ids), ([envelope.id], []))


async def an_envelope_arrives_whole(kit: Kit) -> None:
    """Id, name, bytes, moment and headers arrive as they were sent, published or sent."""
    name, endpoint = kit.name("event"), kit.name("endpoint")
    listener = Listener()
    client = await kit.client()
    await client.listen(endpoint, [name], listener, concurrency=1)
    envelope = Envelope(
        id="an id: with/odd #chars",
        name=name,
        body=_BODY,
        sent_at=datetime(2024, 2, 29, 23, 59, 59, 123_456, tzinfo=UTC),
        headers=_HEADERS,
    )
    await client.publish(envelope)
    await listener.has(1)
    await client.send(endpoint, envelope)
    await listener.has(2)
    same(listener.received, [envelope, envelope])
    same(listener.attempts, [1, 1])


async def a_large_message_arrives(kit: Kit) -> None:
    """A body of 200 KB arrives unchanged."""
    name = kit.name("event")
    listener = Listener()
    client = await kit.client()
    await client.listen(kit.name("endpoint"), [name], listener, concurrency=1)
    body = b'"' + bytes(33 + number % 50 if number % 50 != 1 else 97 for number in range(200_000)) + b'"'
    await client.publish(kit.envelope(name, body=body))
    await listener.has(1)
    same(listener.received[0].body, body)


async def those_on_one_endpoint_compete(kit: Kit) -> None:
    """Of two clients that listen on one endpoint, each message goes to one, and both get some."""
    name, endpoint = kit.name("event"), kit.name("endpoint")

    async def slowly(delivery: Delivery) -> None:
        await asyncio.sleep(0.01)
        await delivery.ack()

    listeners = [Listener(slowly), Listener(slowly)]
    for listener in listeners:
        await (await kit.client()).listen(endpoint, [name], listener, concurrency=1)
    publisher = await kit.client()
    envelopes = [kit.envelope(name) for _ in range(60)]
    for envelope in envelopes:
        await publisher.publish(envelope)
    await until(lambda: sum(len(listener.received) for listener in listeners) >= 60, "60 deliveries")
    await asyncio.sleep(QUIET)
    same(sorted(listeners[0].ids + listeners[1].ids), sorted(envelope.id for envelope in envelopes))
    must(all(listener.received for listener in listeners), "both clients get some")


async def concurrency_is_a_bound_and_is_used(kit: Kit) -> None:
    """So many deliveries are in hand at once as were asked for, and never more."""
    name = kit.name("event")
    gate = asyncio.Event()

    async def wait(delivery: Delivery) -> None:
        await gate.wait()
        await delivery.ack()

    listener = Listener(wait)
    client = await kit.client()
    await client.listen(kit.name("endpoint"), [name], listener, concurrency=3)
    for _ in range(8):
        await client.publish(kit.envelope(name))
    await listener.has(3)
    await asyncio.sleep(QUIET)
    same(listener.most, 3)
    gate.set()
    await listener.has(8)
    same(listener.most, 3)


async def what_is_acknowledged_does_not_come_again(kit: Kit) -> None:
    """An acknowledged message is gone, for the next client too."""
    name, endpoint = kit.name("event"), kit.name("endpoint")
    first, second = Listener(), Listener()
    client = await kit.client()
    await client.listen(endpoint, [name], first, concurrency=1)
    await client.publish(kit.envelope(name))
    await first.has(1)
    await until(lambda: first.now == 0, "the acknowledgement")
    await client.stop_receiving()
    await client.close()
    other = await kit.client()
    await other.listen(endpoint, [name], second, concurrency=1)
    await asyncio.sleep(QUIET)
    same((len(first.ids), second.ids), (1, []))


async def what_is_given_back_comes_again(kit: Kit) -> None:
    """A message given back with ``retry`` comes again, the same one, and its attempt does not fall."""
    name = kit.name("event")

    async def retry_once(delivery: Delivery) -> None:
        if len(listener.received) == 1:
            await delivery.retry(timedelta(milliseconds=50))
        else:
            await delivery.ack()

    listener = Listener(retry_once)
    client = await kit.client()
    await client.listen(kit.name("endpoint"), [name], listener, concurrency=1)
    envelope = kit.envelope(name, body=_BODY, headers=_HEADERS)
    await client.publish(envelope)
    await listener.has(2)
    await asyncio.sleep(QUIET)
    same(listener.received, [envelope, envelope])
    must(listener.attempts[0] == 1 <= listener.attempts[1], f"the attempts are {listener.attempts}")


async def giving_back_holds_up_nothing_else(kit: Kit) -> None:
    """While a message waits for its retry, the others of the endpoint go on."""
    name = kit.name("event")
    delay = 3.0
    given_back: list[float] = []
    came_back = asyncio.Event()

    async def retry_first(delivery: Delivery) -> None:
        if delivery.envelope.id == late.id and not given_back:
            given_back.append(time.monotonic())
            await delivery.retry(timedelta(seconds=delay))
            return
        await delivery.ack()
        if delivery.envelope.id == late.id:
            came_back.set()

    listener = Listener(retry_first)
    client = await kit.client()
    await client.listen(kit.name("endpoint"), [name], listener, concurrency=1)
    late = kit.envelope(name)
    await client.publish(late)
    await listener.has(1)
    others = [kit.envelope(name) for _ in range(5)]
    for envelope in others:
        await client.publish(envelope)
    await until(lambda: {envelope.id for envelope in others} <= set(listener.ids), "the other messages")
    must(time.monotonic() - given_back[0] < delay, "the others do not wait for the retry")
    await until(came_back.is_set, "the message that was given back")


async def a_receiver_that_raises_gets_the_message_again(kit: Kit) -> None:
    """A message whose receiver raises is delivered again."""
    name = kit.name("event")

    async def raise_once(delivery: Delivery) -> None:
        if len(listener.received) == 1:
            raise ValueError("the receiver is broken, once")
        await delivery.ack()

    listener = Listener(raise_once)
    client = await kit.client()
    await client.listen(kit.name("endpoint"), [name], listener, concurrency=1)
    envelope = kit.envelope(name)
    await client.publish(envelope)
    await listener.has(2)
    await asyncio.sleep(QUIET)
    same(listener.ids, [envelope.id, envelope.id])


async def what_is_in_hand_at_the_close_comes_again(kit: Kit) -> None:
    """A message that is in hand when its client is closed goes to another client."""
    name, endpoint = kit.name("event"), kit.name("endpoint")

    async def never(_delivery: Delivery) -> None:
        await asyncio.Event().wait()

    stuck, rescuer = Listener(never), Listener()
    client = await kit.client()
    await client.listen(endpoint, [name], stuck, concurrency=1)
    publisher = await kit.client()
    envelope = kit.envelope(name)
    await publisher.publish(envelope)
    await stuck.has(1)
    await client.close()
    other = await kit.client()
    await other.listen(endpoint, [name], rescuer, concurrency=1)
    await rescuer.has(1)
    same(rescuer.ids, [envelope.id])


async def messages_wait_for_a_listener_that_is_away(kit: Kit) -> None:
    """An endpoint that was listened on keeps its messages while nobody listens, published and sent ones."""
    name, endpoint = kit.name("event"), kit.name("endpoint")
    client = await kit.client()
    await client.listen(endpoint, [name], Listener(), concurrency=1)
    await client.stop_receiving()
    await client.close()
    publisher = await kit.client()
    published, sent = kit.envelope(name), kit.envelope(name)
    await publisher.publish(published)
    await publisher.send(endpoint, sent)
    back = Listener()
    await (await kit.client()).listen(endpoint, [name], back, concurrency=1)
    await back.has(2)
    same(sorted(back.ids), sorted([published.id, sent.id]))


async def a_dead_letter_does_not_come_again(kit: Kit) -> None:
    """A message that is put aside is not delivered any more, and holds up no other."""
    name = kit.name("event")

    async def put_aside(delivery: Delivery) -> None:
        if delivery.envelope.id == bad.id:
            await delivery.dead_letter("it is bad", {"error": "ValueError", "traceback": "line 1\nline 2: ä"})
        else:
            await delivery.ack()

    listener = Listener(put_aside)
    client = await kit.client()
    await client.listen(kit.name("endpoint"), [name], listener, concurrency=1)
    bad, good = kit.envelope(name), kit.envelope(name)
    await client.publish(bad)
    await client.publish(good)
    await listener.has(2)
    await asyncio.sleep(QUIET)
    same(sorted(listener.ids), sorted([bad.id, good.id]))


async def a_dead_letter_keeps_bytes_headers_and_reason(kit: Kit) -> None:
    """A message that is put aside keeps its bytes and headers, and the reason stands with it."""
    name, endpoint = kit.name("event"), kit.name("endpoint")

    async def put_aside(delivery: Delivery) -> None:
        await delivery.dead_letter("it is bad", {"error": "ValueError", "traceback": "line 1\nline 2: ä"})

    client = await kit.client()
    await client.listen(endpoint, [name], Listener(put_aside), concurrency=1)
    await client.publish(kit.envelope(name, body=_BODY, headers=_HEADERS))
    (found,) = await kit.put_aside(endpoint, 1)
    same(found.body, _BODY)
    must("it is bad" in found.reason, f"the reason is {found.reason!r}")
    same({name: found.headers.get(name) for name in _HEADERS}, _HEADERS)


async def what_is_no_envelope_is_put_aside_by_the_transport(kit: Kit) -> None:
    """Bytes that are no message of the bus's go to the dead letters as they are, and hold up no other."""
    name, endpoint = kit.name("event"), kit.name("endpoint")
    listener = Listener()
    client = await kit.client()
    await client.listen(endpoint, [name], listener, concurrency=1)
    await kit.put_garbage(endpoint, b"\x00\xff no message")
    envelope = kit.envelope(name)
    await client.publish(envelope)
    (found,) = await kit.put_aside(endpoint, 1)
    await listener.has(1)
    same(listener.ids, [envelope.id])
    same(found.body, b"\x00\xff no message")
    must(bool(found.reason), "a reason stands with it")


async def stop_receiving_lets_what_is_in_hand_end(kit: Kit) -> None:
    """After ``stop_receiving`` nothing new comes, and what is in hand can be acknowledged; the rest is for others."""
    name, endpoint = kit.name("event"), kit.name("endpoint")
    gate = asyncio.Event()

    async def wait(delivery: Delivery) -> None:
        await gate.wait()
        await delivery.ack()

    listener, other = Listener(wait), Listener()
    client = await kit.client()
    await client.listen(endpoint, [name], listener, concurrency=1)
    first, second = kit.envelope(name), kit.envelope(name)
    await client.publish(first)
    await listener.has(1)
    await client.stop_receiving()
    await client.publish(second)
    gate.set()
    await until(lambda: listener.now == 0, "the end of what was in hand")
    await asyncio.sleep(QUIET)
    same(listener.ids, [first.id])
    await client.close()
    await (await kit.client()).listen(endpoint, [name], other, concurrency=1)
    await other.has(1)
    await asyncio.sleep(QUIET)
    same(other.ids, [second.id])


async def many_messages_arrive_from_many(kit: Kit) -> None:
    """Messages of several clients at once all arrive."""
    name = kit.name("event")
    listener = Listener()
    await (await kit.client()).listen(kit.name("endpoint"), [name], listener, concurrency=20)
    envelopes = [kit.envelope(name) for _ in range(300)]
    for number in range(3):
        client = await kit.client()
        await asyncio.gather(*(client.publish(envelope) for envelope in envelopes[number::3]))
    await until(lambda: len(set(listener.ids)) == 300, "all messages")


async def a_receiver_may_publish(kit: Kit) -> None:
    """A receiver publishes and sends on the client that it was called by, before it acknowledges."""
    asked, answered, endpoint = kit.name("event"), kit.name("event"), kit.name("endpoint")
    client = await kit.client()

    async def answer(delivery: Delivery) -> None:
        await client.publish(kit.envelope(answered))
        await client.send(endpoint, kit.envelope(answered))
        await delivery.ack()

    answers = Listener()
    await client.listen(endpoint, [answered], answers, concurrency=1)
    await client.listen(kit.name("endpoint"), [asked], Listener(answer), concurrency=1)
    await client.publish(kit.envelope(asked))
    await answers.has(2)


async def starting_and_closing_twice_is_no_error(kit: Kit) -> None:
    """``start`` and ``close`` may be called again, and ``close`` without a start."""
    client = await kit.client()
    await client.start()
    await client.close()
    await client.close()
    await (await kit.bare()).close()


async def use_after_the_close_is_refused(kit: Kit) -> None:
    """A closed client says so, with `TransportClosedError`."""
    client = await kit.client()
    await client.close()
    envelope, endpoint = kit.envelope(kit.name("event")), kit.name("endpoint")
    calls: tuple[Callable[[], Awaitable[None]], ...] = (
        lambda: client.publish(envelope),
        lambda: client.send(endpoint, envelope),
        lambda: client.listen(endpoint, [], Listener(), concurrency=1),
    )
    for call in calls:
        with pytest.raises(TransportClosedError):
            await call()


async def a_confirmed_message_survives_its_sender(kit: Kit) -> None:
    """When ``publish`` has returned, the message arrives although its client is closed at once."""
    name, endpoint = kit.name("event"), kit.name("endpoint")
    listener = Listener()
    await (await kit.client()).listen(endpoint, [name], listener, concurrency=1)
    envelopes = []
    for _ in range(5):
        client = await kit.client()
        envelopes.append(kit.envelope(name))
        await client.publish(envelopes[-1])
        await client.close()
    await listener.has(5)
    same(sorted(listener.ids), sorted(envelope.id for envelope in envelopes))


async def closing_does_not_wait_for_what_never_ends(kit: Kit) -> None:
    """``close`` returns while a receiver hangs."""
    name = kit.name("event")

    async def never(_delivery: Delivery) -> None:
        await asyncio.Event().wait()

    stuck = Listener(never)
    client = await kit.client()
    await client.listen(kit.name("endpoint"), [name], stuck, concurrency=1)
    await client.publish(kit.envelope(name))
    await stuck.has(1)
    started = time.monotonic()
    await client.close()
    must(time.monotonic() - started < 30, "close() returns")


CASES: tuple[Callable[[Kit], Awaitable[None]], ...] = (
    publish_reaches_every_endpoint_that_listens,
    publish_without_a_listener_is_no_error,
    send_reaches_one_endpoint,
    an_envelope_arrives_whole,
    a_large_message_arrives,
    those_on_one_endpoint_compete,
    concurrency_is_a_bound_and_is_used,
    what_is_acknowledged_does_not_come_again,
    what_is_given_back_comes_again,
    giving_back_holds_up_nothing_else,
    a_receiver_that_raises_gets_the_message_again,
    what_is_in_hand_at_the_close_comes_again,
    messages_wait_for_a_listener_that_is_away,
    a_dead_letter_does_not_come_again,
    a_dead_letter_keeps_bytes_headers_and_reason,
    what_is_no_envelope_is_put_aside_by_the_transport,
    stop_receiving_lets_what_is_in_hand_end,
    many_messages_arrive_from_many,
    a_receiver_may_publish,
    starting_and_closing_twice_is_no_error,
    use_after_the_close_is_refused,
    a_confirmed_message_survives_its_sender,
    closing_does_not_wait_for_what_never_ends,
)

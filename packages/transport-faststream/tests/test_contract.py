"""What this transport promises beyond the conformance cases, on each broker."""

import asyncio
from datetime import timedelta

import pytest

from brokers.inspection import dead_letters, put_rubbish
from saga_bus.core import TransportClosedError, TransportError
from transport_places import Inbox, envelope

QUIET = 0.4  # seconds in which nothing more may come


def test_names_of_any_characters_stay_apart(place):
    async def run():
        names = ["Order.Placed", "Order Placed", "order placed", "Order*", "Order>", "注文", "x" * 200, "x" * 201]
        async with place.transports(1) as (transport,):
            inboxes = {name: Inbox() for name in names}
            for name, inbox in inboxes.items():
                await transport.listen(place.endpoint(name), [name], inbox.receive, concurrency=1)
            await asyncio.gather(*(transport.publish(envelope(name, name.encode())) for name in names))
            await asyncio.gather(*(transport.send(name, envelope("Sent", name.encode())) for name in names))
            await asyncio.gather(*(inbox.wait(2) for inbox in inboxes.values()))
            for name, inbox in inboxes.items():
                assert [delivery.envelope.body for delivery in inbox.got] == [name.encode()] * 2

    asyncio.run(run())


def test_no_more_are_in_hand_at_once_than_allowed_and_prefetching_does_not_change_that(place):
    async def run(prefetch):
        async with place.transports(1, prefetch=prefetch) as (transport,):
            now = most = 0

            async def slowly(delivery):
                nonlocal now, most
                now += 1
                most = max(most, now)
                await asyncio.sleep(0.02)
                now -= 1
                await delivery.ack()

            inbox = Inbox(slowly)
            name = place.endpoint(f"Slow{prefetch}")
            await transport.listen(name, [], inbox.receive, concurrency=3)
            await asyncio.gather(*(transport.send(name, envelope()) for _ in range(24)))
            await inbox.wait(24)
            await asyncio.sleep(0.1)
            assert most == 3

    asyncio.run(run(0))
    asyncio.run(run(8))


def test_what_is_not_acknowledged_comes_again_elsewhere_when_its_transport_closes(place):
    async def run():
        async with place.transports(2) as (sender, second):
            stuck = asyncio.Event()
            first = place.transport()
            await first.start()
            holder, finisher = Inbox(lambda _: stuck.wait()), Inbox()
            await first.listen(place.endpoint("Work"), ["OrderPlaced"], holder.receive, concurrency=1)
            message = envelope()
            await sender.publish(message)
            await holder.wait(1)
            await asyncio.sleep(place.redeliver_after.total_seconds() * 2)
            assert holder.ids == [message.id]  # in hand it does not come again, however long it takes
            await first.close()
            await second.listen("Work", ["OrderPlaced"], finisher.receive, concurrency=1)
            await finisher.wait(1)
            assert finisher.got[0].envelope == message
            await asyncio.sleep(place.redeliver_after.total_seconds() * 1.5)
            assert finisher.ids == [message.id]  # acknowledged, it does not come again

    asyncio.run(run())


def test_a_retry_comes_again_not_before_its_delay_and_lets_the_others_pass(place):
    async def run():
        loop = asyncio.get_running_loop()
        times = []

        async def second_time(delivery):
            if delivery.envelope.headers.get("again"):
                times.append(loop.time())
                if len(times) < 3:
                    await delivery.retry(timedelta(seconds=0.3 if len(times) == 1 else 0))
                    return
            await delivery.ack()

        async with place.transports(1) as (transport,):
            inbox = Inbox(second_time)
            await transport.listen(place.endpoint("Retrying"), ["OrderPlaced"], inbox.receive, concurrency=1)
            again, other = envelope(again="yes", traceparent="00-aa-bb-01"), envelope()
            await transport.publish(again)
            await inbox.wait(1)
            await transport.publish(other)
            await inbox.wait(4)
            assert inbox.ids == [again.id, other.id, again.id, again.id]
            assert times[1] - times[0] >= 0.3
            assert [delivery.envelope for delivery in inbox.got if delivery.envelope.id == again.id] == [again] * 3
            assert [delivery.attempt for delivery in inbox.got] == [1, 1, 2, 3]

    asyncio.run(run())


def test_a_dead_letter_keeps_its_bytes_its_headers_and_the_reason(place):
    async def run():
        async def bury(delivery):
            await delivery.dead_letter("it is broken", {"traceback": "x" * 100_000, "saga-id": "1", "name": "Zoë"})

        async with place.transports(1) as (transport,):
            inbox = Inbox(bury)
            await transport.listen(place.endpoint("Bury Me"), ["OrderPlaced"], inbox.receive, concurrency=1)
            message = envelope(body=b'{"price": 1.10}', traceparent="00-aa-bb-01")
            await transport.publish(message)
            await inbox.wait(1)
            await asyncio.sleep(QUIET)
        (letter,) = await dead_letters(place.url, place.prefix, "Bury Me")
        assert letter.body == message.body
        assert letter.headers["traceparent"] == "00-aa-bb-01"
        assert message.id in letter.headers["saga-bus"]
        assert (letter.note["reason"], letter.note["endpoint"]) == ("it is broken", "Bury Me")
        assert letter.note["attempt"] == 1
        assert letter.note["details"]["name"] == "Zoë"
        assert letter.note["details"]["traceback"].startswith("x" * 1000)
        async with place.transports(1) as (transport,):
            again = Inbox()
            await transport.listen("Bury Me", ["OrderPlaced"], again.receive, concurrency=1)
            await asyncio.sleep(place.redeliver_after.total_seconds() * 1.5)
            assert again.got == []

    asyncio.run(run())


RUBBISH = [
    (b"\x00\xff not an envelope", {}),
    (b"{}", {"saga-bus": "{"}),
    (b"{}", {"saga-bus": '{"id":"1","name":"OrderPlaced"}'}),
    (b"{}", {"saga-bus": '{"id":1,"name":"OrderPlaced","sent_at":"2026-01-01T00:00:00Z"}'}),
    (b"{}", {"saga-bus": '{"id":"1","name":"OrderPlaced","sent_at":"2026-01-01T00:00:00"}'}),
    (b"", {"saga-bus": "null", "traceparent": "00-aa-bb-01"}),
]


def test_what_is_no_envelope_is_dead_lettered_with_its_bytes(place):
    async def run():
        async with place.transports(1) as (transport,):
            inbox = Inbox()
            await transport.listen(place.endpoint("Rubbish"), [], inbox.receive, concurrency=2)
            for body, headers in RUBBISH:
                await put_rubbish(place.url, place.prefix, "Rubbish", body, headers)
            message = envelope()
            await transport.send("Rubbish", message)
            await inbox.wait(1)
            assert inbox.ids == [message.id]
            async with asyncio.timeout(30):
                while len(letters := await dead_letters(place.url, place.prefix, "Rubbish")) < len(RUBBISH):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        assert sorted(letter.body for letter in letters) == sorted(body for body, _ in RUBBISH)
        assert all(letter.note["reason"].startswith("no envelope: ") for letter in letters)
        assert [letter.headers["traceparent"] for letter in letters if "traceparent" in letter.headers] == [
            "00-aa-bb-01"
        ]

    asyncio.run(run())


def test_an_ended_delivery_cannot_be_ended_again(place):
    async def run():
        async with place.transports(1) as (transport,):
            inbox = Inbox()
            await transport.listen(place.endpoint("Once"), [], inbox.receive, concurrency=1)
            await transport.send("Once", envelope())
            await inbox.wait(1)
            async with asyncio.timeout(10):
                while not inbox.got[0].is_ended:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            for again in (
                inbox.got[0].ack,
                lambda: inbox.got[0].retry(timedelta(0)),
                lambda: inbox.got[0].dead_letter("x", {}),
            ):
                with pytest.raises(TransportError, match="ended already"):
                    await again()

    asyncio.run(run())


def test_what_is_sent_to_an_endpoint_that_nobody_ever_listened_to_waits_for_its_listener(place):
    async def run():
        async with place.transports(1) as (transport,):
            message = envelope()
            await transport.send(place.endpoint("Later"), message)
            inbox = Inbox()
            await transport.listen("Later", [], inbox.receive, concurrency=1)
            await inbox.wait(1)
            assert inbox.ids == [message.id]

    asyncio.run(run())


def test_nothing_is_carried_before_the_start(place):
    async def run():
        transport = place.transport()
        for work in (
            transport.publish(envelope()),
            transport.send("Nowhere", envelope()),
            transport.listen("Nowhere", [], Inbox().receive, concurrency=1),
        ):
            with pytest.raises(TransportClosedError):
                await work
        await transport.stop_receiving()

    asyncio.run(run())

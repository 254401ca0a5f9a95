"""What every transport promises, on each broker."""

import asyncio
from datetime import timedelta

import pytest

from brokers.inspection import dead_letters, put_rubbish
from saga_bus.core import Transport, TransportClosedError
from saga_bus.transport_faststream._names import broker_name
from transport_places import Inbox, envelope

QUIET = 0.4  # seconds in which nothing more may come


def test_a_publication_reaches_each_endpoint_that_listens_once(place):
    async def run():
        async with place.transports(2) as (sender, receiver):
            assert isinstance(sender, Transport)
            first, second, other = Inbox(), Inbox(), Inbox()
            await receiver.listen(place.endpoint("First"), ["OrderPlaced", "Other"], first.receive, concurrency=2)
            await receiver.listen(place.endpoint("Second"), ["OrderPlaced"], second.receive, concurrency=2)
            await receiver.listen(place.endpoint("Third"), ["Unheard"], other.receive, concurrency=2)
            message = envelope(body='{"name": "Zoë"}'.encode(), traceparent="00-aa-bb-01", mine="ü\n\t\x00 %20")
            await sender.publish(message)
            await sender.publish(envelope("NobodyListens"))
            await first.wait(1)
            await second.wait(1)
            await asyncio.sleep(QUIET)
            assert [delivery.envelope for delivery in first.got] == [message]
            assert [delivery.envelope for delivery in second.got] == [message]
            assert first.got[0].attempt == 1
            assert other.got == []

    asyncio.run(run())


def test_a_sent_message_reaches_one_endpoint_even_one_that_nobody_listens_to_yet(place):
    async def run():
        async with place.transports(2) as (sender, receiver):
            mine, others = Inbox(), Inbox()
            message = envelope()
            await sender.send(place.endpoint("Mine"), message)
            await receiver.listen("Mine", ["OrderPlaced"], mine.receive, concurrency=1)
            await receiver.listen(place.endpoint("Others"), ["OrderPlaced"], others.receive, concurrency=1)
            await mine.wait(1)
            await asyncio.sleep(QUIET)
            assert mine.ids == [message.id]
            assert others.got == []

    asyncio.run(run())


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


def test_workers_on_one_endpoint_compete(place):
    async def run():
        async with place.transports(3) as transports:
            inboxes = [Inbox(), Inbox()]
            for transport, inbox in zip(transports, inboxes, strict=False):
                await transport.listen(place.endpoint("Shared"), ["OrderPlaced"], inbox.receive, concurrency=2)
            messages = [envelope() for _ in range(60)]
            await asyncio.gather(*(transports[2].publish(message) for message in messages))
            async with asyncio.timeout(30):
                while len(inboxes[0].got) + len(inboxes[1].got) < len(messages):
                    await asyncio.sleep(0.01)
            await asyncio.sleep(QUIET)
            assert sorted(inboxes[0].ids + inboxes[1].ids) == sorted(message.id for message in messages)
            assert inboxes[0].got
            assert inboxes[1].got

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


def test_a_receiver_that_raises_gets_the_message_again(place):
    async def run():
        async def fails_once(delivery):
            if delivery.attempt == 1:
                raise LookupError("as the test wants it")
            await delivery.ack()

        async with place.transports(1) as (transport,):
            inbox = Inbox(fails_once)
            await transport.listen(place.endpoint("Failing"), ["OrderPlaced"], inbox.receive, concurrency=1)
            message = envelope()
            await transport.publish(message)
            await inbox.wait(2)
            await asyncio.sleep(QUIET)
            assert inbox.ids == [message.id] * 2

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
        (letter,) = await dead_letters(place.url, place.prefix, broker_name("Bury Me", "." if place.is_kafka else "@"))
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
                while len(letters := await dead_letters(place.url, place.prefix, "Rubbish")) < len(RUBBISH):
                    await asyncio.sleep(0.05)
        assert sorted(letter.body for letter in letters) == sorted(body for body, _ in RUBBISH)
        assert all(letter.note["reason"].startswith("no envelope: ") for letter in letters)
        assert [letter.headers["traceparent"] for letter in letters if "traceparent" in letter.headers] == ["00-aa-bb-01"]

    asyncio.run(run())


def test_after_stop_receiving_nothing_new_comes_and_what_is_in_hand_can_be_ended(place):
    async def run():
        async with place.transports(2) as (sender, receiver):
            go = asyncio.Event()

            async def later(delivery):
                await go.wait()
                await delivery.ack()

            inbox = Inbox(later)
            await receiver.listen(place.endpoint("Stopping"), ["OrderPlaced"], inbox.receive, concurrency=2)
            first, second = envelope(), envelope()
            await sender.publish(first)
            await inbox.wait(1)
            await receiver.stop_receiving()
            await sender.publish(second)
            await asyncio.sleep(QUIET)
            assert inbox.ids == [first.id]
            go.set()
            async with asyncio.timeout(10):
                while not inbox.got[0].is_ended:
                    await asyncio.sleep(0.01)
            await receiver.stop_receiving()
            await receiver.close()
            fresh = Inbox()
            await sender.listen("Stopping", ["OrderPlaced"], fresh.receive, concurrency=2)
            await fresh.wait(1)
            await asyncio.sleep(place.redeliver_after.total_seconds() * 1.5)
            assert fresh.ids == [second.id]

    asyncio.run(run())


def test_a_life_that_is_over_or_has_not_begun(place):
    async def run():
        transport = place.transport()
        for work in (
            lambda: transport.publish(envelope()),
            lambda: transport.send("Nowhere", envelope()),
            lambda: transport.listen("Nowhere", [], Inbox().receive, concurrency=1),
        ):
            with pytest.raises(TransportClosedError):
                await work()
        await transport.stop_receiving()
        await transport.start()
        await transport.start()
        await transport.publish(envelope())
        await transport.close()
        await transport.close()
        with pytest.raises(TransportClosedError):
            await transport.publish(envelope())
        with pytest.raises(TransportClosedError):
            await transport.start()

    asyncio.run(run())


def test_an_ended_delivery_cannot_be_ended_again(place):
    async def run():
        async with place.transports(1) as (transport,):
            inbox = Inbox()
            await transport.listen(place.endpoint("Once"), [], inbox.receive, concurrency=1)
            await transport.send("Once", envelope())
            await inbox.wait(1)
            async with asyncio.timeout(10):
                while not inbox.got[0].is_ended:
                    await asyncio.sleep(0.01)
            for again in (
                inbox.got[0].ack,
                lambda: inbox.got[0].retry(timedelta(0)),
                lambda: inbox.got[0].dead_letter("x", {}),
            ):
                with pytest.raises(Exception, match="ended already"):
                    await again()

    asyncio.run(run())


def test_large_messages_and_many_of_them(place):
    async def run():
        async with place.transports(1) as (transport,):
            inbox = Inbox()
            await transport.listen(place.endpoint("Large"), ["OrderPlaced"], inbox.receive, concurrency=16)
            messages = [envelope(body=b'"' + b"x" * 200_000 + b'"') for _ in range(5)] + [envelope() for _ in range(300)]
            await asyncio.gather(*(transport.publish(message) for message in messages))
            await inbox.wait(len(messages))
            assert {delivery.envelope.id: delivery.envelope for delivery in inbox.got} == {
                message.id: message for message in messages
            }

    asyncio.run(run())

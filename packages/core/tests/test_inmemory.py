"""What the in-memory transport has beyond the protocol: draining, faults on purpose, dead letters to look at."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from saga_bus.core import Envelope, InMemoryTransport


def envelope(number=0):
    return Envelope(id=str(number), name="Event", body=b"{}", sent_at=datetime.now(UTC))


async def ack(delivery):
    await delivery.ack()


def test_drain_waits_for_what_is_queued_in_hand_and_delayed_and_for_what_comes_of_it():
    async def main():
        transport, done = InMemoryTransport(latency=timedelta(milliseconds=5), seed=1), []

        async def first(delivery):
            await asyncio.sleep(0.005)
            if delivery.attempt == 1:
                await delivery.retry(timedelta(milliseconds=10))
                return
            await transport.send("second", delivery.envelope)
            await delivery.ack()

        async def second(delivery):
            await asyncio.sleep(0.005)
            done.append(delivery.envelope.id)
            await delivery.ack()

        await transport.listen("first", ["Event"], first, concurrency=2)
        await transport.listen("second", [], second, concurrency=2)
        await transport.drain()  # nothing to wait for
        for number in range(10):
            await transport.publish(envelope(number))
        await transport.drain()
        assert sorted(done, key=int) == [str(number) for number in range(10)]
        await transport.close()

    asyncio.run(main())


def test_drain_does_not_wait_for_what_nobody_listens_for():
    async def main():
        transport = InMemoryTransport()
        await transport.send("nobody", envelope())
        await asyncio.wait_for(transport.drain(), 5)
        assert transport.waiting("nobody") == 1

    asyncio.run(main())


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 200, 200), (0.5, 250, 350), (1.0, 400, 400)])
def test_duplicates_on_purpose(share, least, most):
    async def main():
        transport, got = InMemoryTransport(duplicates=share, seed=7), []

        async def receive(delivery):
            got.append(delivery.envelope.id)
            await delivery.ack()

        await transport.listen("e", ["Event"], receive, concurrency=1)
        for number in range(200):
            await transport.publish(envelope(number))
        await transport.drain()
        assert least <= len(got) <= most
        assert len(set(got)) == 200
        await transport.close()

    asyncio.run(main())


def test_latency_lets_messages_overtake_each_other_and_a_seed_repeats_it():
    async def main(seed):
        transport, got = InMemoryTransport(latency=timedelta(milliseconds=20), seed=seed), []

        async def receive(delivery):
            got.append(int(delivery.envelope.id))
            await delivery.ack()

        await transport.listen("e", ["Event"], receive, concurrency=1)
        for number in range(50):
            await transport.publish(envelope(number))
        await transport.drain()
        await transport.close()
        return got

    got = asyncio.run(main(1))
    assert sorted(got) == list(range(50)) != got


def test_a_retry_waits_for_its_delay():
    async def main():
        transport, moments = InMemoryTransport(), []

        async def receive(delivery):
            moments.append(asyncio.get_running_loop().time())
            if delivery.attempt == 1:
                await delivery.retry(timedelta(milliseconds=50))
            else:
                await delivery.ack()

        await transport.listen("e", ["Event"], receive, concurrency=1)
        await transport.publish(envelope())
        await transport.drain()
        assert moments[1] - moments[0] >= 0.05
        await transport.close()

    asyncio.run(main())


def test_a_delivery_ends_once():
    async def main():
        transport, errors = InMemoryTransport(), []

        async def receive(delivery):
            await delivery.ack()
            for again in (delivery.ack(), delivery.retry(timedelta(0)), delivery.dead_letter("x", {})):
                with pytest.raises(RuntimeError, match="ended before") as caught:
                    await again
                errors.append(caught.value)

        await transport.listen("e", ["Event"], receive, concurrency=1)
        await transport.publish(envelope())
        await transport.drain()
        assert (len(errors), transport.dead_letters, transport.waiting("e")) == (3, [], 0)
        await transport.close()

    asyncio.run(main())


def test_what_is_sent_and_put_aside_can_be_looked_at():
    async def main():
        transport = InMemoryTransport()

        async def refuse(delivery):
            await delivery.dead_letter("no", {"error": "E"})

        await transport.listen("e", ["Event"], refuse, concurrency=1)
        for number in range(1_100):
            await transport.publish(envelope(number))
        await transport.drain()
        assert len(transport.dead_letters) == 1_100
        letter = transport.dead_letters[0]
        assert (letter.endpoint, letter.envelope.id, letter.reason, letter.details) == ("e", "0", "no", {"error": "E"})
        assert [sent.id for sent in transport.sent] == [str(number) for number in range(100, 1_100)]
        await transport.close()

    asyncio.run(main())

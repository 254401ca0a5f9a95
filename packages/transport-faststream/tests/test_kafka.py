"""The parts of the transport on Kafka in one go, on librdkafka's mock cluster where there is no Kafka."""

import asyncio
from datetime import timedelta

import faststream.confluent
import pytest

from brokers import new_prefix
from brokers.inspection import dead_letters, put_rubbish
from saga_bus.transport_faststream import FastStreamTransport
from transport_places import Inbox, envelope, kafka_options


def test_kafka_carries_retries_and_dead_letters(brokers):
    url, prefix = brokers.url("kafka"), new_prefix()
    if not kafka_options(url)["make_topics"] and not hasattr(faststream.confluent, "Topic"):
        pytest.skip("FastStream 0.6 makes all topics itself, which librdkafka's mock cluster does not know")

    async def end(delivery):
        match delivery.envelope.headers.get("do"):
            case "retry" if delivery.attempt == 1:
                await delivery.retry(timedelta(seconds=0.1))
            case "bury":
                await delivery.dead_letter("it is bad", {"saga-id": "1"})
            case _:
                await delivery.ack()

    async def run():
        async with FastStreamTransport(url, prefix=prefix, **kafka_options(url)) as transport:
            inbox = Inbox(end)
            await transport.listen("An.endpoint", ["OrderPlaced"], inbox.receive, concurrency=1)
            published, sent = envelope(traceparent="00-aa-bb-01"), envelope("Sent")
            retried, buried = envelope(do="retry"), envelope(do="bury")
            for message in (published, retried, buried):
                await transport.publish(message)
            await transport.send("An.endpoint", sent)
            await put_rubbish(url, prefix, "An.endpoint", b"\xff", {})
            await inbox.wait(5)
            assert sorted(inbox.ids) == sorted([published.id, sent.id, buried.id, retried.id, retried.id])
            assert [delivery.attempt for delivery in inbox.got if delivery.envelope == retried] == [1, 2]
            assert [delivery.envelope for delivery in inbox.got if delivery.envelope.id == published.id] == [published]
            async with asyncio.timeout(30):
                while len(letters := await dead_letters(url, prefix, "An.endpoint")) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        assert sorted((letter.body, letter.note["reason"]) for letter in letters) == [
            (b"{}", "it is bad"),
            (b"\xff", "no envelope: there is no header 'saga-bus'"),
        ]

    asyncio.run(run())

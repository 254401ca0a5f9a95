"""How a transport is made, on a URL or on a broker that is given, and what is refused."""

import asyncio
import sys
from datetime import timedelta

import nats
import pytest
from faststream.confluent import KafkaBroker
from faststream.nats import NatsBroker
from faststream.rabbit import Channel, RabbitBroker
from faststream.redis import RedisBroker
from nats.js.api import RetentionPolicy, StreamConfig

from brokers import new_prefix
from brokers.inspection import remove
from saga_bus.core import ConfigurationError, Transport, TransportError
from saga_bus.transport_faststream import FastStreamTransport
from transport_places import Inbox, envelope

BROKERS = {"rabbitmq": RabbitBroker, "nats": NatsBroker, "redis-streams": RedisBroker, "kafka": KafkaBroker}


def broker_at(place, **options):
    return BROKERS[place.kind](place.url.removeprefix("kafka://"), logger=None, **options)


def test_a_broker_that_is_given_is_connected_and_never_closed(place):
    async def run():
        broker = broker_at(place)
        first, second = place.transport(broker=broker), place.transport(broker=broker)
        inbox = Inbox()
        async with first, second:
            await second.listen(place.endpoint("Given"), ["OrderPlaced"], inbox.receive, concurrency=1)
            await first.publish(envelope())
            await inbox.wait(1)
            await first.close()
            await second.publish(envelope())
            await inbox.wait(2)
        async with place.transport(broker=broker) as third:  # closing the others left it open
            await third.publish(envelope())
        assert await broker.ping(timeout=5)
        await broker.stop()

    asyncio.run(run())


def test_a_broker_of_an_application_that_runs_can_be_shared(place):
    async def run():
        broker = broker_at(place)
        async with broker:
            await broker.start()
            async with place.transport(broker=broker) as transport:
                inbox = Inbox()
                await transport.listen(place.endpoint("Shared"), ["OrderPlaced"], inbox.receive, concurrency=1)
                message = envelope()
                await transport.publish(message)
                await inbox.wait(1)
                assert [delivery.envelope for delivery in inbox.got] == [message]

    asyncio.run(run())


def test_publisher_confirms_must_be_on(brokers):
    url, prefix = brokers.url("rabbitmq"), new_prefix()

    async def run():
        broker = RabbitBroker(url, logger=None, default_channel=Channel(publisher_confirms=False))
        async with FastStreamTransport(broker=broker, prefix=prefix) as transport:
            with pytest.raises(TransportError, match="confirms turned off"):
                await transport.publish(envelope())
        await broker.stop()
        await remove(url, prefix, [])

    asyncio.run(run())


def test_a_stream_that_an_administrator_made_is_taken_if_it_fits(brokers):
    url, prefix = brokers.url("nats"), new_prefix()

    async def run():
        client = await nats.connect(url)
        stream = client.jetstream()
        subjects = [f"{prefix}.event.>", f"{prefix}.send.>"]
        await stream.add_stream(StreamConfig(name=prefix, subjects=subjects, max_bytes=1_000_000))
        async with FastStreamTransport(url, prefix=prefix) as transport:
            await transport.publish(envelope())
        assert (await stream.stream_info(prefix)).config.max_bytes == 1_000_000
        for wrong in (
            StreamConfig(name=prefix, subjects=subjects, retention=RetentionPolicy.WORK_QUEUE),
            StreamConfig(name=prefix, subjects=subjects[:1]),
        ):
            await stream.delete_stream(prefix)
            await stream.add_stream(wrong)
            with pytest.raises(TransportError, match="other subjects, or is a work queue"):
                await FastStreamTransport(url, prefix=prefix).start()
        await client.close()
        await remove(url, prefix, [])

    asyncio.run(run())


def test_making_one_opens_nothing():
    for url in ("amqp://127.0.0.1:9", "nats://127.0.0.1:9", "redis://127.0.0.1:9", "rediss://h:9", "kafka://h1:9,h2:9"):
        transport = FastStreamTransport(url)
        assert isinstance(transport, Transport)
        asyncio.run(transport.close())


def test_no_password_is_shown():
    transport = FastStreamTransport("amqp://user:v3ry-s3cret@127.0.0.1:9/")
    assert repr(transport) == "FastStreamTransport(prefix='saga-bus')"
    broker = RabbitBroker("amqp://user:v3ry-s3cret@127.0.0.1:9/", logger=None)
    assert "s3cret" not in repr(FastStreamTransport(broker=broker))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "either a URL or a broker"),
        ({"url": "redis://h", "broker": RedisBroker(logger=None)}, "either a URL or a broker"),
        ({"url": "mqtt://h"}, "'mqtt'.*amqp://"),
        ({"url": "no url"}, "no broker"),
        ({"broker": object()}, "object is none of faststream.rabbit.RabbitBroker"),
        ({"url": "redis://h", "redeliver_after": timedelta(milliseconds=1)}, "redeliver_after"),
        ({"url": "redis://h", "timeout": timedelta(0)}, "timeout"),
        ({"url": "redis://h", "retain": timedelta(0)}, "retain"),
        ({"url": "redis://h", "prefetch": -1}, "prefetch"),
        ({"url": "redis://h", "replicas": 0}, "replicas"),
        ({"url": "redis://h", "partitions": 0}, "partitions"),
    ],
)
def test_what_cannot_work_is_refused(options, words):
    with pytest.raises(ConfigurationError, match=words):
        FastStreamTransport(**options)


def test_a_driver_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "saga_bus.transport_faststream._kafka", raising=False)
    monkeypatch.setitem(sys.modules, "faststream.confluent", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'saga-bus-transport-faststream\[kafka\]'"):
        FastStreamTransport("kafka://127.0.0.1:9")


def test_importing_the_package_imports_no_driver():
    code = (
        "import sys, saga_bus.transport_faststream\n"
        "print([name for name in ('aio_pika', 'nats', 'redis', 'confluent_kafka') if name in sys.modules])"
    )

    async def run():
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
        answer, _ = await process.communicate()
        return answer.decode().strip()

    assert asyncio.run(run()) == "[]"

"""A broker seen with its own client: the dead letters of an endpoint are read, and rubbish is put into it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import nats
import redis.asyncio
from confluent_kafka import Consumer, Producer, TopicPartition

from saga_bus.transport_faststream._names import broker_name

__all__ = ["DeadLetter", "dead_letters", "put_rubbish", "remove"]


@dataclass(frozen=True)
class DeadLetter:
    """One dead letter.

    Args:
        body: Its bytes.
        headers: Its headers.
        note: What the transport wrote about it.
    """

    body: bytes
    headers: dict[str, Any]
    note: dict[str, Any]


async def dead_letters(url: str, prefix: str, endpoint: str) -> Sequence[DeadLetter]:
    """The dead letters of an endpoint, oldest first.

    Args:
        url: The broker.
        prefix: The transport's prefix.
        endpoint: The endpoint's name.
    """
    found = await _READERS[urlsplit(url).scheme](url, prefix, _name(url, endpoint))
    return [DeadLetter(body, headers, json.loads(headers["saga-bus-dead"])) for body, headers in found]


async def put_rubbish(url: str, prefix: str, endpoint: str, body: bytes, headers: dict[str, str]) -> None:
    """Put something into an endpoint as another program would.

    Args:
        url: The broker.
        prefix: The transport's prefix.
        endpoint: The endpoint's name.
        body: Its bytes.
        headers: Its headers.
    """
    await _WRITERS[urlsplit(url).scheme](url, prefix, _name(url, endpoint), body, headers)


async def remove(url: str, prefix: str, endpoints: Sequence[str]) -> None:
    """Remove what a transport made on a broker that others use too.

    Args:
        url: The broker.
        prefix: The transport's prefix.
        endpoints: The names of its endpoints.
    """
    match urlsplit(url).scheme:
        case "amqp":
            connection = await aio_pika.connect(url)
            async with connection:
                channel = await connection.channel()
                for endpoint in (_name(url, endpoint) for endpoint in endpoints):
                    for kind in ("endpoint", "dead"):
                        await channel.queue_delete(f"{prefix}.{kind}.{endpoint}")
                await channel.exchange_delete(f"{prefix}.events")
        case "nats":
            client = await nats.connect(url)
            for stream in (prefix, f"{prefix}-dead"):
                try:
                    await client.jetstream().delete_stream(stream)
                except nats.js.errors.NotFoundError:
                    continue
            await client.close()
        case "redis":
            redis_client = redis.asyncio.from_url(url)
            async for key in redis_client.scan_iter(match=f"{{{prefix}}}:*", count=1000):
                await redis_client.delete(key)
            await redis_client.aclose()


def _name(url: str, endpoint: str) -> str:
    return broker_name(endpoint, "." if url.startswith("kafka") else "@")


Found = list[tuple[bytes, dict[str, Any]]]


async def _rabbit_dead(url: str, prefix: str, endpoint: str) -> Found:
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.get_queue(f"{prefix}.dead.{endpoint}")
        found: Found = []
        while (message := await queue.get(fail=False)) is not None:  # given back when the connection closes
            found.append((message.body, dict(message.headers)))
        return found


async def _nats_dead(url: str, prefix: str, endpoint: str) -> Found:
    client = await nats.connect(url)
    subscription = await client.jetstream().subscribe(
        f"{prefix}.dead.{endpoint}", stream=f"{prefix}-dead", ordered_consumer=True
    )
    found: Found = []
    while True:
        try:
            message = await subscription.next_msg(0.3)
        except TimeoutError:
            break
        found.append((message.data, dict(message.headers or {})))
    await client.close()
    return found


async def _redis_dead(url: str, prefix: str, endpoint: str) -> Found:
    client = redis.asyncio.from_url(url)
    entries = await client.xrange(f"{{{prefix}}}:dead:{endpoint}")
    await client.aclose()
    return [
        (fields.get(b"body", b""), {**json.loads(fields.get(b"headers", b"{}")), "saga-bus-dead": fields[b"dead"]})
        for _, fields in entries
    ]


async def _kafka_dead(url: str, prefix: str, endpoint: str) -> Found:
    address = url.removeprefix("kafka://")
    consumer = Consumer(
        {"bootstrap.servers": address, "group.id": f"{prefix}-reader", "auto.offset.reset": "earliest", "log_level": 0}
    )
    topic = f"{prefix}..dead..{endpoint}"
    metadata = consumer.list_topics(topic, timeout=10)
    found: Found = []
    for number in metadata.topics[topic].partitions:
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)
        consumer.assign([TopicPartition(topic, number, low)])
        for _ in range(high - low):
            message = consumer.poll(10)
            assert message is not None
            headers = {name: (value or b"").decode() for name, value in message.headers() or []}
            found.append((message.value() or b"", headers))
    consumer.close()
    return found


async def _rabbit_put(url: str, prefix: str, endpoint: str, body: bytes, headers: dict[str, str]) -> None:
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        await channel.default_exchange.publish(
            aio_pika.Message(body, headers={**headers, "a-number": 7}), f"{prefix}.endpoint.{endpoint}"
        )


async def _nats_put(url: str, prefix: str, endpoint: str, body: bytes, headers: dict[str, str]) -> None:
    client = await nats.connect(url)
    await client.jetstream().publish(f"{prefix}.send.{endpoint}", body, headers=headers or None)
    await client.close()


async def _redis_put(url: str, prefix: str, endpoint: str, body: bytes, headers: dict[str, str]) -> None:
    client = redis.asyncio.from_url(url)
    await client.xadd(f"{{{prefix}}}:endpoint:{endpoint}", {"body": body, "headers": json.dumps(headers)})
    await client.aclose()


async def _kafka_put(url: str, prefix: str, endpoint: str, body: bytes, headers: dict[str, str]) -> None:
    producer = Producer({"bootstrap.servers": url.removeprefix("kafka://"), "log_level": 0})
    producer.produce(f"{prefix}..send..{endpoint}", body, headers={k: v.encode() for k, v in headers.items()})
    assert producer.flush(10) == 0


_READERS = {"amqp": _rabbit_dead, "nats": _nats_dead, "redis": _redis_dead, "kafka": _kafka_dead}
_WRITERS = {"amqp": _rabbit_put, "nats": _nats_put, "redis": _redis_put, "kafka": _kafka_put}

"""The bus's own conformance cases for transports, on each broker."""

import json
from datetime import timedelta

import pytest

from brokers.inspection import dead_letters, put_rubbish, remove
from saga_bus.core.conformance import PutAside, TransportConformance
from saga_bus.transport_faststream import FastStreamTransport
from transport_places import kafka_options


class BrokerConformance(TransportConformance):
    broker: str

    @pytest.fixture(autouse=True)
    def running(self, broker_url):
        type(self).url = broker_url(self.broker)

    def open_transport(self, namespace):
        return FastStreamTransport(
            self.url, prefix=namespace, redeliver_after=timedelta(seconds=1), **kafka_options(self.url)
        )

    async def dead_letters(self, namespace, endpoint):
        return [
            PutAside(
                letter.body, letter.note["reason"], json.loads(letter.headers.get("saga-bus", "{}")).get("headers", {})
            )
            for letter in await dead_letters(self.url, namespace, endpoint)
        ]

    async def put_garbage(self, namespace, endpoint, body):
        await put_rubbish(self.url, namespace, endpoint, body, {})

    async def clean_up(self, namespace):
        await remove(self.url, namespace, [f"{namespace}.endpoint.{number}" for number in range(1, 10)])


class TestRabbit(BrokerConformance):
    broker = "rabbitmq"


class TestNats(BrokerConformance):
    broker = "nats"


class TestRedis(BrokerConformance):
    broker = "redis-streams"


class TestKafka(BrokerConformance):
    broker = "kafka"


del BrokerConformance, TransportConformance  # pytest would collect the base classes

"""A Kafka of the tests: the mock cluster of librdkafka, which speaks Kafka's protocol on a loopback port.

It lives in a process of its own and forgets all when that ends. It makes topics when they are first used, with the
number of partitions that it was started with, and knows no request that makes them. A real Kafka comes by its URL.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from providers.errors import UnavailableError

__all__ = ["serve_kafka"]

_PROGRAM = """
import sys
from confluent_kafka import Producer
producer = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock", "log_level": 0})
addresses = [f"{broker.host}:{broker.port}" for broker in producer.list_topics(timeout=10).brokers.values()]
print(",".join(addresses), flush=True)
sys.stdin.read()
"""


@contextmanager
def serve_kafka() -> Iterator[str]:
    """Have a mock cluster up for a while; yields its URL."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        addresses = process.stdout.readline().decode().strip()
        if not addresses:
            raise UnavailableError("librdkafka's mock cluster did not start")
        yield f"kafka://{addresses}"
    finally:
        process.stdin.close()
        process.stdout.close()
        process.kill()
        process.wait()

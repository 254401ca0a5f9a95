"""Real brokers for the tests: one provider for each, tried in the same order as those of `providers`.

First comes a broker that ``SAGA_TEST_<BROKER>_URL`` names, then one that listens on its usual port of this machine,
then a private one started from this machine's binaries. Where nothing can be had, tests of the broker are skipped
with the reason, unless ``SAGA_TEST_REQUIRE`` names it. Tests share a broker, each with a prefix of its own.
"""

from __future__ import annotations

import os
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from brokers.kafka import serve_kafka
from brokers.private import PrivateBroker, private_nats, private_rabbitmq, private_redis

__all__ = ["BROKERS", "new_prefix", "serve_broker"]

Serve = Callable[[], AbstractContextManager[str]]


_NATS = 4222


def _local_or_private(url: str, port: int, private: Callable[[Path], PrivateBroker]) -> Serve:
    @contextmanager
    def serving() -> Iterator[str]:
        if _answers(port):
            yield url
            return
        with tempfile.TemporaryDirectory(prefix="saga-bus-broker-", ignore_cleanup_errors=True) as folder:
            broker = private(Path(folder))
            broker.start()
            try:
                yield broker.url
            finally:
                broker.kill()

    return serving


BROKERS: Mapping[str, Serve] = {
    "kafka": serve_kafka,
    "nats": _local_or_private("nats://127.0.0.1:4222", _NATS, private_nats),
    "rabbitmq": _local_or_private("amqp://guest:guest@127.0.0.1:5672/", 5672, private_rabbitmq),
    "redis-streams": _local_or_private("redis://127.0.0.1:6379", 6379, private_redis),
}


@contextmanager
def serve_broker(name: str, environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Have a broker up for a while.

    Args:
        name: As in ``BROKERS``.
        environment: The environment variables.

    Yields:
        Its URL.

    Raises:
        UnavailableError: None can be had here.
    """
    url = environment.get(f"SAGA_TEST_{name.upper().replace('-', '_')}_URL")
    if url:
        yield url
        return
    with BROKERS[name]() as started:
        yield started


def new_prefix() -> str:
    """A prefix that no other test has."""
    return f"t{uuid.uuid4().hex[:12]}"


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            if port != _NATS:
                return True
            connection.settimeout(1)  # it greets with what it can, and may be there without JetStream
            return b'"jetstream":true' in connection.recv(4096)
    except OSError:
        return False

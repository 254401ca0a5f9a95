"""Real brokers for the tests: one provider for each, tried in the same order as those of `providers`.

First comes a broker that ``SAGA_TEST_<BROKER>_URL`` names, then one that listens on its usual port of this machine,
then a container where Docker answers, then a private one started from this machine's binaries. Where nothing can be
had, tests of the broker are skipped with the reason, unless ``SAGA_TEST_REQUIRE`` names it. Tests share a broker, each
with a prefix of its own.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from brokers.kafka import serve_kafka
from brokers.private import PrivateBroker, private_nats, private_rabbitmq, private_redis
from providers.containers import container, docker_answers
from providers.errors import UnavailableError

__all__ = ["BROKERS", "new_prefix", "serve_broker"]

_PATIENCE = 60.0  # seconds


class _Kind(NamedTuple):
    """How a kind of broker is had.

    Args:
        port: Its usual port.
        url: Its URL, with ``{port}``.
        image: The image of a container.
        command: The container's command, instead of the image's own.
        hello: What it answers to.
        answer: What is in the answer of one that takes work.
        private: Makes a private one.
    """

    port: int
    url: str
    image: str
    command: tuple[str, ...]
    hello: bytes
    answer: bytes
    private: Callable[[Path], PrivateBroker]


# NATS greets with what it can, and may be there without JetStream.
_NATS = _Kind(
    4222, "nats://127.0.0.1:{port}", "nats:2.10", ("nats-server", "-js"), b"", b'"jetstream":true', private_nats
)
_RABBITMQ = _Kind(
    5672,
    "amqp://guest:guest@127.0.0.1:{port}/",
    "rabbitmq:4.1",
    (),
    b"AMQP\x00\x00\x09\x01",
    b"AMQPLAIN",
    private_rabbitmq,
)
_REDIS = _Kind(6379, "redis://127.0.0.1:{port}", "redis:8", (), b"PING\r\n", b"PONG", private_redis)


@contextmanager
def _serve(kind: _Kind) -> Iterator[str]:
    if _answers(kind, kind.port):
        yield kind.url.format(port=kind.port)
    elif docker_answers():
        with container(kind.image, kind.port, command=kind.command) as port:
            deadline = time.monotonic() + _PATIENCE
            while not _answers(kind, port):
                if time.monotonic() > deadline:
                    raise UnavailableError(f"{kind.image} did not come up")
                time.sleep(0.1)
            yield kind.url.format(port=port)
    else:
        with tempfile.TemporaryDirectory(prefix="saga-bus-broker-", ignore_cleanup_errors=True) as folder:
            broker = kind.private(Path(folder))
            broker.start()
            try:
                yield broker.url
            finally:
                broker.kill()


def _answers(kind: _Kind, port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.settimeout(1)
            connection.sendall(kind.hello)
            return kind.answer in connection.recv(4096)
    except OSError:
        return False


BROKERS: Mapping[str, Callable[[], AbstractContextManager[str]]] = {
    "kafka": serve_kafka,
    "nats": partial(_serve, _NATS),
    "rabbitmq": partial(_serve, _RABBITMQ),
    "redis-streams": partial(_serve, _REDIS),
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

"""Which broker a URL or a FastStream broker object means, and the link that speaks to it.

A broker's driver is imported only when that broker is used.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from saga_bus.core import ConfigurationError
from saga_bus.transport_faststream._link import Link, Options

__all__ = ["KINDS", "broker_of", "link_of"]


class _LinkModule(Protocol):
    def open_broker(self, url: str) -> Any: ...

    def open_link(self, broker: Any, options: Options, *, owned: bool) -> Link: ...


@dataclass(frozen=True)
class _Kind:
    """One kind of broker.

    Args:
        extra: The extra of this distribution that installs its driver.
        schemes: The schemes of its URLs.
        module: FastStream's module.
        broker: The name of the broker's class in it.
        link: Our module.
    """

    extra: str
    schemes: tuple[str, ...]
    module: str
    broker: str
    link: str


KINDS = (
    _Kind("rabbit", ("amqp", "amqps"), "faststream.rabbit", "RabbitBroker", "_rabbit"),
    _Kind("nats", ("nats", "tls"), "faststream.nats", "NatsBroker", "_nats"),
    _Kind("redis", ("redis", "rediss"), "faststream.redis", "RedisBroker", "_redis"),
    _Kind("kafka", ("kafka",), "faststream.confluent", "KafkaBroker", "_kafka"),
)


def broker_of(url: str) -> Callable[[], Any]:
    """What makes FastStream's broker for a URL.

    Args:
        url: Such as ``amqp://user:password@host:5672/``.

    Raises:
        ConfigurationError: No broker has such a scheme, or its driver is not installed.
    """
    scheme = urlsplit(url).scheme
    for kind in KINDS:
        if scheme in kind.schemes:
            module = _loaded(kind)
            return lambda: module.open_broker(url)
    known = ", ".join(f"{name}://" for kind in KINDS for name in kind.schemes)
    raise ConfigurationError(f"no broker has URLs that begin with {scheme!r}; known are {known}")


def link_of(broker: Any, options: Options, *, owned: bool) -> Link:
    """The link to a broker.

    Args:
        broker: FastStream's broker.
        options: What the user chose.
        owned: Whether closing the link stops the broker.

    Raises:
        ConfigurationError: It is no broker that this transport knows.
    """
    for kind in KINDS:
        # A broker of a kind whose module nobody has imported cannot be this one.
        module = sys.modules.get(kind.module)
        if module is not None and isinstance(broker, getattr(module, kind.broker)):
            return _loaded(kind).open_link(broker, options, owned=owned)
    known = ", ".join(f"{kind.module}.{kind.broker}" for kind in KINDS)
    raise ConfigurationError(f"{type(broker).__qualname__} is none of {known}")


def _loaded(kind: _Kind) -> _LinkModule:
    try:
        return cast("_LinkModule", importlib.import_module(f"saga_bus.transport_faststream.{kind.link}"))
    except ImportError as error:
        raise ConfigurationError(
            f"the driver is not installed: pip install 'saga-bus-transport-faststream[{kind.extra}]'"
        ) from error

"""The URL: checked without I/O, shown without its secrets, and made into redis-py's client."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from saga_bus.store import InvalidSagaError

__all__ = ["Location"]

_SCHEMES = ("redis", "rediss", "unix")
_PORT, _SENTINEL_PORT = 6379, 26379
_OWN_OPTIONS = ("cluster", "sentinel", "sentinel_username", "sentinel_password")
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


class Location:
    """Where a store is.

    - ``redis://user:password@host:port/0``, ``rediss://...`` with TLS, ``unix:///path/of/the.sock?db=0``;
    - ``redis://host1:7000,host2:7001?cluster=true``: a Cluster, of which the hosts are some nodes;
    - ``redis://user:password@host1:26379,host2:26379/0?sentinel=name``: the primary of this name, which the Sentinels
      at the hosts know. The user and the password are the primary's; the Sentinels' own are in
      ``sentinel_username`` and ``sentinel_password``.

    Other options are redis-py's.

    Args:
        url: The URL.

    Raises:
        InvalidSagaError: It is none of these; the URL is not shown, for it may hold a password.
    """

    def __init__(self, url: str) -> None:
        refused = InvalidSagaError(
            "the URL must be a text like redis://user:password@host:6379/0, rediss://... or unix:///path"
        )
        if not isinstance(url, str):
            raise refused
        try:
            parts = urlsplit(url)
            options = dict(parse_qsl(parts.query, keep_blank_values=True))
            account, at, places = parts.netloc.rpartition("@")
            self._service = options.get("sentinel")
            self._is_cluster = _truth(options.get("cluster", "false"))
            default = _PORT if self._service is None else _SENTINEL_PORT
            self._hosts = [_host_and_port(place, default) for place in places.split(",")] if places else []
            rest = urlencode({name: value for name, value in options.items() if name not in _OWN_OPTIONS})
            host, port = self._hosts[0] if self._hosts else ("", None)
            bracketed = f"[{host}]" if ":" in host else host
            place = f"{account}{at}{bracketed}:{port}" if self._hosts else f"{account}{at}"
            self._settings: dict[str, Any] = dict(parse_url(urlunsplit((parts.scheme, place, parts.path, rest, ""))))
        except ValueError:  # its text can hold a part of the URL
            raise refused from None
        if parts.scheme not in _SCHEMES or "://" not in url or (parts.scheme == "unix") != bool(not self._hosts):
            raise refused
        if parts.scheme == "unix" and not parts.path:
            raise refused
        if self._service is not None and (self._is_cluster or parts.scheme == "unix" or not self._service):
            raise InvalidSagaError("sentinel names a primary of Sentinels, and goes with no Cluster and no socket")
        if self._is_cluster and (parts.scheme == "unix" or self._settings.get("db")):
            raise InvalidSagaError("a Cluster has no sockets, and only the database 0")
        if self._service is None and not self._is_cluster and len(self._hosts) > 1:
            raise InvalidSagaError(
                "several hosts are those of a Cluster (cluster=true) or of Sentinels (sentinel=name)"
            )
        self._sentinel_settings = {
            name: options[f"sentinel_{name}"] for name in ("username", "password") if f"sentinel_{name}" in options
        }
        kind = "cluster=true" if self._is_cluster else f"sentinel={self._service}" if self._service else ""
        user = account.partition(":")[0]
        self.shown = f"{parts.scheme}://{user}{at}{places}{parts.path}{'?' if kind else ''}{kind}"

    def client(self, connect_timeout: float) -> Redis | RedisCluster:
        """Make a client, which connects to nothing yet.

        Args:
            connect_timeout: For making a connection, in seconds.

        Raises:
            InvalidSagaError: redis-py does not take an option.
        """
        settings: dict[str, Any] = {
            "socket_connect_timeout": connect_timeout,
            "socket_timeout": None,  # the store has a time limit of its own
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            **self._settings,
        }
        try:
            return self._client(settings)
        except (TypeError, ValueError) as error:
            raise InvalidSagaError("redis-py does not take an option of the URL") from error

    def _client(self, settings: dict[str, Any]) -> Redis | RedisCluster:
        if not self._is_cluster and self._service is None:
            connection_class = settings.pop("connection_class", None)
            if connection_class is SSLConnection:
                settings["ssl"] = True
            if "path" in settings:
                settings["unix_socket_path"] = settings.pop("path")
            return Redis(**settings)
        if settings.pop("connection_class", None) is SSLConnection:
            settings["ssl"] = True
        settings.pop("host")
        settings.pop("port")
        if self._is_cluster:
            return RedisCluster(startup_nodes=[ClusterNode(host, port) for host, port in self._hosts], **settings)
        shared = {name: value for name, value in settings.items() if name not in ("username", "password", "db")}
        sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]  # redis-py has no types for it
            self._hosts, sentinel_kwargs={**shared, **self._sentinel_settings}, **settings
        )
        client: Redis = sentinel.master_for(self._service)
        return client


def _truth(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(text)


def _host_and_port(place: str, default: int) -> tuple[str, int]:
    parts = urlsplit(f"//{place}")
    if not parts.hostname or "@" in place:
        raise ValueError(place)
    return parts.hostname, parts.port or default

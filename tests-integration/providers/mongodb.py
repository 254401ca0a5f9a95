"""MongoDB 7 in a container where Docker answers, else a private SecantusDB, each on a free loopback port.

SecantusDB is a server of MongoDB's protocol on MongoDB's storage engine, from PyPI. Its data folder is made for it and
removed with it. It can be stopped, killed and started again, for fault tests.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from providers.containers import container, docker_answers
from providers.errors import UnavailableError
from providers.ports import free_port

__all__ = ["PrivateMongo", "serve_mongodb"]

_START_TIMEOUT = 60.0
_POLL = 0.05
_PROGRAM = "secantusd-py"
_IMAGE = "mongo:7"
_REPLICA_SET = "rs0"


class PrivateMongo:
    """One server; `start` it first, and `remove` it at the end.

    Args:
        options: Options of the program beside those that it needs here, such as ``("--auth",)``.
        folder: The data folder of a server that ran before; it is left in place.
    """

    host = "127.0.0.1"

    def __init__(self, options: Sequence[str] = (), folder: Path | None = None) -> None:
        self._program = _find_program()
        self.options = tuple(options)
        self._keeps = folder is not None
        self._folder = folder or Path(tempfile.mkdtemp(prefix="saga-bus-mongodb-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        """The URL of a database on it; directly, because the server calls itself a replica set of one."""
        return f"mongodb://{self.host}:{self.port}/sagas?directConnection=true"

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            UnavailableError: It does not come up.
        """
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            with (self._folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [
                        str(self._program),
                        *("--host", self.host, "--port", str(self.port)),
                        *("--storage-path", str(self._folder / "data")),
                        "--sync-on-commit",  # or a SIGKILL loses acknowledged writes
                        *self.options,
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._folder,
                )
            while self._process.poll() is None and time.monotonic() < deadline:
                if self._is_ready():
                    return
                time.sleep(_POLL)
        log_tail = (self._folder / "log").read_text(encoding="utf-8", errors="replace")[-2000:]
        raise UnavailableError(f"SecantusDB did not start:\n{log_tail}")

    def stop(self) -> None:
        """Stop the server as an administrator does."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        self._end(signal.SIGKILL)

    def remove(self) -> None:
        """End the server and remove its folder."""
        self.kill()
        if not self._keeps:
            shutil.rmtree(self._folder)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def _is_ready(self) -> bool:
        client: MongoClient[dict[str, Any]]
        with MongoClient(self.host, self.port, directConnection=True, serverSelectionTimeoutMS=500) as client:
            try:
                client.admin.command("hello")
            except PyMongoError:
                return False
        return True


@contextmanager
def serve_mongodb() -> Iterator[str]:
    """A server for a while.

    Yields:
        Its URL.

    Raises:
        UnavailableError: There is neither Docker nor SecantusDB, or the server does not start.
    """
    if docker_answers():
        with _container() as url:
            yield url
        return
    server = PrivateMongo()
    try:
        server.start()
        yield server.url
    finally:
        server.remove()


@contextmanager
def _container() -> Iterator[str]:
    command = ["mongod", "--replSet", _REPLICA_SET, "--bind_ip_all"]
    with container(_IMAGE, 27017, command=command) as port:
        _initiate(port)
        yield f"mongodb://127.0.0.1:{port}/sagas?directConnection=true"


def _initiate(port: int) -> None:
    """Make a replica set of one, and wait until it takes writes."""
    members = {"_id": _REPLICA_SET, "members": [{"_id": 0, "host": "127.0.0.1:27017"}]}
    deadline = time.monotonic() + _START_TIMEOUT
    client: MongoClient[dict[str, Any]]
    with MongoClient("127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=500) as client:
        while time.monotonic() < deadline:
            try:
                if client.admin.command("hello").get("isWritablePrimary"):
                    return
                client.admin.command("replSetInitiate", members)
            except PyMongoError:  # it is not up yet, or has been initiated and holds an election
                time.sleep(_POLL)
    raise UnavailableError(f"{_IMAGE} did not become a replica set in {_START_TIMEOUT} seconds")


def _find_program() -> Path:
    for folder in (sysconfig.get_path("scripts"), Path(sys.executable).parent):
        program = Path(folder) / _PROGRAM
        if program.exists():
            return program
    raise UnavailableError(
        "no MongoDB: Docker does not answer, and SecantusDB is not installed (Linux x86_64, Python 3.11 to 3.13)"
    )

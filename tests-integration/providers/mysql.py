"""A MySQL or MariaDB server: a container where Docker answers, else the machine's own binary with its own data."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pymysql  # type: ignore[import-untyped]

from providers.containers import container, docker_answers
from providers.errors import UnavailableError
from providers.ports import free_port

__all__ = ["PrivateServer", "connection_options", "execute", "private_server", "serve_mysql"]

_DATABASE = "saga_bus_tests"
_IMAGE = "mysql:8.4"
_CONTAINER_ENVIRONMENT = {"MYSQL_ALLOW_EMPTY_PASSWORD": "yes", "MYSQL_ROOT_HOST": "%"}
_BINARIES = ("mariadbd", "mysqld")
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/usr/libexec"])
_PATIENCE = 60.0  # seconds


@contextmanager
def serve_mysql() -> Iterator[str]:
    """Have a server up for a while; yields the URL of an administrator."""
    if docker_answers():
        with _container() as url:
            yield url
        return
    with private_server() as server:
        yield server.url


def connection_options(url: str) -> dict[str, Any]:
    """What aiomysql's ``connect`` takes.

    Args:
        url: ``mysql://user:password@host:port/database``.
    """
    parts = urlsplit(url)
    return {
        "host": parts.hostname,
        "port": parts.port or 3306,
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "db": unquote(parts.path.removeprefix("/")),
    }


def execute(url: str, *statements: str) -> Sequence[tuple[Any, ...]]:
    """Run statements one by one, each committed; returns the rows of the last.

    Args:
        url: The server.
        *statements: The statements.
    """
    rows: Sequence[tuple[Any, ...]] = ()
    options = connection_options(url)
    database = options.pop("db")
    with contextlib.closing(pymysql.connect(**options, database=database, autocommit=True)) as connection:
        for statement in statements:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                rows = cursor.fetchall()
    return rows


class PrivateServer:
    """A server on a free port of loopback, with a data folder of its own; it can be killed and started again.

    Args:
        folder: An empty folder.
        binary: ``mariadbd`` or ``mysqld``.
        options: Further options of the server.
    """

    def __init__(self, folder: Path, binary: str, options: Sequence[str] = ()) -> None:
        self._data = folder / "data"
        self._log = folder / "log"
        # A server refuses to run as root.
        self._user = "mysql" if os.name == "posix" and os.geteuid() == 0 else None
        self.port = free_port()
        self._command = [
            binary,
            "--no-defaults",
            f"--datadir={self._data}",
            f"--socket={folder / 'socket'}",
            f"--pid-file={folder / 'pid'}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            "--max-connections=400",
            *(["--user=mysql"] if self._user else []),
            *options,
        ]
        if self._user is not None:
            shutil.chown(folder, self._user)
        self._process: subprocess.Popen[bytes] | None = None
        self._initialize(binary)

    @property
    def url(self) -> str:
        """The URL of the administrator, who has no password."""
        return f"mysql://root@127.0.0.1:{self.port}/{_DATABASE}"

    @property
    def pid(self) -> int:
        """The id of the server's process."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        _wait_for(self.port, self._process, self._log)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _initialize(self, binary: str) -> None:
        version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
        user = ["--user=mysql"] if self._user else []
        if "MariaDB" in version:
            install = shutil.which("mariadb-install-db", path=_PATH) or "mysql_install_db"
            command = [
                install,
                "--no-defaults",
                f"--datadir={self._data}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                *user,
            ]
        else:
            command = [binary, "--no-defaults", "--initialize-insecure", f"--datadir={self._data}", *user]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UnavailableError(f"{command[0]} failed: {done.stdout[-500:]}{done.stderr[-500:]}")


@contextmanager
def private_server(options: Sequence[str] = ()) -> Iterator[PrivateServer]:
    """Have a server of one's own up for a while.

    Args:
        options: Further options of the server.

    Raises:
        UnavailableError: There is no binary.
    """
    binary = next(filter(None, (shutil.which(name, path=_PATH) for name in _BINARIES)), None)
    if binary is None:
        raise UnavailableError("neither Docker nor mariadbd nor mysqld is here; Debian has it in mariadb-server")
    with tempfile.TemporaryDirectory(prefix="saga-bus-mysql-") as folder:
        server = PrivateServer(Path(folder), binary, options)
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _wait_for(port: int, process: subprocess.Popen[bytes] | None = None, log: Path | None = None) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            with contextlib.closing(pymysql.connect(host="127.0.0.1", port=port, user="root")) as connection:
                connection.cursor().execute(f"CREATE DATABASE IF NOT EXISTS {_DATABASE} CHARACTER SET utf8mb4")
        except pymysql.err.OperationalError as error:
            last_words = "" if log is None else log.read_text(errors="replace")[-1000:]
            if process is not None and process.poll() is not None:
                raise UnavailableError(f"the server ended with {process.returncode}: {last_words}") from error
            if time.monotonic() > deadline:
                raise UnavailableError(f"the server did not come up: {last_words}") from error
            time.sleep(0.05)
        else:
            return


@contextmanager
def _container() -> Iterator[str]:
    with container(_IMAGE, 3306, environment=_CONTAINER_ENVIRONMENT) as port:
        _wait_for(port)
        yield f"mysql://root@127.0.0.1:{port}/{_DATABASE}"

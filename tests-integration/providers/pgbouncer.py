"""A private PgBouncer, a transaction pooler, on a free loopback port in front of a PostgreSQL server."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from providers.errors import UnavailableError
from providers.ports import free_port
from providers.postgres import unprivileged_user

__all__ = ["PrivatePgBouncer"]

_START_TIMEOUT = 20.0
_POLL = 0.02


class PrivatePgBouncer:
    """One pooler with ``pool_mode=transaction``; `start` it first, and `remove` it at the end.

    It hands a server's connection to whichever client has a transaction to run, and takes it away at its end. It
    keeps no client's prepared statements; PgBouncer can from 1.21 on (https://www.pgbouncer.org/config.html), but
    many that run are older, or not told to.

    Args:
        host: The server's host.
        port: The server's port.
        settings: Settings beside those that it needs here, such as ``{"default_pool_size": "2"}``.

    Raises:
        UnavailableError: PgBouncer is not installed.
    """

    def __init__(self, host: str, port: int, settings: dict[str, str] | None = None) -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            raise UnavailableError("no PgBouncer: install Debian's pgbouncer")
        self._program = program
        self._user = unprivileged_user()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="saga-bus-pgbouncer-"))
        self.host = "127.0.0.1"
        self.port = free_port()
        wanted = {
            "listen_addr": self.host,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": "transaction",
            "max_client_conn": "500",
            "default_pool_size": "4",
            **({"max_prepared_statements": "0"} if _can_keep_statements(program) else {}),
            **(settings or {}),
        }
        lines = [f"{name} = {value}" for name, value in wanted.items()]
        target = f"* = host={host} port={port} user=postgres"
        self._file = self._folder / "pgbouncer.ini"
        self._file.write_text("\n".join(["[databases]", target, "[pgbouncer]", *lines, ""]), encoding="utf-8")
        if self._user is not None:
            shutil.chown(self._folder, self._user)

    @property
    def url(self) -> str:
        """The URL of the database ``postgres`` through the pooler, as a superuser without a password."""
        return f"postgresql://postgres@{self.host}:{self.port}/postgres"

    def start(self) -> None:
        """Start the pooler and wait until it takes connections.

        Raises:
            UnavailableError: It does not come up.
        """
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, str(self._file)], stdout=log, stderr=log, cwd=self._folder, **self._as_user()
            )
        deadline = time.monotonic() + _START_TIMEOUT
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection((self.host, self.port), 1).close()
            except OSError:
                time.sleep(_POLL)
            else:
                return
        said = (self._folder / "log").read_text(encoding="utf-8", errors="replace")[-2000:]
        raise UnavailableError(f"PgBouncer did not start:\n{said}")

    def kill(self) -> None:
        """Kill the pooler with SIGKILL, and with it all connections."""
        self._end(signal.SIGKILL)

    def remove(self) -> None:
        """Stop the pooler and remove its folder."""
        self._end(signal.SIGTERM)
        shutil.rmtree(self._folder)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(30)
        self._process = None

    def _as_user(self) -> dict[str, Any]:
        # PgBouncer refuses to run as root.
        if self._user is None:
            return {}
        return {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid}


def _can_keep_statements(program: str) -> bool:
    said = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= (1, 21)

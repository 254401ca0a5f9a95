"""One worker process, as the coordinator sees it."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

from demo.messages import Answer, decode_answer, encode_line, envelope_of
from demo.states import Event

__all__ = ["WorkerProcess"]

_IMPORT_ROOT = Path(__file__).parent.parent
_KEPT_STDERR = 2_000  # bytes


class WorkerProcess:
    """A worker and the events that it has not acknowledged yet.

    Args:
        number: From 1, for people.
        process: The process, with pipes.
    """

    def __init__(self, number: int, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.number = number
        self.pid = process.pid
        self.killed = False
        self.unacknowledged: dict[str, Event] = {}
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._stderr_tail = b""
        self._stderr_reading = asyncio.get_running_loop().create_task(self._keep_stderr(process.stderr))

    @classmethod
    async def start(cls, number: int, database: Path) -> WorkerProcess:
        """Start a process.

        Args:
            number: From 1, for people.
            database: The SQLite file.
        """
        path = os.pathsep.join(filter(None, (str(_IMPORT_ROOT), os.environ.get("PYTHONPATH"))))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "demo.worker",
            str(database),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C reaches the coordinator alone, which then ends its workers
        )
        return cls(number, process)

    def send(self, event: Event) -> None:
        """Hand an event over; it counts as unacknowledged from now on.

        Args:
            event: The event.
        """
        self.unacknowledged[event.event_id] = event
        # Without drain(): the coordinator has only so many sagas in flight, so this is never much.
        self._stdin.write(encode_line(envelope_of(event)))

    def no_more_events(self) -> None:
        """Close the worker's stdin, after which it finishes what it has and leaves."""
        self._stdin.close()

    async def answers(self) -> AsyncIterator[Answer]:
        """What the worker says, until its stdout ends; a line cut off by the kill is no answer."""
        while (line := await self._stdout.readline()).endswith(b"\n"):
            yield decode_answer(line)

    async def exit_code(self) -> int:
        """Wait for the end of the process."""
        return await self._process.wait()

    async def last_words(self) -> str:
        """What the process last wrote to stderr, ready to be added to a message."""
        await self._stderr_reading
        text = self._stderr_tail.decode(errors="replace").strip()
        return f":\n{text}" if text else ""

    def kill(self) -> None:
        """Kill the process with SIGKILL, which it cannot notice."""
        self.killed = True
        self._process.kill()

    async def end(self) -> None:
        """Make sure that the process is gone."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._stderr_reading

    async def _keep_stderr(self, stderr: asyncio.StreamReader) -> None:
        while chunk := await stderr.read(4096):
            self._stderr_tail = (self._stderr_tail + chunk)[-_KEPT_STDERR:]

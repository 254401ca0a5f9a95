"""The demo's transport: the events come over stdin from the coordinator, and acknowledgements go back over stdout.

The coordinator is the broker: what a worker has not acknowledged when it dies, it gives to another one.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta

import msgspec

from demo.messages import Acknowledged, Failed
from saga_bus.core import Envelope, Receiver, TransportError

__all__ = ["PipeTransport"]

_LONGEST_REASON = 2_000  # characters

_envelopes = msgspec.json.Decoder(Envelope)


class _Delivery:
    def __init__(self, transport: PipeTransport, envelope: Envelope, attempt: int) -> None:
        self._transport = transport
        self.envelope = envelope
        self.attempt = attempt

    async def ack(self) -> None:
        self._transport.say(Acknowledged(self.envelope.id))

    async def retry(self, delay: timedelta) -> None:
        self._transport.deliver(self.envelope, self.attempt + 1, delay.total_seconds())

    async def dead_letter(self, reason: str, details: Mapping[str, str]) -> None:
        text = f"{self.envelope.name} {self.envelope.id}: {reason}: {details['message']}"
        self._transport.say(Failed(text[:_LONGEST_REASON]))


class PipeTransport:
    """Receives what comes over stdin.

    Args:
        say: Writes an answer to stdout.
    """

    def __init__(self, say: Callable[[object], None]) -> None:
        self.say = say
        self._receivers: dict[str, list[tuple[Receiver, asyncio.Semaphore]]] = defaultdict(list)
        self._in_hand: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._reader: threading.Thread | None = None
        self._receiving = True

    async def stdin_ended(self) -> None:
        """Wait until nothing more comes."""
        await self._ended.wait()

    async def finished(self) -> None:
        """Wait until everything that came is handled."""
        while self._in_hand:
            await asyncio.wait(self._in_hand)

    async def start(self) -> None:
        if self._reader is None:
            loop = asyncio.get_running_loop()
            self._reader = threading.Thread(target=self._read_lines, args=(loop,), daemon=True)
            self._reader.start()

    async def listen(
        self,
        endpoint: str,  # noqa: ARG002 - there is one saga for each name of a message
        names: Collection[str],
        receive: Receiver,
        *,
        concurrency: int,
    ) -> None:
        for name in names:
            self._receivers[name].append((receive, asyncio.Semaphore(concurrency)))

    async def publish(self, envelope: Envelope) -> None:  # noqa: ARG002
        raise TransportError("the sagas of this demo send nothing")

    async def send(self, endpoint: str, envelope: Envelope) -> None:  # noqa: ARG002
        raise TransportError("the sagas of this demo send nothing")

    async def stop_receiving(self) -> None:
        self._receiving = False

    async def close(self) -> None:
        self._receiving = False
        for task in self._in_hand:
            task.cancel()
        await asyncio.gather(*self._in_hand, return_exceptions=True)

    def deliver(self, envelope: Envelope, attempt: int, delay: float = 0.0) -> None:
        if self._receiving:
            for receive, free in self._receivers[envelope.name]:
                # Every event is a task of its own: the store puts those that save at the same time into one commit.
                task = asyncio.create_task(self._deliver(_Delivery(self, envelope, attempt), receive, free, delay))
                self._in_hand.add(task)
                task.add_done_callback(self._in_hand.discard)

    async def _deliver(self, delivery: _Delivery, receive: Receiver, free: asyncio.Semaphore, delay: float) -> None:
        await asyncio.sleep(delay)
        async with free:
            await receive(delivery)

    def _read_lines(self, loop: asyncio.AbstractEventLoop) -> None:
        # The file descriptor itself: a thread that waits in sys.stdin's buffer cannot be left behind at exit.
        # The pipe also ends when the coordinator is gone, however it went.
        rest = b""
        while chunk := os.read(sys.stdin.fileno(), 65_536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                loop.call_soon_threadsafe(self.deliver, _envelopes.decode(line), 1)
        loop.call_soon_threadsafe(self._ended.set)

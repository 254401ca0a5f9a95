"""Pulling from a JetStream consumer, each message handed on when it arrives.

The client's own ``fetch`` of several messages keeps the first one back until the others are there or its time is
over; its ``fetch`` of one asks the server once for each message.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error

__all__ = ["PullError", "pull"]

_EXPIRES = 3.0  # seconds that a request waits at the server; one lost in a restart is asked again after it
_NOTHING_MORE = frozenset({"404", "408"})  # no messages; the request expired


class PullError(Error):
    """The server ended a request; the consumer or its stream may be gone."""


async def pull(
    client: Client,
    stream: str,
    durable: str,
    room: Callable[[], Awaitable[int]],
    deliver: Callable[[Msg], None],
) -> None:
    """Pull until cancelled.

    Args:
        client: The connection.
        stream: The stream's name.
        durable: The consumer's name.
        room: Waits until there is room, and says for how many messages.
        deliver: Called with each message.

    Raises:
        PullError: The server ended a request.
    """
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)
    try:
        while True:
            left = await room()
            request = {"batch": left, "expires": int(_EXPIRES * 1e9)}
            await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}", json.dumps(request).encode(), inbox)
            while left:
                try:
                    message = await subscription.next_msg(_EXPIRES + 1)
                except TimeoutError:
                    break
                if message.reply:
                    deliver(message)
                    left -= 1
                    continue
                headers = message.headers or {}
                if headers.get("Status") in _NOTHING_MORE:
                    break
                raise PullError(f"{headers.get('Status')} {headers.get('Description', '')}")
    finally:
        if not client.is_closed:
            await _give_back(subscription)
            await subscription.unsubscribe()


async def _give_back(subscription: Subscription) -> None:
    """Give back what has arrived and was not handed on: else it would come again only after the server's patience."""
    while subscription.pending_msgs:
        message = await subscription.next_msg(1)
        if message.reply:
            await message.nak()

"""The way from a thread of a store's own back to the event loop, where a caller waits for a future."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

__all__ = ["fail", "report", "succeed"]

ResultT = TypeVar("ResultT")


def report(loop: asyncio.AbstractEventLoop, settle: Callable[..., None], *args: object) -> None:
    """Call a function in an event loop, from another thread; if the loop is closed, nobody waits for it any more.

    Args:
        loop: The loop.
        settle: The function, such as `succeed` or `fail`.
        *args: Its arguments.
    """
    try:
        loop.call_soon_threadsafe(settle, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise


def succeed(future: asyncio.Future[ResultT], result: ResultT) -> None:
    """Give a future its result, unless its caller was cancelled.

    Args:
        future: The future.
        result: The result.
    """
    if not future.done():
        future.set_result(result)


def fail(future: asyncio.Future[ResultT], error: BaseException) -> None:
    """Give a future its error, unless its caller was cancelled.

    Args:
        future: The future.
        error: The error.
    """
    if not future.done():
        future.set_exception(error)

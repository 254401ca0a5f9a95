"""A driver's errors as the bus's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from saga_bus.core import SagaBusError, TransportError, TransportUnavailableError
from saga_bus.transport_faststream._link import Link

__all__ = ["translated"]


@asynccontextmanager
async def translated(link: Link, what: str, within: timedelta) -> AsyncIterator[None]:
    """Do something with a broker within a time, and raise only the bus's errors.

    Args:
        link: Knows the driver's errors.
        what: Such as "send a message".
        within: How long it may take.

    Raises:
        TransportUnavailableError: The broker could not be reached, or did not answer in time.
        TransportError: It refused.
    """
    transient: tuple[type[Exception], ...] = (OSError, EOFError, *link.unavailable)
    try:
        async with asyncio.timeout(within.total_seconds()):
            yield
    except SagaBusError:
        raise
    except link.refused as error:
        raise TransportError(f"could not {what}: the broker refused it ({type(error).__name__}: {error})") from error
    except TimeoutError as error:
        raise TransportUnavailableError(f"could not {what}: no answer in time") from error
    except transient as error:
        raise TransportUnavailableError(f"could not {what}: the broker failed ({type(error).__name__})") from error

"""The order example: an order asks for its payment; paid it is shipped, unpaid it is cancelled.

    python orders.py                                # in memory
    python orders.py sqlite:///orders.db
    python orders.py postgresql://localhost/shop

The definitions are the same on every store; only the URL differs.
"""

import asyncio
import sys
from datetime import timedelta
from typing import Literal

import msgspec

from saga_bus.core import InMemoryTransport, Intervals, Owned, SagaContext, SagaDefinition, create_bus
from saga_bus.store import SagaState, open_store

PAYMENT_TIME = timedelta(milliseconds=500)


class OrderPlaced(msgspec.Struct):
    """A customer orders."""

    order_id: str
    cents: int


class PaymentRequested(msgspec.Struct):
    """The order wants its money."""

    order_id: str
    cents: int


class PaymentReceived(msgspec.Struct):
    """The money is there."""

    order_id: str


class OrderShipped(msgspec.Struct):
    """The parcel is on its way."""

    order_id: str


class OrderCancelled(msgspec.Struct):
    """The order is off."""

    order_id: str
    reason: str


class OrderState(SagaState, kw_only=True):
    """An order."""

    order_id: str
    cents: int
    status: Literal["unpaid", "shipped", "cancelled"] = "unpaid"


class PaymentState(SagaState, kw_only=True):
    """A payment."""

    cents: int = 0


orders = SagaDefinition("OrderSaga", OrderState, correlate="order_id")
payments = SagaDefinition("PaymentSaga", PaymentState, correlate="order_id", completed="delete")


@orders.starts(OrderPlaced, new=lambda placed: OrderState(order_id=placed.order_id, cents=placed.cents))
async def place(message: OrderPlaced, state: OrderState, ctx: SagaContext) -> None:
    """Ask for the payment, and do not wait for ever."""
    ctx.publish(PaymentRequested(state.order_id, message.cents))
    ctx.set_timeout(PAYMENT_TIME)


@orders.continues(PaymentReceived)
async def ship(_message: PaymentReceived, state: OrderState, ctx: SagaContext) -> None:
    """Ship what is paid."""
    state.status = "shipped"
    ctx.publish(OrderShipped(state.order_id))
    ctx.complete()


@orders.on_timeout
async def cancel(state: OrderState, ctx: SagaContext) -> None:
    """Cancel what is not paid in time."""
    state.status = "cancelled"
    ctx.publish(OrderCancelled(state.order_id, f"not paid: {state.cents} cents"))
    ctx.complete()


@payments.starts(PaymentRequested)
async def pay(message: PaymentRequested, state: PaymentState, ctx: SagaContext) -> None:
    """Pay, if the card bears it."""
    state.cents = message.cents
    if message.cents <= 100_00:
        ctx.publish(PaymentReceived(message.order_id))
    ctx.complete()


async def main(url: str) -> None:
    """Place three orders and wait for their end.

    Args:
        url: The store's URL.
    """
    store = open_store(url)
    if store.capabilities.schema:
        await store.create_schema()
    transport = InMemoryTransport()
    bus = create_bus(
        transport=transport,
        store=Owned(store),
        sagas=[orders, payments],
        intervals=Intervals(timers=timedelta(milliseconds=50)),
    )
    async with bus:
        for order_id, cents in (("1", 19_90), ("2", 2_000_00), ("3", 5_00)):
            await bus.publish(OrderPlaced(order_id, cents))
        for order_id in ("1", "2", "3"):
            while True:
                await transport.drain()
                order: OrderState | None = await store.get_by_correlation_id("OrderSaga", order_id)
                if order is not None and order.metadata.is_completed:
                    break
                await asyncio.sleep(0.05)
            sys.stdout.write(f"order {order_id}: {order.status}\n")
        if transport.dead_letters:
            raise SystemExit(f"dead letters: {transport.dead_letters}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://"))

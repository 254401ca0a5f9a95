import asyncio

import msgspec

from saga_bus.core import InMemoryTransport, SagaContext, SagaDefinition, create_bus
from saga_bus.store import SagaState
from saga_bus.store_inmemory import InMemorySagaStore


class Placed(msgspec.Struct):
    order_id: str


class Paid(msgspec.Struct):
    order_id: str


class OrderState(SagaState, kw_only=True):
    order_id: str
    status: str = "new"


def test_a_saga_starts_and_ends():
    orders = SagaDefinition("OrderSaga", OrderState, correlate="order_id")

    @orders.starts(Placed, new=lambda placed: OrderState(order_id=placed.order_id))
    async def place(message: Placed, state: OrderState, ctx: SagaContext) -> None:
        ctx.publish(Paid(order_id=state.order_id))

    @orders.continues(Paid)
    async def pay(message: Paid, state: OrderState, ctx: SagaContext) -> None:
        state.status = "paid"
        ctx.complete()

    async def main():
        store, transport = InMemorySagaStore(), InMemoryTransport()
        async with create_bus(transport=transport, store=store, sagas=[orders]) as bus:
            await bus.publish(Placed(order_id="1"))
            await transport.drain()
        state = await store.get_by_correlation_id("OrderSaga", "1")
        assert (state.status, state.metadata.version, state.metadata.is_completed) == ("paid", 1, True)
        assert state.metadata.outbox == ()
        assert transport.dead_letters == []

    asyncio.run(main())

"""What type checkers must infer of a saga's definition; they read this file, nothing runs it."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, assert_type
from uuid import UUID

import msgspec

from saga_bus.core import (
    Bus,
    CallNext,
    Handling,
    InMemoryTransport,
    MessageContext,
    Middleware,
    Owned,
    SagaContext,
    SagaDefinition,
    SagaRegistration,
    Transport,
    create_bus,
    log_messages,
)
from saga_bus.store import SagaState, SagaStore
from saga_bus.store_inmemory import InMemorySagaStore


class Placed(msgspec.Struct):
    order_id: str
    number: int = 0


@dataclass
class Paid:
    order: UUID


class OrderState(SagaState, kw_only=True):
    order_id: str
    paid: bool = False


class RefundState(SagaState, kw_only=True):
    amount: int = 0


orders = SagaDefinition("OrderSaga", OrderState, correlate="order_id")
assert_type(orders, SagaDefinition[OrderState])


@orders.starts(Placed, new=lambda placed: OrderState(order_id=placed.order_id))
async def place(message: Placed, state: OrderState, ctx: SagaContext) -> None:
    assert_type(ctx.saga_id, str)
    assert_type(ctx.attempt, int)
    ctx.publish(Paid(order=UUID(int=1)), headers={"own": "1"})
    ctx.schedule(message, timedelta(seconds=1), endpoint="OrderSaga")
    ctx.schedule(message, 5)  # type: ignore[arg-type]
    ctx.set_timeout(3)  # type: ignore[arg-type]


@orders.continues(Paid, correlate=lambda paid: paid.order)
async def pay(message: Paid, state: OrderState, ctx: SagaContext) -> OrderState:
    return OrderState(metadata=state.metadata, order_id=state.order_id, paid=True)


@orders.on_timeout
async def late(state: OrderState, ctx: SagaContext) -> OrderState | None:
    return None


# A lambda knows the type of the message that it is for.
orders.starts(Placed, new=lambda placed: OrderState(order_id=placed.missing))  # type: ignore[attr-defined]
orders.continues(Paid, correlate=lambda paid: paid.missing)  # type: ignore[attr-defined]
orders.continues(Paid, correlate=lambda paid: 1.5)  # type: ignore[arg-type,return-value]
orders.starts(Placed, new=lambda placed: RefundState())  # type: ignore[arg-type,return-value]


# A handler of another message or another state, with another number of arguments, or not async, is an error.
@orders.continues(Paid, correlate="order")  # type: ignore[arg-type]
async def wrong_message(message: Placed, state: OrderState, ctx: SagaContext) -> None: ...


@orders.continues(Paid, correlate="order")  # type: ignore[arg-type]
async def wrong_state(message: Paid, state: RefundState, ctx: SagaContext) -> None: ...


@orders.continues(Paid, correlate="order")  # type: ignore[arg-type]
async def wrong_answer(message: Paid, state: OrderState, ctx: SagaContext) -> RefundState:
    return RefundState()


@orders.continues(Paid, correlate="order")  # type: ignore[arg-type]
async def too_few(message: Paid, state: OrderState) -> None: ...


@orders.continues(Paid, correlate="order")  # type: ignore[arg-type]
def not_async(message: Paid, state: OrderState, ctx: SagaContext) -> None: ...


@orders.on_timeout  # type: ignore[arg-type]
async def wrong_timeout(message: Paid, state: OrderState, ctx: SagaContext) -> None: ...


async def missing(message: Any, ctx: MessageContext) -> None:
    ctx.complete()  # type: ignore[attr-defined]


SagaDefinition("A", OrderState, on_missing=missing)
SagaDefinition("A", OrderState, on_missing="forget")  # type: ignore[arg-type]
SagaDefinition("A", OrderState, completed="forget")  # type: ignore[arg-type]
SagaDefinition("A", OrderState, on_completed="forget")  # type: ignore[arg-type]


async def the_bus(store: InMemorySagaStore[OrderState], any_store: SagaStore[Any]) -> None:
    async def watch(handling: Handling, call_next: CallNext) -> None:
        await call_next()

    middleware: Middleware = watch
    transport: Transport = InMemoryTransport()
    bus = create_bus(
        transport=transport,
        store=Owned(store),
        sagas=[orders, SagaRegistration(orders, store=any_store), SagaRegistration(orders, store="memory://")],
        middleware=[middleware, log_messages()],
    )
    assert_type(bus, Bus)
    async with bus as running:
        assert_type(running, Bus)
        assert_type(await running.publish(Placed(order_id="1"), delay=timedelta(seconds=1)), str)
        assert_type(await running.recover(), int)
    create_bus(transport=store, store=store)  # type: ignore[arg-type]
    create_bus(transport=transport, store=5)  # type: ignore[arg-type]

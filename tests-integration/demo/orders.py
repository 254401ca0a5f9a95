"""The made-up work: orders that are placed, paid and shipped, or cancelled."""

from __future__ import annotations

import random
from typing import Any, Literal

import msgspec

from demo.states import PATIENT, DemoState, note
from demo.workload import SagaPlan, Workload
from saga_bus.core import SagaContext, SagaDefinition

__all__ = ["SAGA_NAME", "OrderEvent", "OrderState", "orders", "plan_orders"]

SAGA_NAME = "OrderSaga"

_STREETS = ("Harbour Road", "Mill Lane", "Station Street", "Orchard Way", "Castle Hill")
_NOTES = ("leave it with the neighbour", "it is a present", "ring twice", "no plastic, please")
_CANCELLED_SHARE = 0.15


class OrderState(DemoState, kw_only=True):
    """An order.

    Args:
        order_id: The order's id, which is also the saga's correlation id.
        total_cents: What the order costs.
        address: Where it goes.
        status: How far it is.
        paid_cents: What was paid.
        notes: What the customer said.
    """

    order_id: str
    total_cents: int
    address: str
    status: Literal["placed", "paid", "shipped", "cancelling", "cancelled"] = "placed"
    paid_cents: int = 0
    notes: list[str] = msgspec.field(default_factory=list)

    def is_finished(self) -> bool:
        return self.status in {"shipped", "cancelled"}

    def ending(self) -> str:
        return f"{self.status}, {self.paid_cents} cents paid, to {self.address}, notes: {'; '.join(self.notes)}"


class _OrderEvent(msgspec.Struct, frozen=True):
    event_id: str
    order_id: str

    @property
    def correlation_id(self) -> str:
        return self.order_id


class OrderPlaced(_OrderEvent, frozen=True):
    """A customer orders: the saga starts."""

    total_cents: int
    address: str


class PaymentReceived(_OrderEvent, frozen=True):
    """The customer paid."""

    cents: int


class AddressChanged(_OrderEvent, frozen=True):
    """The order goes somewhere else."""

    address: str


class NoteAdded(_OrderEvent, frozen=True):
    """The customer says something."""

    text: str


class OrderShipped(_OrderEvent, frozen=True):
    """The parcel is on its way: the saga ends."""


class CancellationRequested(_OrderEvent, frozen=True):
    """The customer changed their mind."""


class OrderCancelled(_OrderEvent, frozen=True):
    """The order is off: the saga ends."""


OrderEvent = (
    OrderPlaced | PaymentReceived | AddressChanged | NoteAdded | OrderShipped | CancellationRequested | OrderCancelled
)


orders = SagaDefinition(SAGA_NAME, OrderState, correlate="order_id", retry=PATIENT)


@orders.starts(
    OrderPlaced,
    new=lambda placed: OrderState(order_id=placed.order_id, total_cents=placed.total_cents, address=placed.address),
)
async def place(_message: OrderPlaced, state: OrderState, ctx: SagaContext) -> None:
    note(state, ctx)


@orders.continues(PaymentReceived)
async def pay(message: PaymentReceived, state: OrderState, ctx: SagaContext) -> None:
    state.paid_cents += message.cents
    state.status = "paid"
    note(state, ctx)


@orders.continues(AddressChanged)
async def change_address(message: AddressChanged, state: OrderState, ctx: SagaContext) -> None:
    state.address = message.address
    note(state, ctx)


@orders.continues(NoteAdded)
async def add_note(message: NoteAdded, state: OrderState, ctx: SagaContext) -> None:
    state.notes.append(message.text)
    note(state, ctx)


@orders.continues(OrderShipped)
async def ship(_message: OrderShipped, state: OrderState, ctx: SagaContext) -> None:
    state.status = "shipped"
    note(state, ctx)


@orders.continues(CancellationRequested)
async def begin_to_cancel(_message: CancellationRequested, state: OrderState, ctx: SagaContext) -> None:
    state.status = "cancelling"
    note(state, ctx)


@orders.continues(OrderCancelled)
async def cancel(_message: OrderCancelled, state: OrderState, ctx: SagaContext) -> None:
    state.status = "cancelled"
    note(state, ctx)


def plan_orders(count: int, seed: int) -> Workload[Any]:
    """Make orders up.

    Args:
        count: How many.
        seed: The same number gives the same orders.
    """
    dice = random.Random(seed)
    return Workload(SAGA_NAME, "status", [_plan(f"order-{number:05}", dice) for number in range(1, count + 1)])


def _plan(order_id: str, dice: random.Random) -> SagaPlan[OrderEvent]:
    total, address = dice.randrange(500, 50_000), _address(dice)
    placed = OrderPlaced(f"{order_id}/placed", order_id, total, address)
    meanwhile: list[OrderEvent] = []  # what reaches other workers while the payment or the cancellation is handled
    note = ""
    if dice.random() < 0.6:
        address = _address(dice)
        meanwhile.append(AddressChanged(f"{order_id}/address", order_id, address))
    if not meanwhile or dice.random() < 0.4:
        note = dice.choice(_NOTES)
        meanwhile.append(NoteAdded(f"{order_id}/note", order_id, note))

    if dice.random() < _CANCELLED_SHARE:
        requested = CancellationRequested(f"{order_id}/cancellation", order_id)
        cancelled = OrderCancelled(f"{order_id}/cancelled", order_id)
        stages: tuple[tuple[OrderEvent, ...], ...] = ((placed,), (requested, *meanwhile), (cancelled,))
        return SagaPlan(order_id, stages, f"cancelled, 0 cents paid, to {address}, notes: {note}")
    paid = PaymentReceived(f"{order_id}/paid", order_id, total)
    stages = ((placed,), (paid, *meanwhile), (OrderShipped(f"{order_id}/shipped", order_id),))
    return SagaPlan(order_id, stages, f"shipped, {total} cents paid, to {address}, notes: {note}")


def _address(dice: random.Random) -> str:
    return f"{dice.choice(_STREETS)} {dice.randrange(1, 200)}"

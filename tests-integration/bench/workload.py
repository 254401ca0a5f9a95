"""The sagas that are stored: an order of about 1 KB, made from its number alone, the same for every subject."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from saga_bus.store import SagaMetadata, SagaState

__all__ = ["SAGA_NAME", "OrderState", "correlation_id_of", "saga_id_of", "state_of"]

SAGA_NAME = "OrderSaga"

_START = datetime(2025, 1, 1, tzinfo=UTC)
_SPREAD = 2_654_435_761  # odd, so that multiplying by it modulo 2**32 maps no two numbers to one


class Item(msgspec.Struct):
    """A line of an order; the price is in cents."""

    sku: str
    title: str
    quantity: int
    price: int


class Address(msgspec.Struct):
    """Where an order goes."""

    name: str
    street: str
    city: str
    postcode: str
    country: str


class OrderState(SagaState, kw_only=True):
    """The state of an order saga, about 1,000 bytes as JSON."""

    order_id: str
    status: str
    customer: str
    total: int
    paid_at: datetime | None = None
    items: list[Item]
    address: Address
    notes: list[str]
    tags: dict[str, str]


_ITEMS = [
    Item("BK-2041-07", "Notebook, dotted, 160 pages", 3, 1295),
    Item("PN-0007-31", "Fountain pen, medium nib, blue", 1, 4900),
    Item("IN-0450-02", "Ink, 50 ml, Prussian blue", 2, 1150),
    Item("LM-1188-19", "Desk lamp with a dimmer, brass", 1, 8950),
]
_ADDRESS = Address("Zoë Lindqvist", "Hamngatan 21, 3 tr", "Göteborg", "411 14", "SE")
_NOTES = ["Leave the parcel with the neighbour at number 23.", "The customer asked for a gift receipt."]
_TAGS = {"channel": "web", "campaign": "autumn-letters", "warehouse": "north-2", "carrier": "post"}


def saga_id_of(number: int) -> str:
    """The saga id of an order: in the form of a UUIDv7, so later orders sort later.

    Args:
        number: The order's number, from 0.
    """
    return f"01941f29-7c00-7000-8000-{number:012x}"


def correlation_id_of(number: int) -> str:
    """The correlation id of an order, in no order.

    Args:
        number: The order's number, from 0 and below 2**32.
    """
    return f"order-{number * _SPREAD % 2**32:08x}"


def state_of(number: int, version: int) -> OrderState:
    """One version of an order; from version 1 on, it was updated just now.

    Args:
        number: The order's number, from 0.
        version: The version, from 0.
    """
    created = _START + timedelta(milliseconds=number)
    return OrderState(
        metadata=SagaMetadata(
            saga_id=saga_id_of(number),
            version=version,
            created_at=created,
            updated_at=datetime.now(UTC) if version else created,
        ),
        order_id=correlation_id_of(number),
        status=f"step-{version % 10}",
        customer="c-48151623",
        total=20_035 + version,
        items=_ITEMS,
        address=_ADDRESS,
        notes=_NOTES,
        tags=_TAGS,
    )

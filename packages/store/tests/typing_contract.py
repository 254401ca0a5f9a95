"""What type checkers must infer; they read this file, nothing runs it."""

from __future__ import annotations

from typing import Any, assert_type

from saga_bus.store import (
    BaseSagaStore,
    Coalescer,
    DeletesConditionally,
    FindsSagas,
    HasMetadata,
    JoinsTransactions,
    JsonStateCodec,
    ManagesSchema,
    Page,
    Ping,
    Pings,
    PurgesSagas,
    SagaFilter,
    SagaMetadata,
    SagaRecord,
    SagaRepository,
    SagaState,
    SagaStore,
    StateCodec,
    StoreCapabilities,
    TypedStateCodec,
    UntypedSagaState,
    capabilities_of,
    open_store,
)
from saga_bus.store_inmemory import InMemorySagaStore


class OrderState(SagaState, kw_only=True):
    order_id: str
    paid: bool = False


class RefundState(SagaState, kw_only=True):
    amount: int = 0


async def any_store_of_a_state(store: SagaStore[OrderState]) -> None:
    assert_type(await store.get_by_id("Order", "1"), OrderState | None)
    assert_type(await store.get_by_correlation_id("Order", "c"), OrderState | None)
    await store.insert("Order", "c", OrderState(order_id="o"))
    await store.update("Order", OrderState(order_id="o"), 0)
    await store.insert("Order", "c", RefundState())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await store.delete("Order", "1")


def the_abilities(store: InMemorySagaStore[OrderState], base: BaseSagaStore[OrderState]) -> None:
    contract: SagaStore[OrderState] = store
    contract = base
    conditional: DeletesConditionally = store
    finds: FindsSagas[OrderState] = store
    finds_wider: FindsSagas[SagaState] = finds
    purges: PurgesSagas = store
    pings: Pings = store
    schema: ManagesSchema = base
    transactions: JoinsTransactions = base
    wrong: SagaStore[RefundState] = store  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(contract, conditional, finds_wider, purges, pings, schema, transactions, wrong)
    assert_type(capabilities_of(store), StoreCapabilities)


async def pages(finds: FindsSagas[OrderState], pings: Pings) -> None:
    page = await finds.find(SagaFilter(saga_name="Order", order="stalest"), limit=10, cursor=None)
    assert_type(page, Page[OrderState])
    assert_type(page.items, tuple[SagaRecord[OrderState], ...])
    assert_type(page.items[0].state.order_id, str)
    assert_type(page.cursor, str | None)
    assert_type(await finds.count(SagaFilter()), int)
    assert_type(await pings.ping(), Ping)


async def one_saga_of_a_store_of_many(store: BaseSagaStore[Any]) -> None:
    orders = store.repository("Order", OrderState)
    assert_type(orders, SagaRepository[OrderState])
    assert_type(store.repository("Refund", RefundState), SagaRepository[RefundState])
    assert_type(await orders.get_by_id("1"), OrderState | None)
    assert_type(await orders.get_by_correlation_id("c"), OrderState | None)
    await orders.insert("c", RefundState())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def pay(state: OrderState) -> None:
        state.paid = True

    async def pay_later(state: OrderState) -> None:
        state.paid = True

    async def replaced(state: OrderState) -> OrderState | None:
        return None if state.paid else OrderState(metadata=state.metadata, order_id=state.order_id, paid=True)

    def refund(state: RefundState) -> None:
        state.amount = 1

    assert_type(await orders.mutate("c", pay), OrderState)
    assert_type(await orders.mutate("c", pay_later), OrderState)
    assert_type(await orders.mutate("c", replaced), OrderState)
    assert_type(await orders.mutate("c", lambda state: OrderState(order_id=state.order_id)), OrderState)
    await orders.mutate("c", refund)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def stores(codec: JsonStateCodec) -> None:
    encodes: StateCodec = codec
    takes_types: TypedStateCodec = codec
    typed = InMemorySagaStore[OrderState](state_types={"Order": OrderState}, codec=takes_types)
    async with typed as entered:
        assert_type(entered, InMemorySagaStore[OrderState])
    assert_type(typed.bind(object()), InMemorySagaStore[OrderState])
    assert_type(typed.get_all("Order"), list[SagaRecord[OrderState]])
    assert_type(open_store("memory://", codec=encodes), BaseSagaStore[Any])


def metadata(state: OrderState, untyped: UntypedSagaState) -> None:
    assert_type(state.metadata, SagaMetadata)
    assert_type(state.metadata.next(is_completed=True), SagaMetadata)
    state.metadata.next(is_complete=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    states: list[HasMetadata] = [state, untyped]
    print(states)


def outcomes(coalescer: Coalescer[str, int]) -> None:
    async def use() -> None:
        assert_type(await coalescer.call("x"), int)
        await coalescer.call(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    print(use)

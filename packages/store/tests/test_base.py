"""BaseSagaStore: life, checks before anything is sent, and what a backend gets to see."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from saga_bus.store import (
    BaseSagaStore,
    FoundRow,
    InvalidSagaError,
    SagaFilter,
    SagaMetadata,
    SagaQuery,
    SagaRow,
    SagaState,
    StateEncodeError,
    StateTooLargeError,
    StoreCapabilities,
    StoreClosedError,
    UnsupportedOperationError,
    UntypedSagaState,
    capabilities_of,
)
from saga_bus.store_inmemory import InMemorySagaStore

NOW = datetime(2024, 1, 2, tzinfo=UTC)
NAIVE = datetime(2024, 1, 2)  # noqa: DTZ001
EVERYTHING = StoreCapabilities(
    conditional_delete=True, query=True, retention=True, schema=True, transactions=True, ping=True
)


class OrderState(SagaState, kw_only=True):
    note: str = ""


class FakeStore(BaseSagaStore[Any]):
    """A backend that writes down every primitive that reaches it."""

    def __init__(self, capabilities: StoreCapabilities = EVERYTHING, **options: Any) -> None:
        super().__init__(**options)
        self.capabilities = capabilities
        self.sent: list[tuple[str, Any]] = []
        self.opened = self.closed = 0
        self.may_open = asyncio.Event()
        self.may_open.set()
        self.failures: list[Exception] = []
        self.rows: list[FoundRow] = []
        self.batches: list[int] = []

    async def _open(self) -> None:
        self.opened += 1
        await self.may_open.wait()
        if self.failures:
            raise self.failures.pop()

    async def _close(self) -> None:
        self.closed += 1
        await asyncio.sleep(0)

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        self.sent.append(("insert", (row, correlation_id)))

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        self.sent.append(("update", (row, expected_version)))

    async def _get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        self.sent.append(("get_by_id", (saga_name, saga_id)))
        return None

    async def _get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        self.sent.append(("get_by_correlation_id", (saga_name, correlation_id)))
        return None

    async def _delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        self.sent.append(("delete", (saga_name, saga_id, expected_version)))

    async def _find(self, query: SagaQuery) -> Sequence[FoundRow]:
        self.sent.append(("find", query))
        return self.rows[: query.limit]

    async def _count(self, where: SagaFilter) -> int:
        self.sent.append(("count", where))
        return 7

    async def _purge(self, saga_name: str, before: datetime, batch_size: int) -> int:
        self.sent.append(("purge", batch_size))
        return self.batches.pop(0)

    async def _create_schema(self) -> None:
        self.sent.append(("create_schema", None))

    async def _check_schema(self) -> None:
        self.sent.append(("check_schema", None))

    async def _drop_schema(self) -> None:
        self.sent.append(("drop_schema", None))

    def _bind(self, connection: Any) -> FakeStore:
        self.sent.append(("bind", connection))
        return self

    async def _ping(self) -> Sequence[str]:
        self.sent.append(("ping", None))
        return ["no backup"]


def new() -> OrderState:
    return OrderState()


def moved(version: int, **fields: Any) -> OrderState:
    fields = {"saga_id": "1", "version": version, "created_at": NOW, "updated_at": NOW, **fields}
    return OrderState(metadata=SagaMetadata(**fields))


async def bound(store: FakeStore) -> None:
    store.bind("connection")


OPERATIONS: dict[str, Callable[[FakeStore], Awaitable[Any]]] = {
    "get_by_id": lambda store: store.get_by_id("Order", "1"),
    "get_by_correlation_id": lambda store: store.get_by_correlation_id("Order", "c"),
    "insert": lambda store: store.insert("Order", "c", new()),
    "update": lambda store: store.update("Order", moved(1), 0),
    "delete": lambda store: store.delete("Order", "1"),
    "find": lambda store: store.find(SagaFilter()),
    "find nothing": lambda store: store.find(SagaFilter(), limit=0),
    "count": lambda store: store.count(SagaFilter()),
    "purge": lambda store: store.delete_completed_before("Order", NOW, dry_run=True),
    "create_schema": lambda store: store.create_schema(),
    "check_schema": lambda store: store.check_schema(),
    "drop_schema": lambda store: store.drop_schema(),
    "bind": bound,
    "ping": lambda store: store.ping(),
}
NEED_NO_OPEN_STORE = {"create_schema", "check_schema", "drop_schema", "bind"}


def test_a_store_is_opened_once_by_whichever_of_many_tasks_comes_first() -> None:
    async def scenario() -> None:
        store = FakeStore()
        assert store.opened == 0
        await asyncio.gather(*(store.get_by_id("Order", str(number)) for number in range(50)))
        assert (store.opened, len(store.sent)) == (1, 50)
        async with store:
            await store.ping()
        assert (store.opened, store.closed) == (1, 1)

    asyncio.run(scenario())


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_opens_what_it_needs(name: str) -> None:
    async def scenario() -> None:
        store = FakeStore()
        await OPERATIONS[name](store)
        assert store.opened == (name not in NEED_NO_OPEN_STORE)

    asyncio.run(scenario())


def test_a_failed_opening_is_tried_again_by_the_next_call() -> None:
    async def scenario() -> None:
        store = FakeStore()
        store.failures = [OSError("second"), OSError("first")]
        results = await asyncio.gather(*(store.get_by_id("Order", "1") for _ in range(3)), return_exceptions=True)
        assert [repr(result) for result in results] == ["OSError('first')", "OSError('second')", "None"]
        assert (store.opened, len(store.sent)) == (3, 1)

    asyncio.run(scenario())


def test_a_cancelled_opening_is_tried_again_by_the_next_call() -> None:
    async def scenario() -> None:
        store = FakeStore()
        store.may_open.clear()
        first, second = (asyncio.ensure_future(store.get_by_id("Order", "1")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        store.may_open.set()
        assert await second is None
        assert first.cancelled()
        assert store.opened == 2

    asyncio.run(scenario())


def test_closing_twice_closes_once_and_what_was_never_opened_is_not_closed() -> None:
    async def scenario() -> None:
        store, never = FakeStore(), FakeStore()
        await store.ping()
        await asyncio.gather(store.close(), store.close(), never.close())
        await store.close()
        assert (store.closed, never.closed) == (1, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("was_open", [True, False])
def test_every_use_after_close_is_refused(name: str, was_open: bool) -> None:
    async def scenario() -> None:
        store = FakeStore()
        if was_open:
            await store.get_by_id("Order", "1")
            store.sent.clear()
        await store.close()
        with pytest.raises(StoreClosedError, match="FakeStore is closed"):
            await OPERATIONS[name](store)
        with pytest.raises(StoreClosedError):
            await store.__aenter__()
        assert (store.sent, store.opened) == ([], int(was_open))

    asyncio.run(scenario())


def test_closing_while_opening_waits_and_then_closes_what_was_opened() -> None:
    async def scenario() -> None:
        store = FakeStore()
        store.may_open.clear()
        opening = asyncio.ensure_future(store.get_by_id("Order", "1"))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(store.close())
        late = asyncio.ensure_future(store.get_by_id("Order", "2"))
        await asyncio.sleep(0)
        assert not closing.done()
        store.may_open.set()
        results = await asyncio.gather(opening, closing, late, return_exceptions=True)
        assert isinstance(results[2], StoreClosedError)
        assert (store.opened, store.closed) == (1, 1)

    asyncio.run(scenario())


def test_the_context_manager_opens_gives_the_store_and_closes_also_after_an_error() -> None:
    async def scenario() -> None:
        store = FakeStore()

        async def fail() -> None:
            async with store as inner:
                assert inner is store
                assert (store.opened, store.closed) == (1, 0)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert store.closed == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("ability", "use"),
    [
        ("conditional_delete", lambda store: store.delete("Order", "1", 0)),
        ("query", OPERATIONS["find"]),
        ("query", OPERATIONS["count"]),
        ("retention", OPERATIONS["purge"]),
        ("schema", OPERATIONS["create_schema"]),
        ("schema", OPERATIONS["check_schema"]),
        ("schema", OPERATIONS["drop_schema"]),
        ("transactions", OPERATIONS["bind"]),
        ("ping", OPERATIONS["ping"]),
    ],
)
def test_an_ability_that_is_not_declared_is_refused(ability: str, use: Callable[[FakeStore], Awaitable[Any]]) -> None:
    async def scenario() -> None:
        store = FakeStore(StoreCapabilities())
        with pytest.raises(UnsupportedOperationError, match=f"FakeStore does not declare '{ability}'"):
            await use(store)
        assert (store.sent, store.opened) == ([], 0)
        await store.delete("Order", "1")  # without a version it is one of the five

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "use",
    [
        *(lambda store, key=key: store.get_by_id(*key) for key in (("", "1"), ("Order", ""), ("Order", "a\x00"))),
        *(lambda store, key=key: store.get_by_correlation_id(*key) for key in (("", "c"), ("Order", "c" * 257))),
        *(lambda store, key=key: store.delete(*key) for key in (("", "1"), ("Order", "a" * 129))),
        *(lambda store, version=version: store.delete("Order", "1", version) for version in (-1, True, "0", 2**63)),
        lambda store: store.insert("", "c", new()),
        lambda store: store.insert("Order", "", new()),
        lambda store: store.insert("Order", "c", moved(0, saga_id="")),
        lambda store: store.insert("Order", "c", moved(-1)),
        lambda store: store.insert("Order", "c", {"metadata": {}}),
        lambda store: store.insert("Order", "c", None),
        *(
            lambda store, v=v, e=e: store.update("Order", moved(v), e)
            for v, e in ((0, 0), (2, 0), (1, 1), (1, -1), (1, True), (2, True), (1, "0"), (1, 0.0))
        ),
        lambda store: store.find({"saga_name": "Order"}),
        lambda store: store.find(SagaFilter(created_after=NAIVE)),
        lambda store: store.find(SagaFilter(order="due")),
        *(lambda store, limit=limit: store.find(SagaFilter(), limit=limit) for limit in (-1, True, None, 1.0)),
        lambda store: store.find(SagaFilter(), limit=0, cursor="bent"),
        lambda store: store.count(SagaFilter(saga_name="")),
        lambda store: store.delete_completed_before("", NOW),
        lambda store: store.delete_completed_before("Order", NAIVE),
        *(lambda store, size=size: store.delete_completed_before("Order", NOW, batch_size=size) for size in (0, True)),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_opened_or_sent(use: Callable[[Any], Awaitable[Any]]) -> None:
    async def scenario() -> None:
        store = FakeStore()
        with pytest.raises(InvalidSagaError):
            await use(store)
        assert (store.sent, store.opened) == ([], 0)

    asyncio.run(scenario())


def test_a_row_is_the_flat_index_over_the_metadata() -> None:
    async def scenario() -> None:
        store = FakeStore(state_types={"Order": OrderState})
        state = moved(4, is_completed=True, archived_at=NOW, timeout_expires_at=NOW, outbox=({"a": 1},))
        await store.update("Order", state, 3)
        ((_, (row, expected)),) = store.sent
        assert expected == 3
        assert msgspec.json.decode(row.document) == msgspec.to_builtins(state, str_keys=True) | {
            "metadata": msgspec.json.decode(msgspec.json.encode(state.metadata))
        }
        assert row == SagaRow("Order", "1", 4, row.document, True, NOW, NOW, NOW, NOW, True)
        store.sent.clear()
        await store.insert("Order", "c", moved(0))
        ((_, (row, correlation_id)),) = store.sent
        assert correlation_id == "c"
        assert row == SagaRow("Order", "1", 0, row.document, False, NOW, NOW, None, None, False)

    asyncio.run(scenario())


def test_a_state_beyond_the_declared_limit_is_refused_by_its_encoded_size() -> None:
    async def scenario() -> None:
        probe = FakeStore()
        await probe.insert("Order", "c", moved(0))
        size = len(probe.sent[0][1][0].document)
        await FakeStore(StoreCapabilities(max_state_bytes=size)).insert("Order", "c", moved(0))
        tight = FakeStore(StoreCapabilities(max_state_bytes=size - 1))
        with pytest.raises(StateTooLargeError) as caught:
            await tight.insert("Order", "c", moved(0))
        assert (caught.value.size, caught.value.limit, tight.sent) == (size, size - 1, [])

    asyncio.run(scenario())


def found(number: int) -> FoundRow:
    state = moved(0, saga_id=str(number))
    return FoundRow("Order", str(number), f"c{number}", number, FakeStore()._codec.encode(state))


def test_a_page_asks_for_one_row_more_and_its_cursor_continues_behind_its_last_record() -> None:
    async def scenario() -> None:
        store = FakeStore()
        store.rows = [found(number) for number in range(3)]
        page = await store.find(SagaFilter(), limit=2)
        assert [record.correlation_id for record in page.items] == ["c0", "c1"]
        assert isinstance(page.items[0].state, UntypedSagaState)
        assert page.cursor is not None
        store.rows = store.rows[2:]
        rest = await store.find(SagaFilter(), limit=2, cursor=page.cursor)
        assert ([record.correlation_id for record in rest.items], rest.cursor) == (["c2"], None)
        first, second = (query for _, query in store.sent)
        assert (first.order, first.limit, first.after) == ("newest", 3, None)
        assert (second.after.moment, second.after.saga_name, second.after.saga_id) == (1, "Order", "1")
        nothing = await store.find(SagaFilter(), limit=0, cursor=page.cursor)
        assert (nothing.items, nothing.cursor, len(store.sent)) == ((), page.cursor, 2)

    asyncio.run(scenario())


def test_limits_and_batches_beyond_32_bits_are_cut_to_what_drivers_take() -> None:
    async def scenario() -> None:
        store = FakeStore()
        store.batches = [0]
        await store.find(SagaFilter(), limit=2**70)
        await store.delete_completed_before("Order", NOW, batch_size=2**70)
        assert [store.sent[0][1].limit, store.sent[1][1]] == [2**31 - 1, 2**31 - 2]

    asyncio.run(scenario())


def test_a_purge_goes_on_until_a_batch_is_empty_and_a_dry_run_only_counts() -> None:
    async def scenario() -> None:
        store = FakeStore()
        store.batches = [5, 5, 1, 0]
        assert await store.delete_completed_before("Order", NOW, batch_size=5) == 11
        assert store.sent == [("purge", 5)] * 4
        store.sent.clear()
        assert await store.delete_completed_before("Order", NOW, dry_run=True) == 7
        assert store.sent == [("count", SagaFilter(saga_name="Order", completed=True, updated_before=NOW))]

    asyncio.run(scenario())


def test_a_ping_tells_its_time_and_the_backends_warnings() -> None:
    async def scenario() -> None:
        ping = await FakeStore().ping()
        assert ping.seconds >= 0
        assert ping.warnings == ("no backup",)

    asyncio.run(scenario())


def test_capabilities_are_declared_never_inferred() -> None:
    class Silent:
        def bind(self, connection: Any) -> None: ...

    class Wrong:
        capabilities = frozenset({"query"})

    assert capabilities_of(Silent()) == StoreCapabilities()
    assert capabilities_of(FakeStore()) == EVERYTHING
    with pytest.raises(TypeError, match=r"Wrong\.capabilities must be StoreCapabilities"):
        capabilities_of(Wrong())


class Older(SagaState, kw_only=True):
    note: str = ""


class Newer(Older, kw_only=True):
    extra: int = 0


@pytest.mark.parametrize("state", [Newer(extra=5), SagaState()], ids=["a subclass with a field more", "a base class"])
def test_a_state_of_another_type_than_the_sagas_is_refused_before_it_loses_a_field(state: SagaState) -> None:
    async def scenario() -> None:
        store: InMemorySagaStore[Any] = InMemorySagaStore(state_types={"Order": Older})
        with pytest.raises(StateEncodeError, match="saga 'Order' has the state type Older, not "):
            await store.insert("Order", "order-1", state)
        assert store.size == 0
        await store.insert("Unregistered", "order-1", state)  # nothing is known of its type
        untyped = UntypedSagaState(data={"note": "from a tool"})
        await store.insert("Order", "order-2", untyped)
        found = await store.get_by_correlation_id("Order", "order-2")
        assert found == Older(metadata=untyped.metadata, note="from a tool")

    asyncio.run(scenario())

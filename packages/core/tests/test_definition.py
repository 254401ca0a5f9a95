"""Whatever cannot work is refused when the definition or the bus is made."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgspec
import pytest

from bus_helpers import Start, State, Step
from saga_bus.core import (
    ConfigurationError,
    InMemoryTransport,
    Intervals,
    MessageContext,
    RetryPolicy,
    SagaContext,
    SagaDefinition,
    SagaRegistration,
    create_bus,
)
from saga_bus.store import SagaState, StoreCapabilities
from saga_bus.store_inmemory import InMemorySagaStore

if TYPE_CHECKING:
    from decimal import Decimal as Unseen

T = TypeVar("T")


def definition(**options: Any) -> SagaDefinition[State]:
    return SagaDefinition("Saga", State, correlate="key", **options)


def whole(name: str = "Saga", **options: Any) -> SagaDefinition[State]:
    saga = SagaDefinition(name, State, correlate="key", **options)

    @saga.starts(Start)
    async def start(message: Start, state: State, ctx: SagaContext) -> None: ...

    return saga


def bus(*sagas: Any, **options: Any) -> Any:
    return create_bus(transport=InMemoryTransport(), **{"store": InMemorySagaStore(), "sagas": sagas, **options})


# -- handlers --------------------------------------------------------------------------------------------


async def plain(message, state, ctx): ...
async def exact(message: Step, state: State, ctx: SagaContext) -> None: ...
async def wider(message: msgspec.Struct, state: SagaState, ctx: MessageContext) -> State | None: ...
async def anything(message: Any, state: object, ctx: T, more: int = 0) -> State: ...
async def either(message: Start | Step, state: State, ctx: SagaContext) -> Any: ...
async def unseen_elsewhere(message: Step, state: State, ctx: SagaContext, when: Unseen | None = None) -> None: ...


class Callable:
    async def __call__(self, message: Step, state: State, ctx: SagaContext) -> None: ...


@pytest.mark.parametrize("handler", [plain, exact, wider, anything, either, unseen_elsewhere, Callable()])
def test_a_handler_that_fits_is_taken_and_stays_what_it_is(handler: Any) -> None:
    assert definition().continues(Step)(handler) is handler


def not_async(message, state, ctx): ...
async def too_few(message, state): ...
async def too_many(message, state, ctx, more): ...
async def other_message(message: Start, state: State, ctx: SagaContext) -> None: ...
async def other_state(message: Step, state: int, ctx: SagaContext) -> None: ...
async def other_context(message: Step, state: State, ctx: dict[str, str]) -> None: ...
async def other_answer(message: Step, state: State, ctx: SagaContext) -> bool: ...
async def wider_answer(message: Step, state: State, ctx: SagaContext) -> SagaState: ...
async def swapped(state: State, message: Step, ctx: SagaContext) -> None: ...
async def by_keyword(message: Step, state: State, *, ctx: SagaContext) -> None: ...
async def unseen(message: Unseen, state: State, ctx: SagaContext) -> None: ...
async def unreadable(message: list[Unseen], state: State, ctx: SagaContext) -> None: ...
async def number(message: 5, state: State, ctx: SagaContext) -> None: ...  # type: ignore[valid-type]


@pytest.mark.parametrize(
    ("handler", "what"),
    [
        (not_async, "must be an async def"),
        (5, "must be an async def"),
        (too_few, r"must take \(message, state, context\)"),
        (too_many, r"must take \(message, state, context\)"),
        (by_keyword, r"must take \(message, state, context\)"),
        (other_message, "gets the message as Step, and message is annotated Start"),
        (other_state, "gets the state as State, and state is annotated int"),
        (other_context, "gets the context as SagaContext"),
        (other_answer, "must return None or a State, and is annotated bool"),
        (wider_answer, "must return None or a State"),
        (swapped, "gets the message as Step, and state is annotated State"),
        (unseen, "gets the message as Step, and message is annotated Unseen"),
        (unreadable, "ambiguous"),
        (number, "ambiguous"),
    ],
)
def test_a_handler_that_does_not_fit_is_refused(handler: Any, what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        definition().continues(Step)(handler)


def test_types_that_only_a_function_knows_are_read_by_their_name() -> None:
    class Local(msgspec.Struct):
        key: str

    saga = definition()

    @saga.starts(Local)
    async def start(message: Local, state: State, ctx: SagaContext) -> State | None: ...

    with pytest.raises(ConfigurationError, match="annotated Other"):

        @saga.continues(Step)
        async def step(message: Other, state: State, ctx: SagaContext) -> None: ...  # noqa: F821


def test_a_timeout_handler_is_checked_too_and_there_is_one() -> None:
    saga = definition()
    with pytest.raises(ConfigurationError, match=r"must take \(state, context\)"):
        saga.on_timeout(exact)  # type: ignore[arg-type]

    @saga.on_timeout
    async def late(state: State, ctx: SagaContext) -> None: ...

    with pytest.raises(ConfigurationError, match="has an on_timeout handler already"):
        saga.on_timeout(late)


# -- messages --------------------------------------------------------------------------------------------


class NoName(msgspec.Struct):
    message_name: ClassVar[str] = ""
    key: str = ""


class Unencodable(msgspec.Struct):
    key: str
    what: complex | bytes | str | int | SagaDefinition[Any]


@pytest.mark.parametrize("message_type", [dict, str, 5, "Start", Start("a"), NoName, Unencodable, list[int]])
def test_what_is_no_message_type_is_refused(message_type: Any) -> None:
    with pytest.raises(ConfigurationError):
        definition().continues(message_type)


def test_two_handlers_of_one_message_are_refused() -> None:
    class Start(msgspec.Struct):  # another type of the same name
        key: str

    saga = whole()
    for again in (globals()["Start"], Start):
        with pytest.raises(ConfigurationError, match="has a handler for messages named 'Start' already"):
            saga.continues(again)


@dataclass
class Data:
    key: int
    other: float = 0

    @property
    def made(self) -> uuid.UUID:
        return uuid.UUID(int=self.key)


@pytest.mark.parametrize(
    ("correlate", "found"),
    [
        ("key", "7"),
        ("made", str(uuid.UUID(int=7))),
        (lambda data: f"n-{data.key}", "n-7"),
        (lambda data: data.key, "7"),
    ],
)
def test_a_message_correlates_by_a_field_a_property_or_a_function(correlate: Any, found: str) -> None:
    saga = SagaDefinition("Saga", State)
    saga.starts(Data, correlate=correlate)(plain)
    assert saga.use()["Data"].correlate(Data(7)) == found


@pytest.mark.parametrize(
    ("correlate", "what"),
    [
        (None, "is not told how Data correlates"),
        ("missing", "Data has no such field"),
        (5, "the name of a field or a function"),
    ],
)
def test_a_correlation_that_cannot_work_is_refused(correlate: Any, what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        SagaDefinition("Saga", State).starts(Data, correlate=correlate)


# -- the definition --------------------------------------------------------------------------------------


class Needs(SagaState, kw_only=True):
    order_id: str


def test_a_new_state_that_cannot_be_made_is_refused() -> None:
    saga = SagaDefinition("Saga", Needs, correlate="key")
    with pytest.raises(ConfigurationError, match=r"say how a new one is made: starts\(Start, new=lambda"):
        saga.starts(Start)
    saga.starts(Start, new=lambda start: Needs(order_id=start.key))(plain)


@pytest.mark.parametrize(
    "options",
    [
        {"name": ""},
        {"name": "x" * 129},
        {"name": "a\0b"},
        {"name": 5},
        {"state_type": dict},
        {"state_type": Start},
        {"state_type": "State"},
        {"endpoint": ""},
        {"endpoint": "a\nb"},
        {"completed": "forget"},
        {"on_completed": "retry"},
        {"on_missing": "start"},
        {"on_missing": not_async},
        {"on_missing": exact},
        {"remember": 0},
        {"remember": True},
    ],
)
def test_an_option_that_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        SagaDefinition(**{"name": "Saga", "state_type": State, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"conflicts": -1},
        {"unavailable": 1.5},
        {"attempts": True},
        {"first_pause": 1},
        {"longest_pause": None},
        {"first_pause": timedelta(seconds=-1)},
        {"first_pause": timedelta(seconds=2), "longest_pause": timedelta(seconds=1)},
    ],
)
def test_a_policy_that_cannot_work_is_refused(options: Any) -> None:
    with pytest.raises(ConfigurationError):
        RetryPolicy(**options)


@pytest.mark.parametrize("options", [{"timers": timedelta(0)}, {"confirm": 1}, {"grace": timedelta(seconds=-1)}])
def test_intervals_that_cannot_work_are_refused(options: Any) -> None:
    with pytest.raises(ConfigurationError):
        Intervals(**options)


def test_a_saga_that_can_never_begin_is_refused() -> None:
    saga = definition()
    saga.continues(Step)(exact)
    with pytest.raises(ConfigurationError, match="can never begin"):
        bus(saga)


def test_a_declared_message_without_a_handler_is_refused() -> None:
    saga = whole()
    saga.continues(Step)  # and no function below it
    with pytest.raises(ConfigurationError, match="declares 'Step' and has no handler"):
        bus(saga)


def test_a_definition_in_use_does_not_change() -> None:
    saga = whole()
    late = saga.continues(Step)
    del saga._declared
    saga._declared = set()
    bus(saga)
    for change in (lambda: saga.continues(Data), lambda: late(exact), lambda: saga.on_timeout(plain)):
        with pytest.raises(ConfigurationError, match="in use"):
            change()


# -- the bus ---------------------------------------------------------------------------------------------


class Bare:
    """Has the five operations and nothing else."""

    async def get_by_id(self, saga_name: str, saga_id: str) -> Any: ...
    async def get_by_correlation_id(self, saga_name: str, correlation_id: str) -> Any: ...
    async def insert(self, saga_name: str, correlation_id: str, state: Any) -> None: ...
    async def update(self, saga_name: str, state: Any, expected_version: int) -> None: ...
    async def delete(self, saga_name: str, saga_id: str) -> None: ...


class NoQuery(InMemorySagaStore[Any]):
    capabilities = StoreCapabilities(conditional_delete=True)


def with_timeout() -> SagaDefinition[State]:
    saga = whole()

    @saga.on_timeout
    async def late(state: State, ctx: SagaContext) -> None: ...

    return saga


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: bus(whole(), store=None), "saga 'Saga' has no store"),
        (lambda: bus(SagaRegistration(whole()), store=None), "saga 'Saga' has no store"),
        (lambda: bus(whole(), whole()), "two sagas have the name 'Saga'"),
        (lambda: bus(whole("A"), whole("B", endpoint="A")), "two sagas have the endpoint 'A'"),
        (lambda: bus(whole(), messages=[Start, Step]), "no saga handles Step"),
        (lambda: bus(whole(), messages=[dict]), "a message type is"),
        (lambda: bus(whole(), store=5), "five operations"),
        (lambda: bus("Saga"), "SagaDefinitions or SagaRegistrations"),
        (lambda: bus(whole(), concurrency=0), "concurrency"),
        (lambda: bus(SagaRegistration(whole(), concurrency=-1)), "concurrency"),
        (lambda: bus(with_timeout(), store=NoQuery()), "declares no query to find them"),
        (lambda: bus(with_timeout(), store=Bare()), "declares no query to find them"),
        (lambda: bus(whole(completed="delete"), store=Bare()), "conditional_delete"),
        (lambda: create_bus(transport=None, sagas=[]), "a transport has the methods"),  # type: ignore[arg-type]
    ],
)
def test_a_bus_that_cannot_work_is_refused(make: Any, what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        make()


def test_two_message_types_of_one_name_are_refused() -> None:
    class Start(msgspec.Struct):
        key: str

    other = SagaDefinition("Other", State, correlate="key")
    other.starts(Start)(plain)
    with pytest.raises(ConfigurationError, match="two message types are named 'Start'"):
        bus(whole(), other)


def test_a_configuration_error_is_a_value_error() -> None:
    assert issubclass(ConfigurationError, ValueError)


def test_a_store_with_the_five_operations_alone_does(caplog: pytest.LogCaptureFixture) -> None:
    bus(whole(), store=Bare())
    assert "declares no query" in caplog.text

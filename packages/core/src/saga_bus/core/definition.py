"""The declarative part: which messages a saga handles, how they find it, and what it does then."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_args

from saga_bus.core.context import MessageContext, SagaContext
from saga_bus.core.errors import ConfigurationError, CorrelationError
from saga_bus.core.messages import check_message_type, message_name
from saga_bus.core.outgoing import check_endpoint
from saga_bus.core.policies import CompletedPolicy, OnCompleted, OnMissing, RetryPolicy
from saga_bus.core.signatures import check_handler, raw_annotations
from saga_bus.store import InvalidSagaError, SagaMetadata
from saga_bus.store.checks import check_correlation_id, check_saga_name

__all__ = ["Correlation", "CorrelationId", "MissingHandler", "Route", "SagaDefinition", "SagaHandler", "TimeoutHandler"]

StateT = TypeVar("StateT")
MessageT = TypeVar("MessageT")

CorrelationId = str | int | uuid.UUID
Correlation = str | Callable[[MessageT], CorrelationId]
SagaHandler = Callable[[MessageT, StateT, SagaContext], Awaitable[StateT | None]]
TimeoutHandler = Callable[[StateT, SagaContext], Awaitable[StateT | None]]
MissingHandler = Callable[[Any, MessageContext], Awaitable[None]]


@dataclass(frozen=True)
class Route(Generic[StateT]):
    """What a saga does with one type of message.

    Args:
        message_type: The type.
        name: Its name.
        handler: The handler.
        correlate: Takes a message and returns its correlation id.
        new: Makes the state of a saga that the message starts; None when it starts none.
    """

    message_type: type
    name: str
    handler: Callable[[Any, StateT, SagaContext], Awaitable[StateT | None]]
    correlate: Callable[[Any], str]
    new: Callable[[Any], StateT] | None


class SagaDefinition(Generic[StateT]):
    """A saga: its name, its state type, and a handler for each message.

    ::

        orders = SagaDefinition("OrderSaga", OrderState, correlate="order_id")

        @orders.starts(OrderPlaced, new=lambda placed: OrderState(order_id=placed.order_id))
        async def place(message: OrderPlaced, state: OrderState, ctx: SagaContext) -> None:
            ctx.publish(RequestPayment(order_id=state.order_id))

        @orders.continues(PaymentReceived)
        async def pay(message: PaymentReceived, state: OrderState, ctx: SagaContext) -> None:
            state.status = "paid"
            ctx.complete()

    A handler changes the state that it gets, or returns a new one; the bus makes the metadata. It may run more than
    once for a message of which only one run is saved, so whatever it does beyond its state and its context must
    bear that.

    Args:
        name: The saga's name in the store, 1 to 128 characters.
        state_type: The type of its states.
        correlate: How messages correlate unless their decorator says otherwise: the name of an attribute, or a
            function of the message.
        endpoint: The name of the endpoint that it listens on; the saga's name when left out.
        retry: What happens when something fails.
        completed: What becomes of a saga that has ended: it is kept, deleted, or kept with ``archived_at`` set.
        on_completed: What becomes of a message for a saga that has ended: it goes to the dead letters, is ignored,
            or, if it is one that starts a saga, starts it anew in the place of the old one.
        on_missing: What becomes of a message that starts no saga and finds none: it goes to the dead letters, is
            ignored, is tried again by the retry policy first (for messages that may overtake the one that starts
            the saga), or a function ``async def (message, ctx)`` decides; what that raises follows the retry policy.
        remember: How many ids of handled messages a saga keeps, to know a message that is delivered again.

    Raises:
        ConfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        name: str,
        state_type: type[StateT],
        *,
        correlate: str | Callable[[Any], CorrelationId] | None = None,
        endpoint: str | None = None,
        retry: RetryPolicy | None = None,
        completed: CompletedPolicy = "keep",
        on_completed: OnCompleted = "dead-letter",
        on_missing: OnMissing | MissingHandler = "dead-letter",
        remember: int = 32,
    ) -> None:
        try:
            check_saga_name(name)
        except InvalidSagaError as error:
            raise ConfigurationError(str(error)) from error
        _check_state_type(name, state_type)
        _check_choice("completed", completed, get_args(CompletedPolicy))
        _check_choice("on_completed", on_completed, get_args(OnCompleted))
        if callable(on_missing):
            check_handler(on_missing, (("message", object), ("context", MessageContext)), None)
        else:
            _check_choice("on_missing", on_missing, get_args(OnMissing))
        if type(remember) is not int or remember < 1:
            raise ConfigurationError(f"remember must be an int of at least 1, not {remember!r}")
        self.name = name
        self.state_type = state_type
        self.endpoint = check_endpoint(name if endpoint is None else endpoint)
        self.retry = RetryPolicy() if retry is None else retry
        self.completed: CompletedPolicy = completed
        self.on_completed: OnCompleted = on_completed
        self.on_missing: OnMissing | MissingHandler = on_missing
        self.remember = remember
        self._correlate = correlate
        self._routes: dict[str, Route[StateT]] = {}
        self._declared: set[str] = set()
        self._timeout_handler: TimeoutHandler[StateT] | None = None
        self._in_use = False

    def __repr__(self) -> str:
        return f"SagaDefinition({self.name!r}, {self.state_type.__qualname__}, {sorted(self._routes)})"

    def starts(
        self,
        message_type: type[MessageT],
        *,
        correlate: Correlation[MessageT] | None = None,
        new: Callable[[MessageT], StateT] | None = None,
    ) -> Callable[[SagaHandler[MessageT, StateT]], SagaHandler[MessageT, StateT]]:
        """Declare the handler of a message that starts the saga, or continues it if it is there already.

        Args:
            message_type: The type.
            correlate: The name of an attribute, or a function of the message; the definition's when left out.
            new: Makes the state of a new saga from the message; ``state_type()`` when left out.

        Raises:
            ConfigurationError: The type, the correlation, ``new`` or the handler cannot work.
        """
        make: Callable[[Any], StateT]
        if new is None:
            try:
                self.state_type()
            except TypeError as error:
                raise ConfigurationError(
                    f"saga {self.name!r}: {self.state_type.__qualname__} has fields without defaults, so say how a "
                    f"new one is made: starts({message_type.__name__}, new=lambda message: ...)"
                ) from error
            make = _without_message(self.state_type)
        else:
            make = new
        return self._declare(message_type, correlate, make)

    def continues(
        self, message_type: type[MessageT], *, correlate: Correlation[MessageT] | None = None
    ) -> Callable[[SagaHandler[MessageT, StateT]], SagaHandler[MessageT, StateT]]:
        """Declare the handler of a message that needs a saga that is there.

        Args:
            message_type: The type.
            correlate: The name of an attribute, or a function of the message; the definition's when left out.

        Raises:
            ConfigurationError: The type, the correlation or the handler cannot work.
        """
        return self._declare(message_type, correlate, None)

    def on_timeout(self, handler: TimeoutHandler[StateT]) -> TimeoutHandler[StateT]:
        """Declare what happens when the saga's timeout is due: ``async def (state, ctx)``.

        Args:
            handler: The handler.

        Raises:
            ConfigurationError: It cannot work, or there is one already.
        """
        self._refuse_use()
        check_handler(handler, (("state", self.state_type), ("context", SagaContext)), self.state_type)
        if self._timeout_handler is not None:
            raise ConfigurationError(f"saga {self.name!r} has an on_timeout handler already")
        self._timeout_handler = handler
        return handler

    @property
    def timeout_handler(self) -> TimeoutHandler[StateT] | None:
        """What happens when the saga's timeout is due."""
        return self._timeout_handler

    @property
    def message_types(self) -> tuple[type, ...]:
        """The types of the messages that it handles."""
        return tuple(route.message_type for route in self._routes.values())

    def check(self) -> None:
        """Check that the definition is whole; a bus does so when it is made.

        Raises:
            ConfigurationError: No message starts the saga, or a declared message has no handler.
        """
        for name in sorted(self._declared - self._routes.keys()):
            raise ConfigurationError(f"saga {self.name!r} declares {name!r} and has no handler for it")
        if not any(route.new for route in self._routes.values()):
            raise ConfigurationError(f"saga {self.name!r} can never begin: no handler is declared with starts(...)")

    def use(self) -> dict[str, Route[StateT]]:
        """Take the definition into use: it is checked, and no handler can be declared any more.

        Returns:
            What it does with each message, by the message's name.

        Raises:
            ConfigurationError: It is not whole.
        """
        self.check()
        self._in_use = True
        return dict(self._routes)

    def _declare(
        self,
        message_type: type[MessageT],
        correlate: Correlation[MessageT] | None,
        new: Callable[[Any], StateT] | None,
    ) -> Callable[[SagaHandler[MessageT, StateT]], SagaHandler[MessageT, StateT]]:
        self._refuse_use()
        check_message_type(message_type)
        name = message_name(message_type)
        if name in self._routes:
            raise ConfigurationError(f"saga {self.name!r} has a handler for messages named {name!r} already")
        find = self._correlation(message_type, self._correlate if correlate is None else correlate)
        self._declared.add(name)

        def declare(handler: SagaHandler[MessageT, StateT]) -> SagaHandler[MessageT, StateT]:
            self._refuse_use()
            takes = (("message", message_type), ("state", self.state_type), ("context", SagaContext))
            check_handler(handler, takes, self.state_type)
            if name in self._routes:
                raise ConfigurationError(f"saga {self.name!r} has a handler for messages named {name!r} already")
            self._routes[name] = Route(message_type, name, handler, find, new)
            return handler

        return declare

    def _correlation(self, message_type: type, correlate: Any) -> Callable[[Any], str]:
        if correlate is None:
            raise ConfigurationError(
                f"saga {self.name!r} is not told how {message_type.__qualname__} correlates: give correlate="
            )
        if isinstance(correlate, str):
            if correlate not in _attributes(message_type):
                raise ConfigurationError(
                    f"saga {self.name!r} correlates by {correlate!r}, and {message_type.__qualname__} has no such field"
                )
            attribute = correlate
            return lambda message: _correlation_id(getattr(message, attribute, None), f"its field {attribute}")
        if not callable(correlate):
            raise ConfigurationError(f"correlate is the name of a field or a function, not {correlate!r}")
        return lambda message: _correlation_id(correlate(message), "its correlation function")

    def _refuse_use(self) -> None:
        if self._in_use:
            raise ConfigurationError(f"saga {self.name!r} is in use: declare its handlers before the bus is made")


def _correlation_id(value: Any, source: str) -> str:
    if value.__class__ is not str:
        if isinstance(value, bool) or not isinstance(value, str | int | uuid.UUID):
            raise CorrelationError(
                f"{source} gives no correlation id, but a {type(value).__name__}: a str, an int or a UUID is one"
            )
        value = str(value)
    try:
        check_correlation_id(value)
    except InvalidSagaError as error:
        raise CorrelationError(f"{source} gives no correlation id: {error}") from error
    return str(value)


def _without_message(state_type: type[StateT]) -> Callable[[Any], StateT]:
    return lambda _message: state_type()


def _attributes(a_type: type) -> set[str]:
    annotated = {name for base in a_type.__mro__ for name in raw_annotations(base)}
    return annotated | set(getattr(a_type, "__struct_fields__", ())) | set(dir(a_type))


def _check_state_type(name: str, state_type: object) -> None:
    if not isinstance(state_type, type):
        raise ConfigurationError(f"saga {name!r}: a state type is a class, not {state_type!r}")
    if "metadata" not in _attributes(state_type):
        raise ConfigurationError(
            f"saga {name!r}: {state_type.__qualname__} has no metadata: {SagaMetadata.__qualname__} field; "
            "derive it from SagaState"
        )


def _check_choice(option: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigurationError(f"{option} is one of {', '.join(map(repr, choices))}, not {value!r}")

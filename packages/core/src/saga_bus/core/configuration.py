"""What a bus is made of, and what cannot be put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from saga_bus.core.definition import SagaDefinition
from saga_bus.core.errors import ConfigurationError
from saga_bus.core.messages import check_message_type, message_name
from saga_bus.store import InvalidSagaError, SagaStore, UnsupportedOperationError

__all__ = ["Intervals", "Owned", "SagaRegistration", "StoreLike", "check_registrations", "register_type"]


@dataclass(frozen=True)
class Owned:
    """A store that the bus opens when it starts and closes when it stops.

    Args:
        store: The store.
    """

    store: SagaStore[Any]


StoreLike = SagaStore[Any] | Owned | str


@dataclass(frozen=True)
class SagaRegistration:
    """A saga with settings of its own in one bus.

    Args:
        definition: The saga.
        store: Its store, instead of the bus's.
        concurrency: The most messages of it in hand at once, instead of the bus's.
    """

    definition: SagaDefinition[Any]
    store: StoreLike | None = None
    concurrency: int | None = None


@dataclass(frozen=True)
class Intervals:
    """When the bus does what nobody asks it for.

    Args:
        timers: How often due timeouts and scheduled messages are looked for.
        confirm: How long a saga is quiet before the messages that it sent are cleared from its document.
        recover: How often messages are looked for that a worker saved and did not send.
        grace: How long those are left to that worker.
    """

    timers: timedelta = timedelta(seconds=1)
    confirm: timedelta = timedelta(seconds=1)
    recover: timedelta = timedelta(seconds=30)
    grace: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        for name in ("timers", "confirm", "recover", "grace"):
            value = getattr(self, name)
            if not isinstance(value, timedelta) or value <= timedelta(0):
                raise ConfigurationError(f"Intervals.{name} must be a positive timedelta, not {value!r}")


def check_registrations(registrations: Sequence[SagaRegistration], messages: Collection[type]) -> None:
    """Refuse sagas that cannot work together.

    Args:
        registrations: The sagas.
        messages: Types of messages that one of them must handle.

    Raises:
        ConfigurationError: They cannot.
    """
    names: Counter[str] = Counter()
    endpoints: Counter[str] = Counter()
    types: dict[str, type] = {}
    for registration in registrations:
        definition = registration.definition
        if not isinstance(definition, SagaDefinition):
            raise ConfigurationError(f"sagas are SagaDefinitions or SagaRegistrations, not {definition!r}")
        definition.check()
        names[definition.name] += 1
        endpoints[definition.endpoint] += 1
        for message_type in definition.message_types:
            name = message_name(message_type)
            if types.setdefault(name, message_type) is not message_type:
                raise ConfigurationError(f"two message types are named {name!r}: give one a message_name of its own")
    for what, counted in (("name", names), ("endpoint", endpoints)):
        twice = [value for value, number in counted.items() if number > 1]
        if twice:
            raise ConfigurationError(f"two sagas have the {what} {twice[0]!r}")
    for message_type in messages:
        check_message_type(message_type)
        if types.get(message_name(message_type)) is not message_type:
            raise ConfigurationError(f"no saga handles {message_type.__qualname__}")


def register_type(store: Any, saga_name: str, state_type: type) -> bool:
    """Tell a store the type of a saga's states, if it wants to know.

    Args:
        store: The store.
        saga_name: The saga's name.
        state_type: The type.

    Returns:
        Whether the store knows it now, as far as can be told.

    Raises:
        ConfigurationError: The store has another type for that name.
    """
    if not hasattr(store, "register"):
        return True  # a store of somebody's own knows its types by itself
    try:
        store.register(saga_name, state_type)
    except UnsupportedOperationError:
        return False  # so does a codec of somebody's own
    except InvalidSagaError as error:
        raise ConfigurationError(str(error)) from error
    return True

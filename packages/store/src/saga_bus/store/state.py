"""The state model: what every saga carries, and a ready-made base class for a user's states."""

from __future__ import annotations

import copy
import dataclasses
import os
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypedDict, TypeVar, Unpack, cast, runtime_checkable

import msgspec
from msgspec.structs import force_setattr, replace

from saga_bus.store.errors import InvalidSagaError

__all__ = [
    "HasMetadata",
    "MetadataChanges",
    "SagaMetadata",
    "SagaState",
    "UntypedSagaState",
    "new_saga_id",
    "with_metadata",
]

StateT = TypeVar("StateT")


def new_saga_id() -> str:
    """Make a new saga id: a UUID of version 7, so that ids made later sort later (RFC 9562, section 5.7)."""
    millis = time.time_ns() // 1_000_000
    number = (millis << 80) | int.from_bytes(os.urandom(10), "big")
    number &= ~((0xF << 76) | (0x3 << 62))
    return str(uuid.UUID(int=number | (0x7 << 76) | (0x2 << 62)))


class MetadataChanges(TypedDict, total=False):
    """What `SagaMetadata.next` may change."""

    is_completed: bool
    archived_at: datetime | None
    trace_parent: str | None
    trace_state: str | None
    timeout: timedelta | None
    timeout_expires_at: datetime | None
    outbox: tuple[dict[str, Any], ...]
    handled: tuple[str, ...]


class SagaMetadata(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a store and a bus know of a saga, whatever its state is.

    Timestamps are aware; they are converted to UTC and keep their microseconds. A field that has its
    default is left out of the document.

    Args:
        saga_id: Unique among the sagas of one name, 1 to 128 characters.
        version: The number of updates so far; an update raises it by exactly one.
        created_at: When the saga started.
        updated_at: When this version was made.
        is_completed: Whether the saga has ended.
        archived_at: When the saga was archived.
        trace_parent: The W3C ``traceparent`` of the message that made this version.
        trace_state: The W3C ``tracestate`` of that message.
        timeout: How long the saga waits before its timeout is due.
        timeout_expires_at: When the timeout is due.
        outbox: The bus's messages that are saved but not yet confirmed sent.
        handled: The ids of messages that the bus handled recently.

    Raises:
        InvalidSagaError: A timestamp is naive or leaves the years 1 to 9999 in UTC.
    """

    saga_id: str
    version: int
    created_at: datetime
    updated_at: datetime
    is_completed: bool = False
    archived_at: datetime | None = None
    trace_parent: str | None = None
    trace_state: str | None = None
    timeout: timedelta | None = None
    timeout_expires_at: datetime | None = None
    outbox: tuple[dict[str, Any], ...] = ()
    handled: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.created_at.__class__ is datetime is self.updated_at.__class__ and (
            self.created_at.tzinfo is UTC is self.updated_at.tzinfo
            and self.archived_at is None
            and self.timeout_expires_at is None
        ):
            return  # the usual case, and this runs for every read
        force_setattr(self, "created_at", _utc("created_at", self.created_at))
        force_setattr(self, "updated_at", _utc("updated_at", self.updated_at))
        if self.archived_at is not None:
            force_setattr(self, "archived_at", _utc("archived_at", self.archived_at))
        if self.timeout_expires_at is not None:
            force_setattr(self, "timeout_expires_at", _utc("timeout_expires_at", self.timeout_expires_at))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        # Only pydantic calls this: in its models metadata is written and read as everywhere else.
        from pydantic_core import core_schema  # noqa: PLC0415 - a dependency of those who use such models

        return core_schema.json_or_python_schema(
            json_schema=core_schema.no_info_plain_validator_function(lambda value: msgspec.convert(value, cls)),
            python_schema=core_schema.is_instance_schema(cls),
            serialization=core_schema.plain_serializer_function_ser_schema(msgspec.to_builtins),
        )

    @classmethod
    def fresh(cls, saga_id: str | None = None) -> SagaMetadata:
        """Make the metadata of a saga that starts now, at version 0.

        Args:
            saga_id: The saga's id; a new UUIDv7 when left out.
        """
        now = datetime.now(UTC)
        return cls(saga_id=new_saga_id() if saga_id is None else saga_id, version=0, created_at=now, updated_at=now)

    def next(self, *, now: datetime | None = None, **changes: Unpack[MetadataChanges]) -> SagaMetadata:
        """Make the metadata of the following version.

        A new ``timeout`` without its ``timeout_expires_at`` is due that long from now; ``timeout=None``
        clears both. ``updated_at`` never goes back, whatever the clock does.

        Args:
            now: When the new version is made; the current time when left out.
            **changes: The other fields to change.

        Raises:
            InvalidSagaError: A timestamp is naive or leaves the years 1 to 9999 in UTC.
        """
        moment = _utc("now", now) if now is not None else datetime.now(UTC)
        if "timeout" in changes and "timeout_expires_at" not in changes:
            timeout = changes["timeout"]
            changes["timeout_expires_at"] = None if timeout is None else _later(moment, timeout)
        return replace(self, version=self.version + 1, updated_at=max(moment, self.updated_at), **changes)


def _later(moment: datetime, timeout: timedelta) -> datetime:
    try:
        return moment + timeout
    except OverflowError as error:
        raise InvalidSagaError(f"a timeout of {timeout} ends outside the years 1 to 9999") from error


def _utc(field: str, value: datetime) -> datetime:
    if not isinstance(value, datetime):
        raise InvalidSagaError(f"metadata.{field} must be a datetime, not {type(value).__name__}")
    if value.utcoffset() is None:
        raise InvalidSagaError(f"metadata.{field} is a naive datetime; give it a time zone")
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise InvalidSagaError(f"metadata.{field} is outside the years 1 to 9999 in UTC") from error


class SagaState(msgspec.Struct, kw_only=True):
    """The ready-made base class of saga states; fresh metadata unless given.

    Args:
        metadata: The saga's metadata.
    """

    metadata: SagaMetadata = msgspec.field(default_factory=SagaMetadata.fresh)


class UntypedSagaState(msgspec.Struct, kw_only=True):
    """The state of a saga whose type the store was not told, so that tools work without the user's classes.

    Args:
        metadata: The saga's metadata.
        data: Every other field of the document, as plain JSON values.
    """

    metadata: SagaMetadata = msgspec.field(default_factory=SagaMetadata.fresh)
    data: dict[str, Any] = {}  # msgspec copies an empty dict for each instance


@runtime_checkable
class HasMetadata(Protocol):
    """Any state: an object with a ``metadata`` attribute that holds a `SagaMetadata`."""

    metadata: SagaMetadata


def with_metadata(state: StateT, metadata: SagaMetadata) -> StateT:
    """Give a state other metadata, whatever kind of type it is of.

    Args:
        state: The state; it is changed in place where its type allows that.
        metadata: The new metadata.

    Returns:
        The state itself, or a copy of a frozen one.
    """
    try:
        state.metadata = metadata  # type: ignore[attr-defined]
    except (AttributeError, ValueError):  # a frozen state; pydantic says so with a ValueError
        if isinstance(state, msgspec.Struct):
            return replace(state, metadata=metadata)
        if dataclasses.is_dataclass(state):
            return cast("StateT", dataclasses.replace(cast("Any", state), metadata=metadata))
        new = copy.copy(state)
        object.__setattr__(new, "metadata", metadata)
        return new
    return state

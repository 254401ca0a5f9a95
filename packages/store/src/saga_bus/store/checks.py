"""The rules for arguments, checked once for all stores and before anything is sent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from saga_bus.store.errors import InvalidSagaError
from saga_bus.store.query import SagaFilter, order_of
from saga_bus.store.state import SagaMetadata

__all__ = [
    "MAX_CORRELATION_ID",
    "MAX_SAGA_ID",
    "MAX_SAGA_NAME",
    "check_correlation_id",
    "check_count",
    "check_filter",
    "check_moment",
    "check_saga_id",
    "check_saga_name",
    "check_version",
    "metadata_of",
    "microseconds",
]

# In code points, of up to four bytes in UTF-8 and two units in UTF-16: the longest correlation id has 1,024
# bytes, DynamoDB's limit of a sort key, and all three together fit the index keys of every SQL backend.
MAX_SAGA_NAME = 128
MAX_SAGA_ID = 128
MAX_CORRELATION_ID = 256

_MAX_VERSION = 2**63 - 1
_FILTER_MOMENTS = tuple(field for field in SagaFilter.__struct_fields__ if field.endswith(("_after", "_before")))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def _check_key(what: str, value: str, most: int) -> None:
    if not isinstance(value, str):
        raise InvalidSagaError(f"the {what} must be a str, not {type(value).__name__}")
    if not 0 < len(value) <= most:
        raise InvalidSagaError(f"the {what} must have 1 to {most} characters, not {len(value)}")
    if value.isascii():
        if "\x00" in value:
            raise InvalidSagaError(f"the {what} holds a NUL character")
        return
    if "\x00" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise InvalidSagaError(f"the {what} holds a NUL character or a lone surrogate")


def check_saga_name(saga_name: str) -> None:
    """Refuse a bad saga name.

    Args:
        saga_name: 1 to 128 characters, without NUL and lone surrogates.

    Raises:
        InvalidSagaError: It is a bad one.
    """
    _check_key("saga name", saga_name, MAX_SAGA_NAME)


def check_saga_id(saga_id: str) -> None:
    """Refuse a bad saga id.

    Args:
        saga_id: 1 to 128 characters, without NUL and lone surrogates.

    Raises:
        InvalidSagaError: It is a bad one.
    """
    _check_key("saga id", saga_id, MAX_SAGA_ID)


def check_correlation_id(correlation_id: str) -> None:
    """Refuse a bad correlation id.

    Args:
        correlation_id: 1 to 256 characters, without NUL and lone surrogates.

    Raises:
        InvalidSagaError: It is a bad one.
    """
    _check_key("correlation id", correlation_id, MAX_CORRELATION_ID)


def check_version(what: str, version: int) -> None:
    """Refuse what is no version.

    Args:
        what: What the version is called, for the error message.
        version: 0 to 2**63 - 1.

    Raises:
        InvalidSagaError: It is none.
    """
    if type(version) is not int or not 0 <= version <= _MAX_VERSION:
        raise InvalidSagaError(f"the {what} must be an int from 0 to 2**63 - 1, not {version!r}")


def check_count(what: str, number: int, *, least: int) -> None:
    """Refuse what is no number of things.

    Args:
        what: What is counted, for the error message.
        number: The number.
        least: The smallest that makes sense.

    Raises:
        InvalidSagaError: It is none.
    """
    if type(number) is not int or number < least:
        raise InvalidSagaError(f"the {what} must be an int of at least {least}, not {number!r}")


def check_moment(what: str, moment: datetime) -> None:
    """Refuse what is no moment.

    Args:
        what: What the moment is called, for the error message.
        moment: An aware datetime.

    Raises:
        InvalidSagaError: It is none, or naive.
    """
    if not isinstance(moment, datetime):
        raise InvalidSagaError(f"{what} must be a datetime, not {type(moment).__name__}")
    if moment.utcoffset() is None:
        raise InvalidSagaError(f"{what} is a naive datetime; give it a time zone")


def check_filter(saga_filter: SagaFilter) -> None:
    """Refuse a bad filter.

    Args:
        saga_filter: The filter.

    Raises:
        InvalidSagaError: It is none, or one of its fields is bad.
    """
    if not isinstance(saga_filter, SagaFilter):
        raise InvalidSagaError(f"find and count take a SagaFilter, not {type(saga_filter).__name__}")
    if saga_filter.saga_name is not None:
        check_saga_name(saga_filter.saga_name)
    for field in ("completed", "archived", "outbox_pending"):
        value = getattr(saga_filter, field)
        if value is not None and not isinstance(value, bool):
            raise InvalidSagaError(f"{field} must be a bool or None, not {value!r}")
    for field in _FILTER_MOMENTS:
        value = getattr(saga_filter, field)
        if value is not None:
            check_moment(field, value)
    order_of(saga_filter)


def metadata_of(state: Any) -> SagaMetadata:
    """The checked metadata of a state.

    Args:
        state: Any state.

    Raises:
        InvalidSagaError: The state has no `SagaMetadata`, or a bad id or version in it.
    """
    metadata = getattr(state, "metadata", None)
    if not isinstance(metadata, SagaMetadata):
        raise InvalidSagaError(f"{type(state).__qualname__}.metadata must be a SagaMetadata, not {metadata!r}")
    check_saga_id(metadata.saga_id)
    check_version("version of the state", metadata.version)
    return metadata


def microseconds(moment: datetime) -> int:
    """A moment as microseconds since 1970 in UTC: exact, sortable, and the same on every backend.

    Args:
        moment: An aware datetime.
    """
    return (moment - _EPOCH) // _MICROSECOND

"""Checks whose messages are whole by themselves: under pytest, in a terminal and from an installed wheel alike."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

from saga_bus.store.errors import ConcurrencyError, SagaNotFoundError

__all__ = ["conflict", "equal", "none", "raises", "same_state", "true"]

ErrorT = TypeVar("ErrorT", bound=BaseException)

_LONGEST = 600  # characters of a value in a message


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"


def true(condition: object, fault: str) -> None:
    """Fail with a sentence unless a condition holds.

    Args:
        condition: What must be true.
        fault: What is wrong when it is not.
    """
    if not condition:
        raise AssertionError(fault)


def equal(actual: object, expected: object, what: str) -> None:
    """Fail unless two values are equal and of one type.

    Args:
        actual: The value that came.
        expected: The value that should have come.
        what: What the value is.
    """
    if actual != expected or type(actual) is not type(expected):
        raise AssertionError(f"{what}: expected {_short(expected)}, got {_short(actual)}")


def none(actual: object, what: str) -> None:
    """Fail unless a value is None.

    Args:
        actual: The value that came.
        what: What should not be there.
    """
    if actual is not None:
        raise AssertionError(f"{what}: expected None, got {_short(actual)}")


def same_state(actual: Any, expected: Any, what: str) -> None:
    """Fail unless a state came back as it was written; the message names the fields that differ.

    Args:
        actual: The state that came, or None.
        expected: The state that was written.
        what: Where it was looked up.
    """
    if actual is None:
        raise AssertionError(f"{what}: the saga is not there, expected {_short(expected)}")
    if type(actual) is not type(expected):
        raise AssertionError(
            f"{what}: expected a {type(expected).__qualname__}, got a {type(actual).__qualname__}: {_short(actual)}"
        )
    if actual == expected:
        return
    differences = [
        f"{name}: expected {_short(old)}, got {_short(new)}"
        for name, old, new in _fields(actual, expected)
        if old != new
    ]
    raise AssertionError(f"{what}: the state differs; " + "; ".join(differences))


def _fields(actual: Any, expected: Any) -> list[tuple[str, object, object]]:
    pairs = [
        (f"metadata.{name}", getattr(expected.metadata, name), getattr(actual.metadata, name))
        for name in expected.metadata.__struct_fields__
    ]
    pairs += [
        (name, getattr(expected, name), getattr(actual, name))
        for name in expected.__struct_fields__
        if name != "metadata"
    ]
    return pairs


async def raises(call: Awaitable[object], error_type: type[ErrorT], what: str) -> ErrorT:
    """Fail unless a call raises an error of a type, and return the error.

    Args:
        call: The call.
        error_type: The type, or a base of it.
        what: What was tried.
    """
    try:
        answer = await call
    except error_type as error:
        return error
    except Exception as error:
        raise AssertionError(
            f"{what}: expected {error_type.__name__}, got {type(error).__name__}: {_short(str(error))}"
        ) from error
    raise AssertionError(f"{what}: expected {error_type.__name__}, but nothing was raised (answer {_short(answer)})")


async def conflict(call: Awaitable[object], state: Any, *, expected: int, actual: int | None, what: str) -> None:
    """Fail unless a call raises the plain `ConcurrencyError` of a saga, with both versions.

    Args:
        call: The call.
        state: A state of the saga.
        expected: The version that the call expected.
        actual: The version that the store holds; None when there is no saga, and then the error must be a
            `SagaNotFoundError`.
        what: What was tried.
    """
    kind = ConcurrencyError if actual is not None else SagaNotFoundError
    error = await raises(call, kind, what)
    equal(type(error), kind, f"{what}: the error's type")
    true(error.retryable, f"{what}: the error must be retryable")
    equal(error.saga_id, state.metadata.saga_id, f"{what}: the error's saga_id")
    equal(error.expected_version, expected, f"{what}: the error's expected_version")
    equal(error.actual_version, actual, f"{what}: the error's actual_version")

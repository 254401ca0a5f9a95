"""Recording what concurrent callers did to one saga, and what they were told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from itertools import count
from reprlib import Repr
from typing import Any, Literal, TypeAlias

import msgspec

from saga_bus.store.errors import (
    ConcurrencyError,
    DuplicateSagaError,
    OutcomeUnknownError,
    SagaNotFoundError,
    StoreUnavailableError,
)

__all__ = ["Held", "History", "Operation", "OperationKind", "OperationOutcome", "describe"]

OperationKind = Literal["insert", "read", "update", "delete"]
OperationOutcome = Literal["ok", "conflict", "duplicate", "missing", "unknown"]

Held: TypeAlias = tuple[int, Hashable] | None
"""What the store holds for the saga: its version and its value, or None when there is no saga."""


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One call, and how it ended.

    Args:
        process: Who called.
        kind: The operation; a read may have been by id or by correlation id.
        invoked: The tick of the call.
        returned: The tick of its answer, None exactly when the outcome is unknown.
        outcome: "conflict" stands for `ConcurrencyError`, "duplicate" for `DuplicateSagaError`, "missing" for
            `SagaNotFoundError`. "unknown" may take effect at any time after its invocation, or never.
        value: What an insert or an update writes; hashable.
        expected_version: Of an update or a conditional delete.
        result: What a read returned.
        actual_version: The version that a conflict reported, None when it reported none.

    Raises:
        ValueError: A known outcome without a return, or a return before the invocation.
    """

    process: int
    kind: OperationKind
    invoked: int
    returned: int | None
    outcome: OperationOutcome
    value: Hashable = None
    expected_version: int | None = None
    result: Held = None
    actual_version: int | None = None

    def __post_init__(self) -> None:
        if (self.returned is None) != (self.outcome == "unknown"):
            raise ValueError("an operation has no return exactly when its outcome is unknown")
        if self.returned is not None and self.returned < self.invoked:
            raise ValueError("an operation cannot return before it is invoked")

    def __str__(self) -> str:
        return f"{self._asked()} -> {self._answered()}"

    def _asked(self) -> str:
        expected = "" if self.expected_version is None else f" of version {self.expected_version}"
        match self.kind:
            case "insert":
                return f"insert {_short(self.value)}"
            case "update":
                return f"update{expected} to {_short(self.value)}"
            case "delete":
                return f"delete{expected}"
            case "read":
                return "read"

    def _answered(self) -> str:
        match self.outcome:
            case "ok":
                return describe(self.result) if self.kind == "read" else "ok"
            case "conflict":
                return "conflict" if self.actual_version is None else f"conflict, found version {self.actual_version}"
            case "unknown":
                return "no answer"
            case "duplicate" | "missing":
                return self.outcome


def describe(held: Held) -> str:
    """What the store holds, in words.

    Args:
        held: The version and the value, or None.
    """
    return "no saga" if held is None else f"version {held[0]} {_short(held[1])}"


def _short(value: Hashable) -> str:
    brief = Repr()
    brief.maxstring = brief.maxother = 40
    return brief.repr(value)


class History:
    """Records the operations of many tasks on one saga.

    Args:
        value_of: What counts as the value of a state that a read returned; hashable, and equal to the
            ``value`` that its writer gave to `run`.
        clock: Gives the ticks; never goes back. The default counts, which serves within one event loop;
            for several processes take ``time.monotonic_ns`` and join their ``operations``.
    """

    def __init__(self, value_of: Callable[[Any], Hashable], *, clock: Callable[[], int] | None = None) -> None:
        self._value_of = value_of
        self._clock = count().__next__ if clock is None else clock
        self._operations: dict[int, Operation] = {}
        self._calls = count()

    @property
    def operations(self) -> list[Operation]:
        """Everything so far in order of invocation; what is still in flight has an unknown outcome."""
        return list(self._operations.values())

    async def run(
        self,
        process: int,
        kind: OperationKind,
        call: Awaitable[Any],
        *,
        value: Hashable = None,
        expected_version: int | None = None,
    ) -> Operation | None:
        """Make one call and record it.

        Args:
            process: Who calls.
            kind: The operation.
            call: The store's coroutine.
            value: What an insert or an update writes.
            expected_version: Of an update or a conditional delete.

        Returns:
            What was recorded; None after a `StoreUnavailableError`, which says that nothing was done.

        Raises:
            BaseException: Whatever else the call raises, cancellation included; recorded as unknown.
        """
        number = next(self._calls)
        pending = Operation(
            process=process,
            kind=kind,
            invoked=self._clock(),
            returned=None,
            outcome="unknown",
            value=value,
            expected_version=expected_version,
        )
        self._operations[number] = pending
        outcome: OperationOutcome = "ok"
        result: Held = None
        actual_version: int | None = None
        try:
            answer = await call
            if kind == "read" and answer is not None:
                result = (answer.metadata.version, self._value_of(answer))
        except DuplicateSagaError:
            outcome = "duplicate"
        except SagaNotFoundError:
            outcome = "missing"
        except ConcurrencyError as error:
            outcome, actual_version = "conflict", error.actual_version
        except OutcomeUnknownError:
            return pending
        except StoreUnavailableError:
            del self._operations[number]
            return None
        finished = msgspec.structs.replace(
            pending, returned=self._clock(), outcome=outcome, result=result, actual_version=actual_version
        )
        self._operations[number] = finished
        return finished

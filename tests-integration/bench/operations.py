"""The operations that are measured, the same code for every subject, and the checks after each of them."""

from __future__ import annotations

import itertools
import random
from array import array
from collections.abc import Callable
from typing import Any

from bench.measure import Step
from bench.subjects import Subject
from bench.workload import OrderState, correlation_id_of, saga_id_of, state_of

__all__ = ["OPERATIONS", "PAGE", "WALK_PAGE", "WRITES", "BenchmarkError", "Orders"]

# Inserts come last: until then there are exactly as many rows as the report says.
OPERATIONS = ("get_by_id", "get_by_correlation_id", "update", "cycle", "find", "insert")
WRITES = frozenset({"update", "cycle", "insert"})
PAGE = 100
WALK_PAGE = 1000


class BenchmarkError(Exception):
    """A subject gave a wrong result, so its figures mean nothing."""


class Orders:
    """The orders of one subject: what was done to them, and so what must be found.

    Args:
        subject: The subject.
        rows: How many orders are stored.
        active: How many of them are read and written: the newest ones.
    """

    def __init__(self, subject: Subject, rows: int, active: int) -> None:
        self.subject = subject
        self.rows = rows
        self.stored = rows
        self.active = active
        self.first = rows - active
        self.versions = array("q", bytes(8 * rows))
        self.new_numbers = itertools.count(rows)
        self.random = random.Random(20_250_101)

    def steps(self, operation: str, callers: int) -> list[Step]:
        """One step for each caller; callers share no order, so no compare-and-swap may fail.

        Args:
            operation: One of `OPERATIONS`.
            callers: How many; at most ``active``.
        """
        if operation == "find":
            return [self._find() for _ in range(callers)]
        if operation == "insert":
            return [self._insert] * callers
        make = getattr(self, f"_{operation}")
        return [make(self._numbers(caller, callers)) for caller in range(callers)]

    def steps_and_one_apart(self, operation: str, callers: int) -> tuple[list[Step], int, Step]:
        """One step for each caller, and an order that none of them touches: its number, and an update of it.

        Args:
            operation: One of `OPERATIONS`.
            callers: How many; less than ``active``.
        """
        *steps, _ = self.steps(operation, callers + 1)
        number = self.first + callers  # one of the caller that is left out
        return steps, number, self._update(lambda: number)

    def _numbers(self, caller: int, callers: int) -> Callable[[], int]:
        own, first, chance = self.active // callers, self.first + caller, self.random.random
        return lambda: first + callers * int(chance() * own)

    def _get_by_id(self, next_number: Callable[[], int]) -> Step:
        async def step() -> None:
            number = next_number()
            self._check(number, await self.subject.get_by_id(saga_id_of(number)))

        return step

    def _get_by_correlation_id(self, next_number: Callable[[], int]) -> Step:
        async def step() -> None:
            number = next_number()
            self._check(number, await self.subject.get_by_correlation_id(correlation_id_of(number)))

        return step

    def _update(self, next_number: Callable[[], int]) -> Step:
        async def step() -> None:
            number = next_number()
            version = self.versions[number]
            await self.subject.update(state_of(number, version + 1), version)
            self.versions[number] = version + 1

        return step

    def _cycle(self, next_number: Callable[[], int]) -> Step:
        async def step() -> None:
            number = next_number()
            state = self._check(number, await self.subject.get_by_correlation_id(correlation_id_of(number)))
            version = state.metadata.version
            state.status = "paid"
            state.metadata = state.metadata.next()
            await self.subject.update(state, version)
            self.versions[number] = version + 1

        return step

    def _find(self) -> Step:
        cursor: Any = None
        expected = min(PAGE, self.rows)

        async def step() -> None:
            nonlocal cursor
            first = cursor is None
            states, cursor = await self.subject.find(cursor, PAGE)
            if not states or (first and len(states) != expected):
                raise BenchmarkError(f"a page has {len(states)} sagas")

        return step

    async def _insert(self) -> None:
        number = next(self.new_numbers)
        await self.subject.insert(correlation_id_of(number), state_of(number, 0))
        self.stored += 1

    def _check(self, number: int, state: OrderState | None) -> OrderState:
        if state is None:
            raise BenchmarkError(f"order {number} is not found")
        if state.metadata.saga_id != saga_id_of(number) or state.metadata.version != self.versions[number]:
            raise BenchmarkError(f"order {number}: expected version {self.versions[number]}, got {state.metadata}")
        return state

    async def walk(self) -> int:
        """Read all orders, newest first, and check that each is there once, at its last version.

        Returns:
            How many there are.
        """
        cursor: Any = None
        seen = versions = 0
        last = ""
        while True:
            states, cursor = await self.subject.find(cursor, WALK_PAGE)
            for state in states:
                if last and state.metadata.saga_id >= last:  # ids ascend with the time of creation
                    raise BenchmarkError(f"the walk came to {state.metadata.saga_id} after {last}")
                last = state.metadata.saga_id
                versions += state.metadata.version
            seen += len(states)
            if cursor is None:
                break
        self._compare("the walk", seen, versions)
        return seen

    async def verify(self) -> None:
        """Check the number of orders and the sum of their versions, and a sample one by one.

        Raises:
            BenchmarkError: A write was lost, or one too many was done.
        """
        self._compare("the database", *await self.subject.totals())
        for number in range(self.first, self.rows, max(1, self.active // 50)):
            self._check(number, await self.subject.get_by_id(saga_id_of(number)))

    def _compare(self, where: str, count: int, versions: int) -> None:
        if (count, versions) != (self.stored, sum(self.versions)):
            raise BenchmarkError(
                f"{where} has {count} sagas with {versions} updates, expected {self.stored} with {sum(self.versions)}"
            )

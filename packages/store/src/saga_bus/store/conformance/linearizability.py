"""Whether a concurrent history of one saga has an order that explains every answer.

A history is linearizable when each operation can be given one moment between its call and its answer so that
all answers are right in that order (Herlihy and Wing, 1990). The search follows Wing and Gong (1993) with two
improvements of Lowe ("Testing for linearizability", 2017): reached configurations are remembered, and an
operation gets its place only when the answer of some operation demands it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import TypeAlias

import msgspec

from saga_bus.store.conformance.history import Held, History, Operation, OperationOutcome, describe

__all__ = ["Held", "History", "Operation", "Violation", "check"]

_SHOWN_AT_LEAST = 6  # operations that a violation keeps, as far as there are any, so that it tells a story
_DIAGRAM_COLUMNS = 48

_Configuration: TypeAlias = tuple[int, Held]  # the operations in flight that have their place, what is then held


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """The shortest history found that no order explains.

    Args:
        operations: The operations, in order of invocation.
        culprit: The operation at whose answer the last possible order was lost.
        initial: What the store held before them.
        summed_up: How many earlier operations ``initial`` stands for.
        possible: What the store could hold when the culprit's answer came.
    """

    operations: tuple[Operation, ...]
    culprit: Operation
    initial: Held
    summed_up: int
    possible: tuple[Held, ...]

    def __str__(self) -> str:
        lines = ["no order explains these answers:"]
        if self.summed_up:
            lines.append(f"  after {self.summed_up} earlier operations the store holds {describe(self.initial)}")
        elif self.initial is not None:
            lines.append(f"  at first the store holds {describe(self.initial)}")
        for operation, bar in zip(self.operations, _diagram(self.operations), strict=True):
            lines.append(f"  process {operation.process:<3} {bar}  {operation}")
        held = " or ".join(map(describe, self.possible[:3])) + (" or ..." if len(self.possible) > 3 else "")
        lines.append(
            f"no place for process {self.culprit.process}: {self.culprit} (the store could only hold {held} by then)"
        )
        return "\n".join(lines)


def check(operations: Iterable[Operation], *, initial: Held = None) -> Violation | None:
    """Search an order of the operations that explains every answer.

    Args:
        operations: All operations on one saga, in any order.
        initial: What the store held before them.

    Returns:
        None when there is such an order.
    """
    # A read without an answer says nothing.
    history = [operation for operation in operations if (operation.kind, operation.outcome) != ("read", "unknown")]
    history.sort(key=lambda operation: operation.invoked)
    search = _Search(history, initial)
    failed = search.run()
    if failed is None:
        return None
    kept, start, summed_up = search.shortened()
    kept = _without_bystanders(kept, start, history[failed])
    return Violation(
        operations=tuple(kept),
        culprit=history[failed],
        initial=start,
        summed_up=summed_up,
        possible=tuple(search.possible),
    )


def _without_bystanders(kept: list[Operation], start: Held, culprit: Operation) -> list[Operation]:
    # Leaving out what changes nothing only loosens a history: when the rest still fails, so does the whole.
    for operation in [*kept]:
        if operation is not culprit and not _may_change(operation):
            rest = [other for other in kept if other is not operation]
            if _Search(rest, start).run() is not None:
                kept = rest
    return kept


def _may_change(operation: Operation) -> bool:
    return operation.kind != "read" and operation.outcome in ("ok", "unknown")


def _sequentially(operation: Operation, held: Held) -> tuple[OperationOutcome, Held]:
    """The rules: how an operation ends and what is held afterwards, when nothing else runs."""
    if operation.kind == "read":
        return "ok", held
    if operation.kind == "insert":
        return ("ok", (0, operation.value)) if held is None else ("duplicate", held)
    if operation.kind == "delete" and operation.expected_version is None:
        return "ok", None
    if held is None:
        return "missing", None
    if held[0] != operation.expected_version:
        return "conflict", held
    return "ok", (held[0] + 1, operation.value) if operation.kind == "update" else None


def _fits(operation: Operation, held: Held) -> tuple[bool, Held]:
    outcome, after = _sequentially(operation, held)
    if operation.outcome == "unknown":
        return after != held, after  # without an effect it needs no place
    if outcome != operation.outcome:
        return False, held
    if operation.kind == "read":
        return operation.result == held, held
    if outcome == "conflict" and operation.actual_version is not None:
        return held is not None and held[0] == operation.actual_version, held
    return True, after


class _Search:
    """All configurations that the answers so far leave possible; operation number n is bit n of a mask."""

    def __init__(self, history: Sequence[Operation], initial: Held) -> None:
        self._history = history
        self._effects, self._twins = _interchangeable(history)
        self._initial = initial
        self._active = sum(1 << number for number, operation in enumerate(history) if _may_change(operation))
        self._unknown = sum(1 << number for number, one in enumerate(history) if one.outcome == "unknown")
        self._restarts = any(operation.kind == "delete" and _may_change(operation) for operation in history)
        self._open = 0  # invoked, and no answer yet
        self._answered = 0
        self._single: list[tuple[Held, int]] = []  # where one configuration was left: what is held, what follows
        self._passed: dict[int, int] = {}
        self.possible: dict[Held, None] = {}

    def run(self) -> int | None:
        """The number of the operation whose answer has no explanation, None when all have one."""
        configurations = {self._settled(0, self._initial)}
        for number, is_answer in self._events():
            if is_answer:
                configurations = self._answer(number, configurations)
                if not configurations:
                    return number
                if len(configurations) == 1:
                    ((placed, held),) = configurations
                    self._single.append((held, ~(placed | self._answered)))
            else:
                self._open |= 1 << number
                if not self._active & (1 << number):
                    configurations = {self._settled(*configuration) for configuration in configurations}
        return None

    def shortened(self) -> tuple[list[Operation], Held, int]:
        """What was invoked until the failure, its beginning summed up where only one configuration was left."""
        invoked = self._open | self._answered
        beginnings = [(self._initial, -1), *self._single]
        held, follows = next(
            (
                beginning
                for beginning in reversed(beginnings)
                if (beginning[1] & invoked).bit_count() >= _SHOWN_AT_LEAST
            ),
            beginnings[0],
        )
        kept = [self._history[number] for number in _bits(follows & invoked)]
        return kept, held, invoked.bit_count() - len(kept)

    def _events(self) -> list[tuple[int, bool]]:
        events = [(operation.invoked, False, number) for number, operation in enumerate(self._history)]
        events += [
            (operation.returned, True, number)
            for number, operation in enumerate(self._history)
            if operation.returned is not None
        ]
        return [(number, is_answer) for _, is_answer, number in sorted(events)]

    def _answer(self, number: int, configurations: Iterable[_Configuration]) -> set[_Configuration]:
        own = 1 << number
        explained, waiting = _Fewest(self._unknown), _Fewest(self._unknown)
        for placed, held in configurations:
            (explained if placed & own else waiting).add((placed & ~own, held))
        self.possible = {}
        for placed, held in waiting:
            self.possible[held] = None
            for other in _bits(self._active & self._open & ~placed):
                if self._twins[other] & ~placed:
                    continue
                fits, after = _fits(self._effects[other], held)
                if fits:
                    reached, then = self._settled(placed | 1 << other, after)
                    (explained if reached & own else waiting).add((reached & ~own, then))
        self._open &= ~own
        self._answered |= own
        return set(explained)

    def _settled(self, placed: int, held: Held) -> _Configuration:
        # What changes nothing takes its place as soon as it fits: that closes no other way.
        for number in _bits(self._open & ~self._active & ~placed):
            if _fits(self._history[number], held)[0]:
                placed |= 1 << number
        return placed | self._hopeless(held), held

    def _hopeless(self, held: Held) -> int:
        # While no delete can start the versions again, an unanswered write of an older version has had its
        # chance. Marking it keeps two ways apart no longer than they differ.
        if held is None or self._restarts:
            return 0
        version = held[0]
        if version not in self._passed:
            self._passed[version] = sum(
                1 << number
                for number, operation in enumerate(self._history)
                if operation.outcome == "unknown"
                and (operation.kind == "insert" or (operation.expected_version or 0) < version)
            )
        return self._passed[version]


class _Unread:
    """Stands for every value that was written without an answer and that no read returned."""

    def __repr__(self) -> str:
        return "with a value that nobody read"


_UNREAD = _Unread()


def _interchangeable(history: Sequence[Operation]) -> tuple[list[Operation], list[int]]:
    """The operations with unread values made one, and for each unanswered one the earlier ones just like it.

    Of several unanswered operations that do the same, the first can stand wherever a later one could.
    """
    read = {operation.result for operation in history if operation.kind == "read"}
    effects: list[Operation] = []
    twins: list[int] = []
    alike: dict[tuple[str, int | None, Hashable], int] = {}
    for number, operation in enumerate(history):
        effect, earlier = operation, 0
        if operation.outcome == "unknown":
            version = 0 if operation.expected_version is None else operation.expected_version + 1
            if operation.kind != "delete" and (version, operation.value) not in read:
                effect = msgspec.structs.replace(operation, value=_UNREAD)
            what = (effect.kind, effect.expected_version, effect.value)
            earlier = alike.get(what, 0)
            alike[what] = earlier | 1 << number
        effects.append(effect)
        twins.append(earlier)
    return effects, twins


class _Fewest:
    """Configurations in the order of how few unanswered operations they have used.

    An unanswered operation may also never take effect. So of two configurations that differ in these alone,
    the one that has used a part of the other's can go wherever the other can, and the other is left out.
    Iteration goes on to what is added meanwhile.
    """

    def __init__(self, unknown: int) -> None:
        self._unknown = unknown
        self._used: dict[_Configuration, list[int]] = {}
        self._queue: list[tuple[int, int, _Configuration]] = []
        self._order = count()

    def add(self, configuration: _Configuration) -> None:
        used = configuration[0] & self._unknown
        heappush(self._queue, (used.bit_count(), next(self._order), configuration))

    def __iter__(self) -> Iterator[_Configuration]:
        while self._queue:
            _, _, (placed, held) = heappop(self._queue)
            used = placed & self._unknown
            others = self._used.setdefault((placed & ~self._unknown, held), [])
            if not any(other & ~used == 0 for other in others):
                others.append(used)
                yield placed, held


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def _diagram(operations: Sequence[Operation]) -> list[str]:
    """One bar an operation, from its call to its answer; time is only before and after."""
    ticks = {operation.invoked for operation in operations} | {
        operation.returned for operation in operations if operation.returned is not None
    }
    scale = min(1.0, _DIAGRAM_COLUMNS / max(1, len(ticks)))
    column = {tick: int(rank * scale) for rank, tick in enumerate(sorted(ticks))}
    width = max(column.values(), default=0) + 1
    bars = []
    for operation in operations:
        start = column[operation.invoked]
        if operation.returned is None:
            bar = "[" + "-" * (width - start - 1) + ">"
        else:
            bar = "[" + "-" * (column[operation.returned] - start - 1) + "]"
        bars.append((" " * start + bar).ljust(width + 1))
    return bars

"""The linearizability checker: good histories pass, each kind of anomaly is found and printed short."""

import asyncio
import random
from itertools import combinations, permutations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saga_bus.store import (
    ConcurrencyError,
    DuplicateSagaError,
    OutcomeUnknownError,
    SagaNotFoundError,
    SagaState,
    StoreUnavailableError,
)
from saga_bus.store.conformance.linearizability import History, Operation, Violation, check

QUIET = settings(
    derandomize=True, database=None, deadline=None, max_examples=200, suppress_health_check=list(HealthCheck)
)


def operation(kind, invoked, returned, outcome="ok", *, process=0, **fields):
    return Operation(process=process, kind=kind, invoked=invoked, returned=returned, outcome=outcome, **fields)


def insert(invoked, returned, value, outcome="ok", **fields):
    return operation("insert", invoked, returned, outcome, value=value, **fields)


def read(invoked, returned, result, **fields):
    return operation("read", invoked, returned, result=result, **fields)


def update(invoked, returned, expected, value, outcome="ok", **fields):
    return operation("update", invoked, returned, outcome, expected_version=expected, value=value, **fields)


def delete(invoked, returned, expected=None, outcome="ok", **fields):
    return operation("delete", invoked, returned, outcome, expected_version=expected, **fields)


GOOD = {
    "nothing at all": [],
    "sequential": [
        read(0, 1, None),
        insert(2, 3, "a"),
        read(4, 5, (0, "a")),
        update(6, 7, 0, "b"),
        update(8, 9, 0, "c", "conflict", actual_version=1),
        read(10, 11, (1, "b")),
        delete(12, 13, 0, "conflict", actual_version=1),
        delete(14, 15, 1),
        update(16, 17, 1, "d", "missing"),
        delete(18, 19, 1, "missing"),
        delete(20, 21),
        insert(22, 23, "e"),
        insert(24, 25, "f", "duplicate"),
        read(26, 27, (0, "e")),
    ],
    "a read overlaps a write and sees it": [insert(0, 5, "a"), read(1, 2, (0, "a"), process=1)],
    "a read overlaps a write and does not see it": [insert(0, 5, "a"), read(1, 2, None, process=1)],
    "new, then old is right when the second read began first": [
        insert(0, 1, "a"),
        update(2, 9, 0, "b"),
        read(4, 5, (1, "b"), process=1),
        read(3, 8, (0, "a"), process=2),
    ],
    "one of three inserts wins": [
        insert(0, 5, "a", "duplicate"),
        insert(1, 4, "b", process=1),
        insert(2, 3, "c", "duplicate", process=2),
    ],
    "one of two updates wins, and the conflict came first": [
        insert(0, 1, "a"),
        update(2, 3, 0, "b", "conflict", process=1),
        update(2, 5, 0, "c", process=2),
    ],
    "an unknown write took effect late": [
        insert(0, 1, "a"),
        update(2, None, 0, "b", "unknown", process=1),
        read(3, 4, (0, "a")),
        read(5, 6, (1, "b")),
    ],
    "an unknown write never did": [
        insert(0, 1, "a"),
        update(2, None, 0, "b", "unknown", process=1),
        update(3, 4, 0, "c"),
        read(5, 6, (1, "c")),
        update(7, 8, 1, "d"),
    ],
    "an unknown insert is met by its own retry": [
        insert(0, None, "a", "unknown"),
        insert(2, 3, "a", "duplicate"),
        read(4, 5, (0, "a")),
    ],
    "an unknown delete, later": [
        insert(0, 1, "a"),
        delete(2, None, outcome="unknown", process=1),
        update(3, 4, 0, "b"),
        update(5, 6, 1, "c", "missing"),
        insert(7, 8, "d"),
    ],
    "an unknown read says nothing": [insert(0, 1, "a"), operation("read", 2, None, "unknown"), read(3, 4, (0, "a"))],
    "ticks that are equal overlap": [insert(0, 3, "a"), read(3, 3, None, process=1)],
}


@pytest.mark.parametrize("name", GOOD)
def test_good_histories_pass(name):
    assert check(GOOD[name]) is None


NOISE = [read(tick, tick + 1, (0, "a"), process=9) for tick in range(2, 40, 2)]

BAD = {
    "lost update": (
        [insert(0, 1, "a"), *NOISE, update(50, 53, 0, "b", process=1), update(51, 54, 0, "c", process=2)],
        3,
        "no place for process 2: update of version 0 to 'c' -> ok (the store could only hold ",
    ),
    "stale read": (
        [insert(0, 1, "a"), *NOISE, update(50, 51, 0, "b"), read(52, 53, (0, "a"), process=1)],
        3,
        "no place for process 1: read -> version 0 'a' (the store could only hold version 1 'b' by then)",
    ),
    "a value never written": (
        [insert(0, 1, "a"), *NOISE, read(50, 51, (0, "z"))],
        2,
        "no place for process 0: read -> version 0 'z' (the store could only hold version 0 'a' by then)",
    ),
    "reads go back": (
        [
            insert(0, 1, "a"),
            *NOISE,
            update(50, 59, 0, "b"),
            read(51, 52, (1, "b"), process=1),
            read(53, 54, (0, "a"), process=1),
        ],
        4,
        "no place for process 1: read -> version 0 'a' (the store could only hold version 1 'b' by then)",
    ),
    "two inserts win": (
        [read(0, 1, None), insert(2, 5, "a"), insert(3, 6, "b", process=1)],
        2,
        "no place for process 1: insert 'b' -> ok (the store could only hold version 0 'a' by then)",
    ),
    "update after delete": (
        [insert(0, 1, "a"), *NOISE, delete(50, 51), update(52, 53, 0, "b", process=1)],
        3,
        "no place for process 1: update of version 0 to 'b' -> ok (the store could only hold no saga by then)",
    ),
    "read after delete": (
        [insert(0, 1, "a"), *NOISE, delete(50, 51, 0), read(52, 53, (0, "a"), process=1)],
        3,
        "no place for process 1: read -> version 0 'a' (the store could only hold no saga by then)",
    ),
    "a conflict with a version that never was": (
        [insert(0, 1, "a"), *NOISE, update(50, 51, 4, "b", "conflict", actual_version=3)],
        2,
        "no place for process 0: update of version 4 to 'b' -> conflict, found version 3 (the store could only",
    ),
    "an acknowledged write vanished": (
        [
            insert(0, 1, "a"),
            update(2, 3, 0, "b"),
            update(4, None, 1, "c", "unknown"),  # the restart
            read(10, 11, (0, "a"), process=1),
        ],
        4,
        "no place for process 1: read -> version 0 'a' (the store could only hold",
    ),
    "an acknowledged insert vanished": (
        [insert(0, 1, "a"), read(10, 11, None, process=1)],
        2,
        "no place for process 1: read -> no saga (the store could only hold version 0 'a' by then)",
    ),
    "phantom conflict": (
        [insert(0, 1, "a"), *NOISE, update(50, 51, 0, "b", "conflict")],
        2,
        "no place for process 0: update of version 0 to 'b' -> conflict (the store could only hold version 0 'a'",
    ),
    "phantom duplicate": (
        [insert(0, 1, "a", "duplicate")],
        1,
        "no place for process 0: insert 'a' -> duplicate (the store could only hold no saga by then)",
    ),
    "an update of a present saga finds none": (
        [insert(0, 1, "a"), update(2, 3, 0, "b", "missing")],
        2,
        "-> missing (the store could only hold version 0 'a' by then)",
    ),
    "a dirty read of a failed update": (
        [
            insert(0, 1, "a"),
            update(2, 9, 0, "b", process=1),
            update(3, 8, 0, "c", "conflict", actual_version=1, process=2),
            read(5, 6, (1, "c"), process=3),
        ],
        3,
        "no place for process 3: read -> version 1 'c' (the store could only hold",
    ),
    "a conditional delete of another version": (
        [insert(0, 1, "a"), delete(2, 3, 4)],
        2,
        "no place for process 0: delete of version 4 -> ok (the store could only hold version 0 'a' by then)",
    ),
    "an unconditional delete that finds none": ([delete(0, 1, outcome="missing")], 1, "delete -> missing"),
}


@pytest.mark.parametrize("name", BAD)
def test_anomalies_are_found_and_printed_short(name):
    history, shown, last_line = BAD[name]
    violation = check(random.Random(1).sample(history, len(history)))
    assert isinstance(violation, Violation)
    lines = str(violation).splitlines()
    assert lines[0] == "no order explains these answers:"
    assert last_line in lines[-1]
    assert len(lines) == shown + 2, str(violation)
    assert violation.culprit in violation.operations
    assert check(violation.operations, initial=violation.initial) is not None


def test_a_violation_is_printed_with_its_intervals():
    violation = check(
        [
            insert(0, 1, "a"),
            update(2, 4, 0, "b", process=1),
            update(3, 5, 0, "c", process=2),
            update(3, None, 5, "d", "unknown", process=3),
        ]
    )
    assert str(violation).splitlines() == [
        "no order explains these answers:",
        "  process 0   []       insert 'a' -> ok",
        "  process 1     [-]    update of version 0 to 'b' -> ok",
        "  process 2      [-]   update of version 0 to 'c' -> ok",
        "  process 3      [-->  update of version 5 to 'd' -> no answer",
        "no place for process 2: update of version 0 to 'c' -> ok (the store could only hold version 1 'b' by then)",
    ]


def test_a_long_beginning_is_summed_up():
    history = [insert(0, 1, 0)]
    history += [update(10 * n, 10 * n + 1, n - 1, n) for n in range(1, 100)]
    history.append(read(2000, 2001, (5, 5)))
    violation = check(history)
    assert violation.summed_up == 95
    assert violation.initial == (94, 94)
    lines = str(violation).splitlines()
    assert lines[1] == "  after 95 earlier operations the store holds version 94 94"
    assert len(lines) == 9


def test_a_saga_that_was_there_before():
    assert check([read(0, 1, (3, "x")), update(2, 3, 3, "y")], initial=(3, "x")) is None
    violation = check([read(0, 1, None)], initial=(3, "x"))
    assert "  at first the store holds version 3 'x'" in str(violation)


@pytest.mark.parametrize(("returned", "outcome"), [(None, "ok"), (3, "unknown"), (0, "ok")])
def test_an_impossible_operation_is_refused(returned, outcome):
    with pytest.raises(ValueError, match="operation"):
        operation("read", 1, returned, outcome)


# -- properties ------------------------------------------------------------------------------------------------


def answered(kind, held, value, expected):
    """The rules once more, written differently: what is held afterwards, and the fields of the answer."""
    present = held is not None
    match kind:
        case "read":
            return held, {"outcome": "ok", "result": held}
        case "insert" if present:
            return held, {"outcome": "duplicate"}
        case "insert":
            return (0, value), {"outcome": "ok"}
        case "delete" if expected is None:
            return None, {"outcome": "ok"}
        case _ if not present:
            return held, {"outcome": "missing"}
        case _ if held[0] != expected:
            return held, {"outcome": "conflict", "actual_version": held[0]}
        case "delete":
            return None, {"outcome": "ok"}
        case _:
            return (expected + 1, value), {"outcome": "ok"}


def real_history(rng, length, processes, kinds=("insert", "read", "update", "update", "update", "delete")):
    """A sequential execution at the moments 100, 200, ... whose intervals are stretched around them.

    Some operations lose their answer; one of these may also not have happened at all.
    """
    free = [0] * processes
    held, history = None, []
    for number in range(length):
        moment = 100 * (number + 1)
        process = rng.choice([process for process in range(processes) if free[process] < moment])
        kind = rng.choice(kinds)
        expected = None
        if kind == "update" or (kind == "delete" and rng.random() < 0.7):
            expected = max(0, (held[0] if held else 0) - rng.choice((0, 0, 0, 1)))
        asked = {"process": process, "kind": kind, "expected_version": expected}
        asked["value"] = number if kind in ("insert", "update") else None
        invoked = rng.randint(free[process], moment)
        lost = rng.random() < 0.1
        if lost and rng.random() < 0.5:
            answer = {}
        else:
            held, answer = answered(kind, held, asked["value"], expected)
        returned = moment + rng.randint(0, 100 * (processes - 1))
        free[process] = returned + 1
        if all(tick >= moment + 100 for tick in free):
            free[process] = returned = moment
            free[process] += 1
        if lost:
            answer = {"outcome": "unknown"}
        history.append(Operation(**asked, invoked=invoked, returned=None if lost else returned, **answer))
    return history


@QUIET
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 6))
def test_histories_of_a_real_execution_pass(seed, length, processes):
    history = real_history(random.Random(seed), length, processes)
    assert check(history) is None


def test_a_long_history_of_eight_processes_is_checked():
    rng = random.Random(7)
    history = real_history(rng, 250, 8)
    assert check(history) is None
    last = max(one.returned for one in history if one.returned is not None)
    assert check([*history, read(last + 1, last + 2, (10**6, "never"))]) is not None


def test_a_long_history_of_unknown_writes_is_checked():
    history = [insert(0, 1, 0)]
    for version in range(40):
        start = 10 * (version + 1)
        for rival in range(3):
            value = (version, rival)
            history.append(update(start + rival, None, version, value, "unknown", process=rival))
        history.append(read(start + 5, start + 6, (version + 1, (version, version % 3)), process=4))
    assert check(history) is None


def explained_by_brute_force(history):
    certain = [one for one in history if one.outcome != "unknown"]
    unknown = [one for one in history if one.outcome == "unknown" and one.kind != "read"]
    for number in range(len(unknown) + 1):
        for happened in combinations(unknown, number):
            if any(map(explains, permutations([*certain, *happened]))):
                return True
    return False


def explains(order):
    for earlier, later in combinations(order, 2):
        if later.returned is not None and later.returned < earlier.invoked:
            return False
    held = None
    for one in order:
        held, answer = answered(one.kind, held, one.value, one.expected_version)
        if one.outcome == "unknown":
            continue
        if one.actual_version is None:
            answer.pop("actual_version", None)
        if any(getattr(one, field) != told for field, told in answer.items()):
            return False
    return True


@st.composite
def small_histories(draw):
    history = []
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(("insert", "read", "update", "delete")))
        outcomes = {
            "insert": ("ok", "ok", "duplicate", "unknown"),
            "read": ("ok",),
            "update": ("ok", "ok", "conflict", "missing", "unknown"),
            "delete": ("ok", "ok", "conflict", "missing", "unknown"),
        }[kind]
        outcome = draw(st.sampled_from(outcomes))
        invoked = draw(st.integers(0, 8))
        expected = None
        if kind == "update" or (kind == "delete" and draw(st.booleans())):
            expected = draw(st.integers(0, 1))
        history.append(
            operation(
                kind,
                invoked,
                None if outcome == "unknown" else invoked + draw(st.integers(0, 5)),
                outcome,
                value=draw(st.sampled_from("ab")) if kind in ("insert", "update") else None,
                expected_version=expected,
                result=draw(st.sampled_from((None, (0, "a"), (1, "b")))) if kind == "read" else None,
                actual_version=draw(st.sampled_from((None, 0, 1))) if outcome == "conflict" else None,
            )
        )
    return history


@settings(QUIET, max_examples=800)
@given(small_histories())
def test_the_verdict_is_that_of_trying_every_order(history):
    violation = check(history)
    assert (violation is None) == explained_by_brute_force(history)
    if violation is not None:
        assert violation.initial is None
        assert not explained_by_brute_force(violation.operations)


# -- recording -------------------------------------------------------------------------------------------------


class Counter(SagaState, kw_only=True):
    count: int = 0


async def answer(result=None):
    await asyncio.sleep(0)
    if isinstance(result, BaseException):
        raise result
    return result


def test_a_history_records_what_callers_are_told():
    async def record():
        history = History(lambda state: state.count)
        about = {"saga_name": "S", "saga_id": "1"}
        await history.run(0, "insert", answer(), value=7)
        await history.run(
            1, "insert", answer(DuplicateSagaError(**about, correlation_id="c", conflict="saga_id")), value=8
        )
        await history.run(0, "read", answer(Counter(count=7)))
        await history.run(0, "read", answer())
        error = ConcurrencyError(**about, expected_version=3, actual_version=0)
        await history.run(0, "update", answer(error), value=9, expected_version=3)
        await history.run(0, "update", answer(SagaNotFoundError(**about)), value=9, expected_version=3)
        assert await history.run(0, "delete", answer(StoreUnavailableError("busy"))) is None
        await history.run(0, "delete", answer(OutcomeUnknownError("gone")), expected_version=3)
        return history.operations

    operations = asyncio.run(record())
    assert [str(one) for one in operations] == [
        "insert 7 -> ok",
        "insert 8 -> duplicate",
        "read -> version 0 7",
        "read -> no saga",
        "update of version 3 to 9 -> conflict, found version 0",
        "update of version 3 to 9 -> missing",
        "delete of version 3 -> no answer",
    ]
    ticks = [tick for one in operations for tick in (one.invoked, one.returned) if tick is not None]
    assert ticks == sorted(set(ticks))


def test_a_cancelled_call_and_one_in_flight_are_unknown():
    async def record():
        history = History(lambda state: state.count, clock=iter(range(100, 200)).__next__)
        never = asyncio.Event()
        cancelled = asyncio.ensure_future(history.run(0, "insert", never.wait(), value=1))
        flying = asyncio.ensure_future(history.run(1, "insert", never.wait(), value=2))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(ZeroDivisionError):
            await history.run(2, "delete", answer(ZeroDivisionError()))
        operations = history.operations
        flying.cancel()
        await asyncio.gather(flying, return_exceptions=True)
        return operations

    operations = asyncio.run(record())
    assert [(one.process, one.invoked, one.returned, one.outcome) for one in operations] == [
        (0, 100, None, "unknown"),
        (1, 101, None, "unknown"),
        (2, 102, None, "unknown"),
    ]

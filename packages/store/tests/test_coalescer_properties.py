"""The coalescer, whatever arrives, fails or is cancelled: each caller has one outcome, its own."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from saga_bus.store import Coalescer, StoreUnavailableError

CALLS = st.lists(
    st.tuples(
        st.integers(0, 6),  # event loop turns before the call
        st.sampled_from(["ok", "ok", "ok", "outcome", "raise", "unavailable"]),
        st.integers(0, 3),  # its key
        st.none() | st.integers(0, 8),  # event loop turns before it is cancelled
    ),
    max_size=30,
)


@settings(max_examples=300, deadline=None)
@given(
    calls=CALLS,
    max_size=st.integers(1, 5),
    max_in_flight=st.integers(1, 3),
    share=st.none() | st.integers(1, 6),
    keyed=st.booleans(),
    own_way=st.booleans(),
    turns=st.integers(0, 3),
)
def test_every_caller_gets_its_own_result_exactly_once_whatever_arrives_fails_or_is_cancelled(  # noqa: C901
    calls: list[tuple[int, str, int, int | None]],
    max_size: int,
    max_in_flight: int,
    share: int | None,
    keyed: bool,
    own_way: bool,
    turns: int,
) -> None:
    runs: Counter[int] = Counter()
    order: defaultdict[int, list[int]] = defaultdict(list)
    unavailable: set[int] = set()
    groups_in_flight: list[object] = []
    keys_in_flight: list[int] = []

    async def flight(items: Sequence[tuple[int, str, int]]) -> None:
        keys = [key for _, _, key in items] if keyed else []
        assert not set(keys) & set(keys_in_flight)
        keys_in_flight.extend(keys)
        try:
            for _ in range(turns):
                await asyncio.sleep(0)
        finally:
            for key in keys:
                keys_in_flight.remove(key)

    async def run_alone(item: tuple[int, str, int]) -> int:
        await flight((item,))
        number, kind, key = item
        if kind == "unavailable":
            unavailable.add(number)
            raise StoreUnavailableError
        if kind == "raise":
            raise ArithmeticError(number)
        runs[number] += 1
        order[key].append(number)
        if kind == "outcome":
            raise KeyError(number)
        return number

    async def run(items: Sequence[tuple[int, str, int]]) -> list[Any]:
        assert len(items) <= max_size
        assert len(groups_in_flight) < max_in_flight
        if keyed:
            keys = [key for _, _, key in items]
            assert keys == sorted(set(keys))
        groups_in_flight.append(items)
        try:
            await flight(items)
        finally:
            groups_in_flight.remove(items)
        kinds = {kind for _, kind, _ in items}
        if "unavailable" in kinds:
            unavailable.update(number for number, _, _ in items)
            raise StoreUnavailableError
        if "raise" in kinds:
            raise ArithmeticError(items[0][0])
        for number, _, key in items:
            runs[number] += 1
            order[key].append(number)
        return [KeyError(number) if kind == "outcome" else number for number, kind, _ in items]

    async def scenario() -> list[Any]:
        coalescer: Coalescer[tuple[int, str, int], int] = Coalescer(
            run,
            max_size=max_size,
            key=(lambda item: item[2]) if keyed else None,
            max_in_flight=max_in_flight,
            share=share,
            alone=run_alone if own_way else None,
        )
        arrived: list[int] = []

        async def caller(number: int, delay: int, kind: str, key: int) -> int:
            for _ in range(delay):
                await asyncio.sleep(0)
            arrived.append(number)
            return await coalescer.call((number, kind, key))

        async def canceller(task: asyncio.Task[int], delay: int) -> None:
            for _ in range(delay):
                await asyncio.sleep(0)
            task.cancel()

        tasks, cancellers = [], []
        for number, (delay, kind, key, cancelled_after) in enumerate(calls):
            tasks.append(asyncio.ensure_future(caller(number, delay, kind, key)))
            if cancelled_after is not None:
                cancellers.append(asyncio.ensure_future(canceller(tasks[-1], cancelled_after)))
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        await asyncio.gather(*cancellers)
        await coalescer.join()
        ranks = {number: rank for rank, number in enumerate(arrived)}
        for numbers in order.values() if keyed or (max_in_flight == 1 and not own_way) else ():
            assert numbers == sorted(numbers, key=ranks.__getitem__)
        return results

    for number, result in enumerate(asyncio.run(scenario())):
        _, kind, _, cancelled_after = calls[number]
        assert runs[number] <= 1
        if isinstance(result, asyncio.CancelledError):
            assert cancelled_after is not None
        elif isinstance(result, StoreUnavailableError):
            assert number in unavailable
        elif kind == "raise":
            assert repr(result) == f"ArithmeticError({number})"
        elif kind == "outcome":
            assert repr(result) == f"KeyError({number})"
            assert runs[number] == 1
        else:
            assert result == number
            assert runs[number] == 1

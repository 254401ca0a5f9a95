"""Many tasks and two clients on the same sagas."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from saga_bus.store.conformance import expect
from saga_bus.store.conformance.kit import Kit, case
from saga_bus.store.conformance.states import MAIN, KitState, follow, new_state
from saga_bus.store.errors import ConcurrencyError, DuplicateSagaError, SagaNotFoundError, StoreUnavailableError
from saga_bus.store.state import SagaMetadata

RACERS = 20
ATTEMPTS = 500  # of a retried increment: far more than any store needs that lets somebody win


async def _two(kit: Kit) -> tuple[Any, Any]:
    return await kit.store(), await kit.client()


async def _outcomes(calls: list[Awaitable[Any]], allowed: type[Exception], what: str) -> list[int]:
    """Run calls at once; the numbers of those that succeeded. Fails on any error but the allowed one."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for number, answer in enumerate(answers):
        if isinstance(answer, BaseException) and not isinstance(answer, allowed):
            raise AssertionError(  # noqa: TRY004 - a verdict, not a type check
                f"{what}: call {number} raised {type(answer).__name__}: {answer}, not {allowed.__name__}"
            ) from answer
    return [number for number, answer in enumerate(answers) if not isinstance(answer, BaseException)]


@case()
async def one_winner_among_inserts_of_one_id(kit: Kit) -> None:
    """Of many inserts of one id at once exactly one succeeds, the others are DuplicateSagaErrors and leave nothing."""
    clients = await _two(kit)
    states = [new_state(str(number), metadata=SagaMetadata.fresh("id-1")) for number in range(RACERS)]
    calls = [clients[n % 2].insert(MAIN, f"order-{n}", state) for n, state in enumerate(states)]
    won = await _outcomes(calls, DuplicateSagaError, "inserts of one id")
    expect.equal(len(won), 1, "the number of inserts of one id that succeeded")
    await kit.holds(f"order-{won[0]}", states[won[0]], "the insert that succeeded")
    for number in set(range(RACERS)) - set(won):
        found = await clients[0].get_by_correlation_id(MAIN, f"order-{number}")
        expect.none(found, "the correlation id of an insert that was refused")


@case()
async def one_winner_among_inserts_of_one_correlation_id(kit: Kit) -> None:
    """Of many inserts of one correlation id at once exactly one succeeds, and the others leave nothing."""
    clients = await _two(kit)
    states = [new_state(str(number)) for number in range(RACERS)]
    calls = [clients[n % 2].insert(MAIN, "order-1", state) for n, state in enumerate(states)]
    won = await _outcomes(calls, DuplicateSagaError, "inserts of one correlation id")
    expect.equal(len(won), 1, "the number of inserts of one correlation id that succeeded")
    await kit.holds("order-1", states[won[0]], "the insert that succeeded")
    for number in set(range(RACERS)) - set(won):
        found = await clients[1].get_by_id(MAIN, states[number].metadata.saga_id)
        expect.none(found, "the id of an insert that was refused")


@case()
async def one_winner_per_version(kit: Kit) -> None:
    """Of many updates of one version at once exactly one succeeds: two messages never overwrite each other."""
    clients = await _two(kit)
    state = await kit.inserted("order-1")
    for version in range(5):
        tries = [follow(state, f"{version} {number}") for number in range(RACERS)]
        calls = [clients[number % 2].update(MAIN, new, version) for number, new in enumerate(tries)]
        won = await _outcomes(calls, ConcurrencyError, "updates of one version")
        expect.equal(len(won), 1, f"the number of updates of version {version} that succeeded")
        state = tries[won[0]]
        await kit.holds("order-1", state, "the update that succeeded")


@case()
async def retried_increments_add_up(kit: Kit) -> None:
    """Workers that load, add one, save and retry on conflict come to exactly the sum: no update is lost."""
    clients = await _two(kit)
    state = await kit.inserted("order-1")
    workers, turns = 8, 10

    async def work(store: Any) -> None:
        for _ in range(turns):
            await increment(store, "order-1")

    await asyncio.gather(*(work(clients[number % 2]) for number in range(workers)))
    found = await clients[0].get_by_id(MAIN, state.metadata.saga_id)
    expect.equal(found.count, workers * turns, f"the count after {workers} workers of {turns} increments")
    expect.equal(found.metadata.version, workers * turns, "the version after all increments")


async def increment(store: Any, correlation_id: str) -> None:
    """Load a saga, add one to its count and save it, again until nobody else was faster.

    Args:
        store: The store.
        correlation_id: The saga's correlation id.
    """
    for _ in range(ATTEMPTS):
        state = await store.get_by_correlation_id(MAIN, correlation_id)
        expect.true(state is not None, f"the saga of the correlation id {correlation_id!r} is not there")
        try:
            await store.update(MAIN, follow(state, count=state.count + 1), state.metadata.version)
        except (ConcurrencyError, StoreUnavailableError) as error:
            expect.true(not isinstance(error, SagaNotFoundError), f"a saga that was just loaded is not there: {error}")
            await asyncio.sleep(0)
        else:
            return
    raise AssertionError(f"{ATTEMPTS} attempts to save an increment all met a conflict")


@case()
async def conflicts_fail_no_neighbour(kit: Kit) -> None:
    """Among many writes at once, each bad one fails alone: neighbours of conflicts and duplicates are saved."""
    store = await kit.store()
    states = [await kit.inserted(f"order-{number}", str(number)) for number in range(30)]
    stale = {number for number in range(30) if number % 5 == 2}
    for number in stale:
        states[number] = follow(states[number], "moved on")
        await store.update(MAIN, states[number], 0)
    newer = [follow(state, "newer", now=state.metadata.updated_at) for state in states]
    tries = [
        new if number not in stale else follow(new_state(metadata=SagaMetadata.fresh(new.metadata.saga_id)), "lost")
        for number, new in enumerate(newer)
    ]
    fresh = [new_state(f"new {number}") for number in range(10)]
    updates: list[Awaitable[Any]] = [store.update(MAIN, new, 0) for new in tries]
    inserts: list[Awaitable[Any]] = [
        store.insert(MAIN, f"order-{number}" if number % 2 else f"new-{number}", new)
        for number, new in enumerate(fresh)
    ]
    mixed = [call for number, call in enumerate(updates) for call in (call, *inserts[number : number + 1])]
    positions = {id(call): number for number, call in enumerate(mixed)}
    won = set(await _outcomes(mixed, ConcurrencyError, "updates and inserts at once"))
    for number, call in enumerate(updates):
        done = positions[id(call)] in won
        expect.equal(
            done, number not in stale, f"whether update {number} succeeded ({'stale' if number in stale else 'good'})"
        )
        await kit.holds(
            f"order-{number}", states[number] if number in stale else newer[number], "a saga after the updates"
        )
    for number, call in enumerate(inserts):
        done = positions[id(call)] in won
        expect.equal(done, number % 2 == 0, f"whether insert {number} succeeded")
        if done:
            await kit.holds(f"new-{number}", fresh[number], "an insert beside refused ones")


@case()
async def different_sagas_do_not_conflict(kit: Kit) -> None:
    """Many tasks, each with a saga of its own, never meet a conflict."""
    clients = await _two(kit)

    async def life(number: int) -> None:
        store = clients[number % 2]
        state = new_state(str(number))
        await store.insert(MAIN, f"order-{number}", state)
        for version in range(4):
            found = await store.get_by_correlation_id(MAIN, f"order-{number}")
            expect.same_state(found, state, f"the saga of task {number}")
            state = follow(found, count=version)
            await store.update(MAIN, state, version)
        if number % 2:
            await store.delete(MAIN, state.metadata.saga_id)
            await kit.lacks(f"order-{number}", state.metadata.saga_id, "after a task deleted its saga")
        else:
            await kit.holds(f"order-{number}", state, "after a task's updates")

    await asyncio.gather(*(life(number) for number in range(25)))


@case()
async def update_against_delete(kit: Kit) -> None:
    """An update and a delete at once: the saga is gone, and the update came before or was refused."""
    one, two = await _two(kit)
    for turn in range(10):
        state = await kit.inserted(f"order-{turn}")
        calls = [one.update(MAIN, follow(state), 0), two.delete(MAIN, state.metadata.saga_id)]
        if turn % 2:
            calls.reverse()
        won = await _outcomes(calls, SagaNotFoundError, "an update and a delete")
        expect.true((turn % 2 == 0 and 1 in won) or (turn % 2 == 1 and 0 in won), "an unconditional delete was refused")
        await kit.lacks(f"order-{turn}", state.metadata.saga_id, "after an update and a delete at once")


@case("conditional_delete")
async def one_winner_among_update_and_delete(kit: Kit) -> None:
    """Of an update and a delete of one version at once exactly one succeeds."""
    one, two = await _two(kit)
    for turn in range(10):
        state = await kit.inserted(f"order-{turn}")
        newer = follow(state)
        update = one.update(MAIN, newer, 0)
        delete = two.delete(MAIN, state.metadata.saga_id, expected_version=0)
        won = await _outcomes([update, delete] if turn % 2 else [delete, update], ConcurrencyError, "update and delete")
        expect.equal(len(won), 1, "the number of winners among an update and a delete of one version")
        if (won[0] == 0) == bool(turn % 2):
            await kit.holds(f"order-{turn}", newer, "after the update won")
        else:
            await kit.lacks(f"order-{turn}", state.metadata.saga_id, "after the delete won")


@case()
async def insert_against_delete(kit: Kit) -> None:
    """Inserts and deletes of the same keys at once leave both indexes in agreement."""
    one, two = await _two(kit)
    for turn in range(10):
        old = await kit.inserted(f"order-{turn}", "old")
        new = new_state("new", metadata=SagaMetadata.fresh(old.metadata.saga_id))
        calls = [two.delete(MAIN, old.metadata.saga_id), one.insert(MAIN, f"order-{turn}", new)]
        await _outcomes(calls, DuplicateSagaError, "a delete and an insert")
        by_id = await one.get_by_id(MAIN, old.metadata.saga_id)
        by_correlation = await two.get_by_correlation_id(MAIN, f"order-{turn}")
        expect.equal(by_id, by_correlation, "what is found by id, against what is found by correlation id")
        if by_id is not None:
            expect.same_state(by_id, new, "what is there after a delete and an insert")


@case()
async def readers_never_go_back(kit: Kit) -> None:
    """While a saga is updated, a reader sees whole states only, and never an older one than before."""
    one, two = await _two(kit)
    state = await kit.inserted("order-1", "0", data={"copy": 0})
    finished = asyncio.Event()

    async def read() -> None:
        last = 0
        while not finished.is_set():
            for read, key in ((two.get_by_id, state.metadata.saga_id), (two.get_by_correlation_id, "order-1")):
                found = await read(MAIN, key)
                parts = (found.note, found.count, found.data["copy"], found.metadata.version)
                expect.equal(
                    parts, (str(found.count), *(found.count,) * 3), "the parts of a state that is being updated"
                )
                expect.true(found.count >= last, f"a reader saw version {found.count} after version {last}")
                last = found.count
            await asyncio.sleep(0)

    async def write() -> None:
        current = state
        try:
            for number in range(1, 40):
                current = follow(current, str(number), count=number)
                current.data = {"copy": number}
                await one.update(MAIN, current, number - 1)
        finally:
            finished.set()

    await asyncio.gather(read(), read(), write())


@case()
async def survives_cancelled_callers(kit: Kit) -> None:
    """A caller that is cancelled, at whichever await, leaves a whole store and no half of its write."""
    store = await kit.store()
    neighbour = await kit.inserted("neighbour")
    operations: dict[str, Callable[[KitState, str], Awaitable[Any]]] = {
        "insert": lambda state, correlation_id: store.insert(MAIN, correlation_id, state),
        "update": lambda state, _: store.update(MAIN, follow(state, "newer"), 0),
        "delete": lambda state, _: store.delete(MAIN, state.metadata.saga_id),
        "get_by_id": lambda state, _: store.get_by_id(MAIN, state.metadata.saga_id),
    }
    for steps in range(12):
        for name, operation in operations.items():
            correlation_id = f"{name}-{steps}"
            state = new_state("old")
            if name != "insert":
                await store.insert(MAIN, correlation_id, state)
            task = asyncio.ensure_future(operation(state, correlation_id))
            others = [asyncio.ensure_future(store.get_by_id(MAIN, neighbour.metadata.saga_id)) for _ in range(3)]
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            for found in await asyncio.gather(*others):
                expect.same_state(found, neighbour, f"a read beside a cancelled {name}")
            await asyncio.gather(task, return_exceptions=True)
            await _settled(store, state, correlation_id, f"{name}, cancelled after {steps} steps")
    await asyncio.gather(*(increment(store, "neighbour") for _ in range(10)))
    found = await store.get_by_id(MAIN, neighbour.metadata.saga_id)
    expect.equal(found.count, 10, "the count after ten increments that followed the cancellations")


async def _settled(store: Any, state: KitState, correlation_id: str, what: str) -> None:
    """Wait until both keys agree, as a cancelled write may still be under way; fail if they never do."""
    by_id = by_correlation = None
    for _ in range(200):
        by_id = await store.get_by_id(MAIN, state.metadata.saga_id)
        by_correlation = await store.get_by_correlation_id(MAIN, correlation_id)
        if by_id == by_correlation:
            break
        await asyncio.sleep(0.005)
    expect.equal(by_id, by_correlation, f"{what}: what is found by id, against what is found by correlation id")
    expect.true(
        by_id is None or (by_id.note, by_id.metadata.version) in (("old", 0), ("newer", 1)),
        f"{what}: the saga is neither the old nor the new one: {by_id!r}",
    )

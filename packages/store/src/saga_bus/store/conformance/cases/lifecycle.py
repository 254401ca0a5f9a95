"""Opening, closing, schema, declared abilities."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from saga_bus.store.conformance import expect
from saga_bus.store.conformance.kit import Kit, case
from saga_bus.store.conformance.states import MAIN, follow, new_state
from saga_bus.store.errors import SagaStoreError, SchemaError, StoreClosedError, UnsupportedOperationError
from saga_bus.store.protocol import Ping
from saga_bus.store.query import SagaFilter
from saga_bus.store.state import SagaMetadata

METHODS = {
    "query": ("find", "count"),
    "retention": ("delete_completed_before",),
    "schema": ("create_schema", "check_schema", "drop_schema"),
    "transactions": ("bind",),
    "ping": ("ping",),
}


@case()
async def opens_once_for_racing_tasks(kit: Kit) -> None:
    """Many tasks may use a fresh store at once: it opens by itself, and every call gets its answer."""
    state = await kit.inserted("order-1")
    fresh = await kit.client()
    found = await asyncio.gather(*(fresh.get_by_id(MAIN, state.metadata.saga_id) for _ in range(20)))
    for one in found:
        expect.same_state(one, state, "the first reads of a fresh store")
    fresh = await kit.client()
    states = [new_state(str(number)) for number in range(20)]
    await asyncio.gather(*(fresh.insert(MAIN, f"new-{number}", new) for number, new in enumerate(states)))
    for number, new in enumerate(states):
        await kit.holds(f"new-{number}", new, "the first inserts of a fresh store")


@case()
async def closes_twice(kit: Kit) -> None:
    """Closing is no error a second time, nor before the first use."""
    store = await kit.closable()
    await store.close()
    await store.close()
    used = await kit.client()
    await used.get_by_id(MAIN, "id-1")
    await used.close()
    await used.close()


@case()
async def refuses_use_after_close(kit: Kit) -> None:
    """After close every operation is a StoreClosedError, and nothing is written."""
    state = await kit.inserted("order-1")
    closed = await kit.closable()
    await closed.get_by_id(MAIN, state.metadata.saga_id)
    await closed.close()
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "get_by_id": lambda: closed.get_by_id(MAIN, state.metadata.saga_id),
        "get_by_correlation_id": lambda: closed.get_by_correlation_id(MAIN, "order-1"),
        "insert": lambda: closed.insert(MAIN, "order-2", new_state(metadata=SagaMetadata.fresh("id-2"))),
        "update": lambda: closed.update(MAIN, follow(state), 0),
        "delete": lambda: closed.delete(MAIN, state.metadata.saga_id),
    }
    if kit.capabilities.query:
        calls |= {"find": lambda: closed.find(SagaFilter()), "count": lambda: closed.count(SagaFilter())}
    if kit.capabilities.retention:
        calls["delete_completed_before"] = lambda: closed.delete_completed_before(MAIN, state.metadata.created_at)
    if kit.capabilities.schema:
        calls |= {name: getattr(closed, name) for name in METHODS["schema"]}
    if kit.capabilities.ping:
        calls["ping"] = closed.ping
    for name, call in calls.items():
        await expect.raises(call(), StoreClosedError, f"{name} after close")
    check = await kit.client()
    expect.same_state(await check.get_by_id(MAIN, state.metadata.saga_id), state, "another client's view")
    expect.none(await check.get_by_id(MAIN, "id-2"), "what was inserted after close")


@case()
async def close_finishes_what_is_in_hand(kit: Kit) -> None:
    """Closing while writes are in hand: each is either acknowledged and there, or a StoreClosedError; none hangs."""
    for steps in (0, 1, 2, 5):
        store = await kit.closable()
        await store.get_by_id(MAIN, "id-1")
        states = [new_state(f"{steps}.{number}") for number in range(20)]
        writes = [asyncio.ensure_future(store.insert(MAIN, f"order-{state.note}", state)) for state in states]
        for _ in range(steps):
            await asyncio.sleep(0)
        await store.close()
        answers = await asyncio.gather(*writes, return_exceptions=True)
        for state, answer in zip(states, answers, strict=True):
            if answer is None:
                await kit.holds(
                    f"order-{state.note}", state, "a write that was acknowledged while the store was closed"
                )
            else:
                closed = isinstance(answer, StoreClosedError)
                expect.true(closed, f"a write while the store was closed raised {answer!r}, not StoreClosedError")


@case()
async def closing_one_client_leaves_others(kit: Kit) -> None:
    """Closing one client leaves another one of the same place working."""
    one, two = await kit.closable(), await kit.client()
    state = new_state()
    await one.insert(MAIN, "order-1", state)
    await one.close()
    expect.same_state(await two.get_by_id(MAIN, state.metadata.saga_id), state, "the other client's view")
    await two.update(MAIN, follow(state), 0)


@case()
async def leaves_no_task_behind(kit: Kit) -> None:
    """A closed store leaves no task running."""
    before = asyncio.all_tasks()
    store = await kit.closable()
    states = [new_state() for _ in range(10)]
    await asyncio.gather(*(store.insert(MAIN, f"order-{number}", state) for number, state in enumerate(states)))
    await store.close()
    await asyncio.sleep(0)
    left = asyncio.all_tasks() - before
    expect.equal([task.get_name() for task in left], [], "the tasks that are left after close")


@case()
async def tells_no_secret(kit: Kit) -> None:
    """No repr and no error shows the password or any other secret."""
    store = await kit.store()
    shown = [repr(store), str(store)]
    state = await kit.inserted("order-1")
    for call in (store.insert(MAIN, "order-1", state), store.update(MAIN, follow(follow(state)), 1)):
        error = await expect.raises(call, SagaStoreError, "a refused write")
        shown.append(f"{error!r} {error}")
    for secret in kit.hooks.secrets:
        leaks = [text.replace(secret, "<the secret>") for text in shown if secret in text]
        expect.equal(leaks, [], "texts that show a secret")


@case()
async def declared_abilities_are_there(kit: Kit) -> None:
    """A declared ability has its methods; an undeclared one raises UnsupportedOperationError where it has any."""
    store = await kit.store()
    lag = kit.capabilities.index_lag
    expect.true(
        isinstance(lag, timedelta) and lag >= timedelta(0),
        f"the store declares an index_lag of {lag!r}, which must be a timedelta of 0 or more",
    )
    arguments: dict[str, tuple[Any, ...]] = {
        "find": (SagaFilter(),),
        "count": (SagaFilter(),),
        "delete_completed_before": (MAIN, new_state().metadata.created_at),
    }
    for ability, names in METHODS.items():
        for name in names:
            if getattr(kit.capabilities, ability):
                what = f"the store declares {ability}, but has no method {name}"
                expect.true(callable(getattr(store, name, None)), what)
            elif hasattr(store, name) and name != "bind":  # which needs the connection of a driver
                what = f"{name} of a store that does not declare {ability}"
                await expect.raises(getattr(store, name)(*arguments.get(name, ())), UnsupportedOperationError, what)


@case("ping")
async def ping_answers(kit: Kit) -> None:
    """Ping makes a round trip and returns its time, and warnings as texts."""
    store = await kit.store()
    answer = await store.ping()
    expect.true(isinstance(answer, Ping), f"ping returned {answer!r}, not a Ping")
    expect.true(0 <= answer.seconds < 60, f"ping took {answer.seconds} s")
    expect.true(
        isinstance(answer.warnings, tuple) and all(isinstance(text, str) and text for text in answer.warnings),
        f"the warnings of ping are {answer.warnings!r}, not a tuple of texts",
    )


@case("schema")
async def create_schema_twice(kit: Kit) -> None:
    """Creating a schema that is there changes nothing: sagas stay, and check_schema is content."""
    store = await kit.store()
    state = await kit.inserted("order-1")
    await store.create_schema()
    await store.check_schema()
    await kit.holds("order-1", state, "after create_schema was called again")


@case("schema")
async def create_schema_from_many_tasks(kit: Kit) -> None:
    """Many clients may create the schema of one place at once."""
    namespace = kit.place()
    clients = [await kit.bare(namespace) for _ in range(6)]
    await asyncio.gather(*(client.create_schema() for client in clients))
    await clients[0].check_schema()
    state = new_state()
    await clients[0].insert(MAIN, "order-1", state)
    found = await clients[-1].get_by_id(MAIN, state.metadata.saga_id)
    expect.same_state(found, state, "through another of the clients")


@case("schema")
async def missing_schema_is_a_schema_error(kit: Kit) -> None:
    """Without its schema, check_schema and every operation are a SchemaError that says what to run."""
    namespace = kit.place()
    calls: dict[str, Any] = {
        "check_schema": lambda store: store.check_schema(),
        "get_by_id": lambda store: store.get_by_id(MAIN, "id-1"),
        "get_by_correlation_id": lambda store: store.get_by_correlation_id(MAIN, "order-1"),
        "insert": lambda store: store.insert(MAIN, "order-1", new_state()),
        "update": lambda store: store.update(MAIN, follow(new_state()), 0),
        "delete": lambda store: store.delete(MAIN, "id-1"),
    }
    for name, call in calls.items():
        store = await kit.bare(namespace)
        error = await expect.raises(call(store), SchemaError, f"{name} without a schema")
        expect.true(
            "create_schema" in str(error), f"{name} without a schema: the message does not say what to run: {error}"
        )


@case("schema")
async def drop_schema_removes_all(kit: Kit) -> None:
    """Dropping removes the sagas, is no error a second time, and the schema can be made again, empty."""
    store = await kit.store()
    state = await kit.inserted("order-1")
    await store.drop_schema()
    await store.drop_schema()
    await expect.raises(store.check_schema(), SchemaError, "check_schema after drop_schema")
    fresh = await kit.bare(kit.namespace)
    await fresh.create_schema()
    await fresh.check_schema()
    found = await fresh.get_by_id(MAIN, state.metadata.saga_id)
    expect.none(found, "a saga after its schema was dropped and made again")

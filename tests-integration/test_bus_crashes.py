"""Workers of a bus killed with SIGKILL at random moments: nothing is lost and nothing happens twice.

The size is small here; ``python -m crashes postgres rabbitmq --sagas 2000`` runs the same in full, and so does
``SAGA_TEST_CRASH_SAGAS=2000``.
"""

import asyncio
import os

import pytest

from brokers.private import private_nats, private_redis
from crashes.crash import Counts, CrashError, Watcher, crash, verify
from crashes.places import crash_place
from crashes.saga import EVENTS, SAGA_NAME, CrashState
from providers import UnavailableError
from saga_bus.store_inmemory import InMemorySagaStore

SAGAS = int(os.environ.get("SAGA_TEST_CRASH_SAGAS", "100"))


@pytest.mark.parametrize(
    ("store", "broker"), [("postgres", "rabbitmq"), ("sqlite", "nats"), ("redis", "redis-streams")]
)
def test_killed_workers_lose_nothing_and_repeat_nothing(store, broker, databases, brokers, tmp_path):
    async def run():
        async with crash_place(store, databases.url(store), brokers.url(broker), tmp_path) as place:
            return await crash(
                place.open_store, place.open_transport, place.dead_letters, tmp_path, sagas=SAGAS, kills_each=2
            )

    counts = asyncio.run(run())
    print(f"{store} and {broker}: {counts}")
    assert set(counts.kills) == set(range(4))
    assert counts.kills_at_work > 0
    assert counts.handled == counts.events == 8 * SAGAS


@pytest.mark.parametrize(("broker", "private"), [("nats", private_nats), ("redis-streams", private_redis)])
def test_a_broker_that_is_killed_with_the_workers_loses_nothing_either(broker, private, brokers, tmp_path):
    try:
        folder = tmp_path / "broker"
        folder.mkdir()
        killed = private(folder)
        killed.start()
    except UnavailableError as error:
        brokers.missing(broker, str(error))

    async def disturb():
        for _ in range(2):
            await asyncio.sleep(2)
            await asyncio.to_thread(killed.kill)
            await asyncio.to_thread(killed.start)

    async def run():
        async with crash_place("sqlite", "", killed.url, tmp_path) as place:
            return await crash(
                place.open_store,
                place.open_transport,
                place.dead_letters,
                tmp_path,
                sagas=SAGAS,
                kills_each=1,
                disturb=disturb,
            )

    try:
        counts = asyncio.run(run())
    finally:
        killed.kill()
    print(f"sqlite and {broker}, which was killed twice: {counts}")
    assert counts.handled == counts.events == 8 * SAGAS


def one_saga():
    """A saga that ended right, and the events of it."""
    state = CrashState(saga="saga-0", log=sorted(EVENTS))
    state.metadata = state.metadata.next(is_completed=True)
    watcher = Watcher()
    for what in EVENTS:
        watcher.ids["saga-0", what].add(f"id of {what}")
    return state, watcher


def verdict(state, watcher):
    async def run():
        store = InMemorySagaStore(state_types={SAGA_NAME: CrashState})
        await store.insert(SAGA_NAME, state.saga, state)
        await verify(store, watcher, Counts(1))

    asyncio.run(run())


def test_the_proof_passes_what_is_right():
    verdict(*one_saga())


def break_log(state, watcher):
    state.log.remove("step-3")


def double_log(state, watcher):
    state.log.append("step-3")


def lose_a_timer(state, watcher):
    state.log.remove("timeout")


def leave_open(state, watcher):
    state.metadata = state.metadata.next(is_completed=False)


def leave_an_outbox(state, watcher):
    state.metadata = state.metadata.next(outbox=({"id": "1"},))


def lose_an_event(state, watcher):
    del watcher.ids["saga-0", "reminder"]


def send_an_event_anew(state, watcher):
    watcher.ids["saga-0", "reminder"].add("another id")


@pytest.mark.parametrize(
    "spoil",
    [break_log, double_log, lose_a_timer, leave_open, leave_an_outbox, lose_an_event, send_an_event_anew],
)
def test_the_proof_finds_what_is_wrong(spoil):
    state, watcher = one_saga()
    spoil(state, watcher)
    with pytest.raises(CrashError):
        verdict(state, watcher)

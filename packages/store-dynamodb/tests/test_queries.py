"""Searches: which index is read, and what an index that lags behind does to them."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from saga_bus.store import SagaFilter, SagaMetadata

START = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
LATER = START + 1000 * SECOND


def at(place, number, **fields):
    moment = START + number * SECOND
    metadata = SagaMetadata(saga_id=f"id-{number:03}", version=0, created_at=moment, updated_at=moment, **fields)
    return place.State(metadata=metadata)


async def fill(place, store, numbers, **fields):
    states = [at(place, number, **fields) for number in numbers]
    await asyncio.gather(*(store.insert(place.name, f"order-{state.metadata.saga_id}", state) for state in states))
    return states


def ids(page):
    return [record.state.metadata.saga_id for record in page.items]


@pytest.mark.parametrize(
    ("where", "index"),
    [
        (SagaFilter(), "by_creation"),
        (SagaFilter(completed=False, archived=True), "by_creation"),
        (SagaFilter(outbox_pending=False), "by_creation"),
        (SagaFilter(order="stalest"), "by_update"),
        (SagaFilter(timeout_due_before=LATER), "by_timeout"),
        (SagaFilter(timeout_due_before=LATER, outbox_pending=True, order="newest"), "by_timeout"),
        (SagaFilter(outbox_pending=True), "by_outbox"),
        (SagaFilter(outbox_pending=True, updated_before=LATER, order="stalest"), "by_outbox"),
    ],
    ids=str,
)
def test_a_search_reads_one_index_and_never_the_table(place, run, recorder, where, index):
    where = SagaFilter(**{**{name: getattr(where, name) for name in where.__struct_fields__}, "saga_name": place.name})

    async def check():
        async with place.opened() as store:
            await fill(place, store, range(5))
            recorded = recorder(store)
            await store.find(where)
            await store.count(where)
            queries = [request for name, request in recorded.requests if name == "query"]
            assert set(recorded.names) <= {"query", "batch_get_item"}
            find_indexes = {request["IndexName"] for request in queries if request.get("Select") != "COUNT"}
            assert find_indexes == {index}

    run(check())


def test_sparse_indexes_hold_what_waits_and_nothing_else(place, run):
    async def check():
        async with place.opened() as store:
            await fill(place, store, range(3))
            await fill(place, store, range(10, 12), timeout_expires_at=START)
            await fill(place, store, range(20, 23), outbox=({"id": "m"},))
            (both,) = await fill(place, store, [30], timeout_expires_at=START, outbox=({"id": "m"},))
            done = place.State(metadata=both.metadata.next(is_completed=True, outbox=()))
            await store.update(place.name, done, 0)

    run(check())
    with place.client() as client:

        def entries(index):
            return client.scan(TableName=place.table, IndexName=index)["Count"]

        assert {index: entries(index) for index in ("by_creation", "by_update", "by_timeout", "by_outbox")} == {
            "by_creation": 10,  # one of them the saga's name
            "by_update": 9,
            "by_timeout": 2,
            "by_outbox": 3,
        }


def test_an_update_of_a_running_saga_writes_one_index_entry_and_no_other(place, run, recorder):
    consumed = []

    def measured(method, request):
        response = method(**request, ReturnConsumedCapacity="INDEXES")
        consumed.append(response["ConsumedCapacity"])
        return response

    async def check():
        async with place.opened() as store:
            (state,) = await place.insert(store, "a")
            recorder(store).instead["update_item"] = [measured]
            await store.update(place.name, place.follow(state), 0)

    run(check())
    assert list(consumed[0]["GlobalSecondaryIndexes"]) == ["by_update"]


class Lagging:
    """Answers queries as they were answered when it was asked to remember, as an index does that lags behind."""

    def __init__(self, recorded) -> None:
        self.recorded = recorded
        self.answers = {}

    def _key(self, request):
        return str({name: value for name, value in request.items() if name != "Limit"})

    def remember(self, method, request):
        self.answers[self._key(request)] = method(**request)
        return self.answers[self._key(request)]

    def replay(self, method, request):
        return self.answers.get(self._key(request)) or method(**request)

    def during(self, what):
        self.recorded.instead["query"] = [what] * 500


def test_what_an_index_still_has_is_not_found_and_leaves_no_gap(place, run, recorder):
    where = SagaFilter(saga_name=place.name)

    async def check():
        async with place.opened() as store, place.store() as other:
            states = await fill(place, store, range(30))
            lagging = Lagging(recorder(store))
            lagging.during(lagging.remember)
            assert len(ids(await store.find(where, limit=5))) == 5
            # The index does not know yet that the newest were deleted, completed or never so young.
            for number in (29, 28, 27):
                await other.delete(place.name, f"id-{number:03}")
            lagging.during(lagging.replay)
            page = await store.find(where, limit=5)
            assert ids(page) == [f"id-{number:03}" for number in range(26, 21, -1)]
            assert page.cursor is not None

            running = SagaFilter(saga_name=place.name, completed=False)
            lagging.during(lagging.remember)
            await store.find(running, limit=3)
            await other.update(place.name, place.State(metadata=states[26].metadata.next(is_completed=True)), 0)
            await other.update(place.name, place.follow(states[25], "new"), 0)
            lagging.during(lagging.replay)
            page = await store.find(running, limit=3)
            assert ids(page) == ["id-025", "id-024", "id-023"]
            assert page.items[0].state.note == "new"  # what is found is as it is now

            stalest = SagaFilter(saga_name=place.name, order="stalest")
            lagging.during(lagging.remember)
            assert ids(await store.find(stalest, limit=2)) == ["id-000", "id-001"]
            await other.update(place.name, place.follow(states[0]), 0)
            lagging.during(lagging.replay)
            assert ids(await store.find(stalest, limit=2)) == ["id-001", "id-002"]

    run(check())


def test_a_purge_on_an_index_that_lags_behind(place, run, recorder):
    async def check():
        async with place.opened() as store, place.store() as other:
            states = await fill(place, store, range(12), is_completed=True)
            lagging = Lagging(recorder(store))
            lagging.during(lagging.remember)
            assert await store._purge(place.name, START, 4) == 0
            lagging.recorded.clear()
            entries = await _purgeable(store, place)
            assert entries == 12
            reopened = place.State(metadata=states[0].metadata.next(is_completed=False, now=START))
            await other.update(place.name, reopened, 0)
            touched = place.State(metadata=states[1].metadata.next(now=LATER + SECOND))
            await other.update(place.name, touched, 0)
            for number in (2, 3, 4):
                await other.delete(place.name, f"id-{number:03}")
            lagging.during(lagging.replay)
            # A batch that begins with five that are no longer there goes on to those that are.
            assert await store.delete_completed_before(place.name, LATER, batch_size=3) == 7
            assert await store.get_by_id(place.name, "id-000") == reopened
            assert await store.get_by_id(place.name, "id-001") == touched
        left = [key for key in place.items() if key.startswith(("S#", "C#"))]
        assert len(left) == 4

    async def _purgeable(store, place):
        """Have the index's answers to a purge remembered, without deleting anything."""
        real = store._writes.delete_both
        seen = []

        async def spare(key, *args):
            seen.append(key)
            return False

        store._writes.delete_both = spare
        for size in (3, 1000):
            seen.clear()
            await store._purge(place.name, LATER, size)
        store._writes.delete_both = real
        return len(seen)

    run(check())


def test_orders_that_a_sparse_index_does_not_have_are_sorted(place, run):
    async def check():
        async with place.opened() as store:
            states = await fill(place, store, range(9), outbox=({"id": "m"},), timeout_expires_at=START)
            await store.update(place.name, place.State(metadata=states[0].metadata.next()), 0)
            for where, expected in (
                (SagaFilter(outbox_pending=True), range(8, -1, -1)),
                (SagaFilter(timeout_due_before=LATER, order="newest"), range(8, -1, -1)),
                (SagaFilter(timeout_due_before=LATER, order="stalest"), [*range(1, 9), 0]),
                (SagaFilter(outbox_pending=True, order="stalest"), [*range(1, 9), 0]),
            ):
                found, cursor = [], None
                while True:
                    page = await store.find(where, limit=2, cursor=cursor)
                    found += ids(page)
                    cursor = page.cursor
                    if cursor is None:
                        break
                assert found == [f"id-{number:03}" for number in expected]

    run(check())

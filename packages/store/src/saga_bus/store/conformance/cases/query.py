"""Finding and counting sagas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from itertools import count
from typing import Any

from saga_bus.store.conformance import expect
from saga_bus.store.conformance.kit import Kit, case
from saga_bus.store.conformance.lag import find_page
from saga_bus.store.conformance.states import MAIN, OTHER, KitState, follow, new_state
from saga_bus.store.errors import InvalidSagaError
from saga_bus.store.query import Page, SagaFilter, SagaOrder
from saga_bus.store.state import SagaMetadata

START = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def _at(
    number: int, *, created: float = 0, updated: float | None = None, due: float | None = None, **fields: Any
) -> SagaMetadata:
    """Metadata whose times are seconds after START."""
    return SagaMetadata(
        saga_id=f"id-{number:03}",
        version=0,
        created_at=START + created * SECOND,
        updated_at=START + (created if updated is None else updated) * SECOND,
        timeout_expires_at=None if due is None else START + due * SECOND,
        **fields,
    )


async def _fill(kit: Kit, metadata: Sequence[SagaMetadata], saga_name: str = MAIN) -> dict[str, KitState]:
    store = await kit.store()
    states = {}
    for one in metadata:
        states[one.saga_id] = new_state(one.saga_id, metadata=one)
        await store.insert(saga_name, f"order {one.saga_id}", states[one.saga_id])
    return states


def _ids(page: Page[Any]) -> list[str]:
    return [item.state.metadata.saga_id for item in page.items]


async def _walk(store: Any, saga_filter: SagaFilter, limit: int) -> list[str]:
    """The ids of all pages; fails on a page that promises more and is empty, or that is too long."""
    ids: list[str] = []
    cursor = None
    for _ in range(1000):
        page = await find_page(store, saga_filter, "a page of a walk", limit=limit, cursor=cursor)
        expect.true(len(page.items) <= limit, f"a page of {len(page.items)} records with limit={limit}")
        expect.true(
            page.items or (cursor is None and page.cursor is None),
            f"an empty page after {len(ids)} records, though the page before promised more",
        )
        ids += _ids(page)
        cursor = page.cursor
        if cursor is None:
            return ids
    raise AssertionError(f"1,000 pages with limit={limit} came to no end")


async def _walks(kit: Kit, saga_filter: SagaFilter, limit: int, ids: Sequence[str], what: str) -> None:
    """Fail unless all pages together have these ids, in this order."""
    await kit.sees(partial(_walk, await kit.store(), saga_filter, limit), list(ids), what)


async def _finds(kit: Kit, saga_filter: SagaFilter, ids: Sequence[str], what: str) -> None:
    """Fail unless one page has these ids, in this order, and as many are counted."""
    store = await kit.store()

    async def found() -> list[str]:
        return _ids(await find_page(store, saga_filter, f"find, {what}", limit=1000))

    await kit.sees(found, list(ids), f"find, {what}")
    await kit.sees(partial(store.count, saga_filter), len(ids), f"count, {what}")


async def _page(kit: Kit, saga_filter: SagaFilter, number: int, what: str, *, limit: int = 1000) -> Page[Any]:
    """A page, which must have so many records."""
    store = await kit.store()

    async def look() -> Page[Any]:
        page = await find_page(store, saga_filter, what, limit=limit)
        expect.equal(len(page.items), number, what)
        return page

    return await kit.settles(look)


@case("query")
async def nothing_in_an_empty_store(kit: Kit) -> None:
    """An empty store gives one empty page without a cursor, and counts 0."""
    page = await (await kit.store()).find(SagaFilter())
    expect.equal(len(page.items), 0, "the number of records in an empty store")
    expect.none(page.cursor, "the cursor of the only page")
    await _finds(kit, SagaFilter(), [], "in an empty store")


@case("query")
async def records_are_whole(kit: Kit) -> None:
    """A record holds the saga's name, its correlation id and its whole state, as an object of its own."""
    state = await kit.inserted("order-1", "kept", tags=["a"], data={"k": 1})
    for _ in range(2):
        (record,) = (await _page(kit, SagaFilter(), 1, "the number of records with one saga in the store")).items
        expect.equal(record.saga_name, MAIN, "the record's saga name")
        expect.equal(record.correlation_id, "order-1", "the record's correlation id")
        expect.same_state(record.state, state, "the record's state")
        record.state.tags.append("changed")


@case("query")
async def filters_by_name(kit: Kit) -> None:
    """The saga name filters exactly; without it all names are found."""
    await _fill(kit, [_at(1, created=1), _at(2, created=2)])
    await _fill(kit, [_at(1, created=3)], OTHER)
    await _finds(kit, SagaFilter(saga_name=MAIN), ["id-002", "id-001"], "by saga name")
    await _finds(kit, SagaFilter(saga_name=OTHER), ["id-001"], "by another saga name")
    await _finds(kit, SagaFilter(saga_name=MAIN.upper()), [], "by a saga name in another case")
    await _finds(kit, SagaFilter(), ["id-001", "id-002", "id-001"], "without a saga name")


@case("query")
async def filters_by_completed(kit: Kit) -> None:
    """Completed and running sagas are told apart, also after an update changed which it is."""
    store = await kit.store()
    states = await _fill(kit, [_at(1, created=1), _at(2, created=2, is_completed=True)])
    await _finds(kit, SagaFilter(completed=True), ["id-002"], "completed ones")
    await _finds(kit, SagaFilter(completed=False), ["id-001"], "running ones")
    await store.update(MAIN, follow(states["id-001"], is_completed=True), 0)
    await store.update(MAIN, follow(states["id-002"], is_completed=False), 0)
    await _finds(kit, SagaFilter(completed=True), ["id-001"], "completed ones after the updates")
    await _finds(kit, SagaFilter(completed=False), ["id-002"], "running ones after the updates")


@case("query")
async def filters_by_archived(kit: Kit) -> None:
    """Archived sagas and others are told apart, also after an update changed which it is."""
    store = await kit.store()
    states = await _fill(kit, [_at(1, created=1), _at(2, created=2, archived_at=START)])
    await _finds(kit, SagaFilter(archived=True), ["id-002"], "archived ones")
    await _finds(kit, SagaFilter(archived=False), ["id-001"], "not archived ones")
    await store.update(MAIN, follow(states["id-001"], archived_at=START), 0)
    await store.update(MAIN, follow(states["id-002"], archived_at=None), 0)
    await _finds(kit, SagaFilter(archived=True), ["id-001"], "archived ones after the updates")


@case("query")
async def filters_by_outbox(kit: Kit) -> None:
    """Sagas with messages not yet confirmed sent are found, and no longer when the outbox is empty."""
    store = await kit.store()
    states = await _fill(kit, [_at(1, created=1), _at(2, created=2, outbox=({"id": "m"},))])
    await _finds(kit, SagaFilter(outbox_pending=True), ["id-002"], "with a pending outbox")
    await _finds(kit, SagaFilter(outbox_pending=False), ["id-001"], "without a pending outbox")
    await store.update(MAIN, follow(states["id-002"], outbox=()), 0)
    await store.update(MAIN, follow(states["id-001"], outbox=({"id": "n"},)), 0)
    await _finds(kit, SagaFilter(outbox_pending=True), ["id-001"], "with a pending outbox after the updates")


@case("query")
async def filters_by_creation(kit: Kit) -> None:
    """created_after and created_before are strict, to the microsecond, in any time zone."""
    await _fill(kit, [_at(1, created=1), _at(2, created=1.000001), _at(3, created=2)])
    exact = START + 1 * SECOND
    await _finds(kit, SagaFilter(created_after=exact), ["id-003", "id-002"], "created after")
    elsewhere = exact.astimezone(timezone(timedelta(hours=-8)))
    await _finds(kit, SagaFilter(created_after=elsewhere), ["id-003", "id-002"], "created after, in another time zone")
    await _finds(kit, SagaFilter(created_before=START + 1.000001 * SECOND), ["id-001"], "created before")
    both = SagaFilter(created_after=exact, created_before=START + 2 * SECOND)
    await _finds(kit, both, ["id-002"], "created between")


@case("query")
async def filters_by_update(kit: Kit) -> None:
    """updated_after and updated_before are strict, to the microsecond, and follow every update."""
    store = await kit.store()
    states = await _fill(kit, [_at(1, updated=1), _at(2, updated=1.000001), _at(3, updated=2)])
    newest_first = SagaFilter(updated_after=START + 1 * SECOND)
    await _finds(kit, newest_first, ["id-003", "id-002"], "updated after")
    await _finds(kit, SagaFilter(updated_before=START + 1.000001 * SECOND), ["id-001"], "updated before")
    await store.update(MAIN, follow(states["id-001"], now=START + 10 * SECOND), 0)
    await _finds(kit, SagaFilter(updated_after=START + 2 * SECOND), ["id-001"], "updated after, after an update")


@case("query")
async def filters_together(kit: Kit) -> None:
    """Several filters must all hold."""
    await _fill(kit, [_at(1, created=1, is_completed=True), _at(2, created=2), _at(3, created=3, is_completed=True)])
    await _fill(kit, [_at(4, created=4, is_completed=True)], OTHER)
    together = SagaFilter(saga_name=MAIN, completed=True, created_after=START + 1 * SECOND, archived=False)
    await _finds(kit, together, ["id-003"], "by name, completion, creation and archival together")


@case("query")
async def due_timeouts_in_order(kit: Kit) -> None:
    """Due timeouts come earliest first, strictly before the moment, and of running sagas only."""
    store = await kit.store()
    states = await _fill(
        kit,
        [
            _at(1, created=1, due=30),
            _at(2, created=2, due=10),
            _at(3, created=3, due=20),
            _at(4, created=4, due=40),
            _at(5, created=5),
            _at(6, created=6, due=5, is_completed=True),
        ],
    )
    due = SagaFilter(timeout_due_before=START + 40 * SECOND)
    await _finds(kit, due, ["id-002", "id-003", "id-001"], "timeouts due")
    await _walks(kit, due, 1, ["id-002", "id-003", "id-001"], "timeouts due, page by page")
    await store.update(MAIN, follow(states["id-002"], timeout=None), 0)
    await store.update(MAIN, follow(states["id-003"], timeout_expires_at=START + 35 * SECOND), 0)
    await store.update(MAIN, follow(states["id-001"], is_completed=True), 0)
    await store.update(MAIN, follow(states["id-006"], is_completed=False), 0)
    what = "timeouts due after one was cleared, one reset, one saga completed and one reopened"
    await _finds(kit, due, ["id-006", "id-003"], what)


@case("query")
async def newest_first(kit: Kit) -> None:
    """The usual order is by creation, newest first, whatever was updated since."""
    store = await kit.store()
    states = await _fill(kit, [_at(number, created=number * 7 % 10) for number in range(10)])
    ids = sorted(states, key=lambda saga_id: states[saga_id].metadata.created_at, reverse=True)
    await store.update(MAIN, follow(states["id-000"], now=START + 100 * SECOND), 0)
    await _finds(kit, SagaFilter(), ids, "newest first")
    await _finds(kit, SagaFilter(order="newest"), ids, "newest first, named")


@case("query")
async def stalest_first(kit: Kit) -> None:
    """The order "stalest" is by the last update, oldest first, and follows updates."""
    store = await kit.store()
    states = await _fill(kit, [_at(number, created=-number, updated=number * 7 % 10) for number in range(10)])
    ids = sorted(states, key=lambda saga_id: states[saga_id].metadata.updated_at)
    await _finds(kit, SagaFilter(order="stalest"), ids, "stalest first")
    await store.update(MAIN, follow(states[ids[0]], now=START + 100 * SECOND), 0)
    await _finds(kit, SagaFilter(order="stalest"), [*ids[1:], ids[0]], "stalest first after an update")


@case("query")
async def order_is_total(kit: Kit) -> None:
    """Sagas of one timestamp, of one id under two names too, have one stable order that pages never break."""
    await _fill(kit, [_at(number, due=1) for number in range(12)])
    await _fill(kit, [_at(number, due=1) for number in range(6, 18)], OTHER)
    for saga_filter in (
        SagaFilter(),
        SagaFilter(order="stalest"),
        SagaFilter(timeout_due_before=START + 9 * SECOND),
        SagaFilter(saga_name=OTHER),
    ):
        size = 12 if saga_filter.saga_name else 24
        page = await _page(kit, saga_filter, size, f"the number of different sagas with {saga_filter}")
        for limit in (1, 5, 7):
            await _walks(kit, saga_filter, limit, _ids(page), f"the ids in pages of {limit}")


@case("query")
async def limits(kit: Kit) -> None:
    """limit=0 is an empty page, a limit beyond the end gives all, and what is no limit is refused."""
    store = await kit.store()
    await _fill(kit, [_at(number, created=number) for number in range(5)])
    for limit in (5, 6, 10_000):
        page = await _page(kit, SagaFilter(), 5, f"the records of a page with limit={limit}", limit=limit)
        expect.none(page.cursor, f"the cursor of the last page with limit={limit}")
    await _page(kit, SagaFilter(), 0, "the records of a page with limit=0", limit=0)
    bad: tuple[Any, ...] = (-1, 1.5, "5", None, True)
    for limit in bad:
        await expect.raises(store.find(SagaFilter(), limit=limit), InvalidSagaError, f"find with limit={limit!r}")


@case("query")
async def pages_cover_all_exactly_once(kit: Kit) -> None:
    """Pages of every size cover all sagas exactly once, and no page is empty with more behind it."""
    store = await kit.store()
    states = await _fill(kit, [_at(number, created=number // 3) for number in range(20)])
    ids = _ids(await _page(kit, SagaFilter(), 20, "the records of one big page"))
    expect.equal(sorted(ids), sorted(states), "the ids of one big page")

    async def stalest(limit: int) -> list[str]:
        return sorted(await _walk(store, SagaFilter(order="stalest"), limit))

    for limit in (1, 2, 3, 4, 7, 10, 19, 20, 21):
        await _walks(kit, SagaFilter(), limit, ids, f"the ids in pages of {limit}")
        await kit.sees(partial(stalest, limit), sorted(ids), "stalest first")


@case("query")
async def selective_filters_give_full_pages(kit: Kit) -> None:
    """A filter that few sagas pass gives full pages: the filter comes before the limit."""
    await _fill(kit, [_at(number, created=number, is_completed=number % 10 == 5) for number in range(60)])
    completed = SagaFilter(completed=True)
    ids = [f"id-{number:03}" for number in range(55, 0, -10)]
    for limit in (1, 2, 4):
        await _page(kit, completed, limit, f"the records of the first page with limit={limit}", limit=limit)
        await _walks(kit, completed, limit, ids, f"the ids in pages of {limit}")


@case("query")
async def pages_while_sagas_come_and_go(kit: Kit) -> None:
    """A walk meets every saga that is there throughout exactly once, whatever is inserted and deleted meanwhile."""
    store = await kit.store()
    await _fill(kit, [_at(number, created=number) for number in range(30)])
    stayed = [f"id-{number:03}" for number in range(30) if number % 7 != 3]
    new_numbers = count(500)

    async def walk(order: SagaOrder) -> None:
        met: Counter[str] = Counter()
        cursor = None
        gone = [number for number in range(30) if number % 7 == 3]
        for turn in count():
            page = await find_page(store, SagaFilter(order=order), f"a walk ({order})", limit=3, cursor=cursor)
            met.update(_ids(page))
            cursor = page.cursor
            if cursor is None:
                break
            if gone:
                await store.delete(MAIN, f"id-{gone.pop():03}")
            await _fill(kit, [_at(next(new_numbers), created=created) for created in (-1 - turn, 100 + turn)])
        counts = {saga_id: met[saga_id] for saga_id in stayed if met[saga_id] != 1}
        expect.equal(counts, {}, f"how often a walk ({order}) met sagas that stayed, where it was not once")
        expect.equal(met.total(), len(met), f"the number of records of a walk ({order}), without repeats")

    orders: tuple[SagaOrder, ...] = ("newest", "stalest")
    for order in orders:
        await kit.settles(partial(walk, order))


@case("query")
async def refuses_changed_cursors(kit: Kit) -> None:
    """A cursor that was changed, or that belongs to another filter, is an InvalidSagaError."""
    store = await kit.store()
    await _fill(kit, [_at(number, created=number) for number in range(4)])

    async def first_cursor() -> Any:
        page = await find_page(store, SagaFilter(), "the first page", limit=2)
        expect.equal(_ids(page), ["id-003", "id-002"], "the first page")
        what = f"the cursor of a page with more behind it is {page.cursor!r}"
        expect.true(isinstance(page.cursor, str) and page.cursor, what)
        return page.cursor

    cursor = await kit.settles(first_cursor)
    changed = [
        cursor[:index] + ("A" if cursor[index] != "A" else "B") + cursor[index + 1 :] for index in range(len(cursor))
    ]
    garbage: list[Any] = ["", "x", "' OR 1=1 --", cursor[:-1], cursor + "A", cursor * 2, "\N{CRAB}", 7, b"bytes"]
    for bad in [*changed, *garbage]:
        await expect.raises(store.find(SagaFilter(), limit=2, cursor=bad), InvalidSagaError, f"the cursor {bad!r}")
    for other in (SagaFilter(order="stalest"), SagaFilter(saga_name=MAIN), SagaFilter(completed=False)):
        call = store.find(other, limit=2, cursor=cursor)
        await expect.raises(call, InvalidSagaError, f"a cursor of another filter with {other}")

    async def second_page() -> list[str]:
        return _ids(await find_page(store, SagaFilter(), "the page of a good cursor", limit=2, cursor=cursor))

    await kit.sees(second_page, ["id-001", "id-000"], "the page of a good cursor")


@case("query")
async def refuses_bad_filters(kit: Kit) -> None:
    """Naive datetimes, other types and unknown orders in a filter are an InvalidSagaError."""
    store = await kit.store()
    naive = datetime(2026, 1, 1)  # noqa: DTZ001 - the point of the case
    fields: tuple[dict[str, Any], ...] = (
        *({field: naive} for field in ("created_after", "created_before", "updated_after", "updated_before")),
        {"timeout_due_before": naive},
        {"created_after": "2026-01-01"},
        {"saga_name": ""},
        {"saga_name": "n" * 129},
        {"completed": "yes"},
        {"order": "created_at; DROP TABLE x"},
        {"order": "due"},
    )
    for bad in fields:
        for call in (store.find, store.count):
            await expect.raises(call(SagaFilter(**bad)), InvalidSagaError, f"{call.__name__} with {bad}")


@case("query")
async def counts_what_pages_hold(kit: Kit) -> None:
    """Count is the length of all pages together, for every filter."""
    store = await kit.store()
    await _fill(
        kit,
        [
            _at(number, created=number, due=number if number % 2 else None, is_completed=number % 3 == 0)
            for number in range(25)
        ],
    )
    await _page(kit, SagaFilter(), 25, "the number of sagas that are found")

    async def counts_its_pages(saga_filter: SagaFilter) -> None:
        ids = await _walk(store, saga_filter, 4)
        expect.equal(await store.count(saga_filter), len(ids), f"count with {saga_filter}")

    for saga_filter in (
        SagaFilter(),
        SagaFilter(completed=True),
        SagaFilter(completed=False, order="stalest"),
        SagaFilter(created_after=START + 10 * SECOND),
        SagaFilter(timeout_due_before=START + 15 * SECOND),
        SagaFilter(saga_name=OTHER),
        SagaFilter(archived=True),
    ):
        await kit.settles(partial(counts_its_pages, saga_filter))


@case("query")
async def deleted_sagas_are_not_found(kit: Kit) -> None:
    """What was deleted is neither found nor counted, with any filter it was in before."""
    store = await kit.store()
    await _fill(kit, [_at(number, created=number, due=1, is_completed=number == 2) for number in range(4)])
    completed, due = SagaFilter(completed=True), SagaFilter(timeout_due_before=START + 9 * SECOND)
    await _finds(kit, SagaFilter(), ["id-003", "id-002", "id-001", "id-000"], "before the deletes")
    await _finds(kit, completed, ["id-002"], "completed ones before the deletes")
    await store.delete(MAIN, "id-001")
    await store.delete(MAIN, "id-002")
    await _finds(kit, SagaFilter(), ["id-003", "id-000"], "after the deletes")
    await _finds(kit, completed, [], "completed ones after the deletes")
    await _finds(kit, due, ["id-000", "id-003"], "timeouts due after the deletes")
    other = await kit.elsewhere()
    expect.equal(await other.count(SagaFilter()), 0, "the number of sagas in another place")

"""What a state may hold, and how it comes back."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from saga_bus.store.conformance import expect
from saga_bus.store.conformance.kit import Kit, case
from saga_bus.store.conformance.states import MAIN, TYPED, Colour, KitState, Line, TypedState, follow, new_state
from saga_bus.store.errors import InvalidSagaError, SagaStoreError, StateEncodeError, StateTooLargeError
from saga_bus.store.state import SagaMetadata

MEGABYTE = 1_000_000


async def _kept(kit: Kit, value: Any, what: str) -> None:
    """Fail unless a JSON value survives an insert and an update, of the same type too."""
    store = await kit.store()
    state = new_state(data={"value": value})
    await store.insert(MAIN, f"order {state.metadata.saga_id}", state)
    for version in range(2):
        if version:
            state = follow(state)
            await store.update(MAIN, state, 0)
        found = await store.get_by_id(MAIN, state.metadata.saga_id)
        expect.same_state(found, state, what)
        expect.equal(found.data["value"], value, what)


async def _refused(kit: Kit, bad: KitState, error_type: type[SagaStoreError], what: str) -> None:
    """Fail unless a state is refused by insert and by update, with nothing written."""
    store = await kit.store()
    correlation_id = f"refused {bad.metadata.saga_id}"
    await expect.raises(store.insert(MAIN, correlation_id, bad), error_type, f"inserting {what}")
    await kit.lacks(correlation_id, bad.metadata.saga_id, f"after a refused insert of {what}")
    good = await kit.inserted(correlation_id, "good", metadata=bad.metadata)
    worse = msgspec.structs.replace(bad, metadata=good.metadata.next())
    await expect.raises(store.update(MAIN, worse, 0), error_type, f"updating to {what}")
    await kit.holds(correlation_id, good, f"after a refused update to {what}")


@case()
async def metadata_keeps_microseconds(kit: Kit) -> None:
    """Timestamps come back aware and to the microsecond, whichever time zone they were given in."""
    for number, zone in enumerate((UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=8)))):
        at = datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=zone)
        metadata = SagaMetadata(
            saga_id=f"id-{number}", version=0, created_at=at, updated_at=at + timedelta(microseconds=1), archived_at=at
        )
        state = await kit.inserted(f"order-{number}", metadata=metadata)
        await kit.holds(f"order-{number}", state, f"timestamps given in {zone}")
        found = await (await kit.store()).get_by_id(MAIN, f"id-{number}")
        for field in ("created_at", "updated_at", "archived_at"):
            value = getattr(found.metadata, field)
            expect.equal(value.utcoffset(), timedelta(0), f"metadata.{field}: its offset from UTC")
            expect.equal(value.microsecond, getattr(metadata, field).microsecond, f"metadata.{field}: its microseconds")


@case()
async def metadata_keeps_extreme_years(kit: Kit) -> None:
    """Timestamps of the years 1 and 9999 come back as they were."""
    first = datetime(1, 1, 1, tzinfo=UTC)
    last = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    metadata = SagaMetadata(saga_id="id-1", version=0, created_at=first, updated_at=last, timeout_expires_at=last)
    state = await kit.inserted("order-1", metadata=metadata)
    await kit.holds("order-1", state, "the years 1 and 9999")


@case()
async def metadata_set_and_cleared(kit: Kit) -> None:
    """Every optional metadata field is kept when it is set, and gone when it is cleared again."""
    store = await kit.store()
    state = await kit.inserted("order-1")
    at = datetime(2026, 3, 1, 12, 30, 15, 500, tzinfo=UTC)
    full = follow(
        state,
        is_completed=True,
        archived_at=at,
        trace_parent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        trace_state="vendor=value",
        timeout=timedelta(minutes=15, microseconds=1),
        timeout_expires_at=at + timedelta(minutes=15),
        outbox=({"id": "m-1", "name": "Paid", "body": {"amount": 5}}, {"id": "m-2"}),
        handled=("message-1", "message-2"),
    )
    await store.update(MAIN, full, 0)
    await kit.holds("order-1", full, "with every metadata field set")
    empty = follow(
        full,
        is_completed=False,
        archived_at=None,
        trace_parent=None,
        trace_state=None,
        timeout=None,
        outbox=(),
        handled=(),
    )
    await store.update(MAIN, empty, 1)
    await kit.holds("order-1", empty, "with every metadata field cleared")
    fresh = await kit.inserted("order-2", metadata=msgspec.structs.replace(full.metadata, saga_id="id-2", version=0))
    await kit.holds("order-2", fresh, "inserted with every metadata field set")


@case()
async def every_type_of_the_codec(kit: Kit) -> None:
    """Datetime, timedelta, Decimal, UUID, bytes, Enum, set, tuple, Literal and nested types come back as they were."""
    store = await kit.store()
    state = TypedState(
        metadata=SagaMetadata.fresh(),
        at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=2))),
        span=timedelta(days=400, seconds=3, microseconds=7),
        price=Decimal("12345678901234567890.120"),
        reference=UUID("12345678-1234-5678-1234-567812345678"),
        blob=bytes(range(256)),
        colour=Colour.BLUE,
        labels={"a", "ü", "\N{CRAB}"},
        pair=(1, "one"),
        stage="open",
        lines=[Line("x", Decimal("0.10")), Line("y", Decimal(-1))],
        by_key={"z": Line("z", Decimal("1E+3"))},
    )
    await store.insert(TYPED, "typed-1", state)
    found = await store.get_by_id(TYPED, state.metadata.saga_id)
    expect.same_state(found, state, "by id")
    expect.equal(str(found.price), str(state.price), "the digits of a Decimal")
    newer = msgspec.structs.replace(state, metadata=state.metadata.next(), colour=Colour.RED, maybe=3, blob=b"")
    await store.update(TYPED, newer, 0)
    found = await store.get_by_correlation_id(TYPED, "typed-1")
    expect.same_state(found, newer, "by correlation id after an update")


@case()
async def numbers(kit: Kit) -> None:
    """64-bit integers stay integers, floats stay floats to the last bit, booleans stay booleans."""
    integers = (0, -1, 2**31, -(2**31) - 1, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63))
    floats = (0.1, 1.0, -1.5, 1e15, 1e16, 123456789.123456789, 1e300, 1.7976931348623157e308, 5e-324, math.pi)
    for value in (*integers, *floats, True, False, None):
        await _kept(kit, value, f"the value {value!r}")


@case()
async def negative_zero(kit: Kit) -> None:
    """The float -0.0 keeps its sign."""
    state = await kit.inserted("order-1", share=-0.0)
    found = await (await kit.store()).get_by_id(MAIN, state.metadata.saga_id)
    expect.equal(math.copysign(1.0, found.share), -1.0, "the sign of -0.0")


@case()
async def texts(kit: Kit) -> None:
    """Any Unicode text but NUL comes back as it was: nothing is normalised, escaped twice or cut."""
    texts = {
        "emoji": "\N{CRAB}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}",
        "right to left": "שלום \N{RIGHT-TO-LEFT OVERRIDE}abc",
        "composed (NFC)": "caf\u00e9",
        "decomposed (NFD)": "cafe\u0301",
        "control characters": "\x01\x08\t\n\r\x1f\x7f\u0085\u2028\ufeff",
        "quotes and escapes": "\"'`\\ \\\\ \\n \\u0041 %s {} $1 ? :x",
        "the look of NUL": "\\u0000",
        "blanks": "  both ends  ",
        "empty": "",
        "noncharacter": "\uffff\U0010ffff",
        "markup": "<b>&amp;</b> ]]> -- /* */ ;",
    }
    for name, text in texts.items():
        await _kept(kit, text, name)
    await _kept(kit, texts, "texts as a whole")


@case()
async def keys(kit: Kit) -> None:
    """Any non-empty key of an object comes back as it was, dots and dollars included."""
    odd = ("a.b", ".", "$", "$set", "$a.b", "_id", "__proto__", "constructor", "metadata", "0", " ", '"', "'", "\\")
    await _kept(kit, dict.fromkeys((*odd, "caf\u00e9", "cafe\u0301", "\N{CRAB}", "k" * 300), 1), "odd keys")
    await _kept(kit, {"Key": 1, "key": 2, "KEY": 3}, "keys that differ in case")
    await _kept(kit, {key: {key: [{key: None}]} for key in odd}, "odd keys, nested")


@case()
async def containers(kit: Kit) -> None:
    """Empty and nested containers stay what they are."""
    deep: Any = "bottom"
    for level in range(40):
        deep = {"level": level, "next": [deep]}
    nested: tuple[Any, ...] = ([], {}, [[]], [{}], {"a": []}, {"a": {}}, [None], [[], [1, [2, [3]]]], deep)
    for value in nested:
        await _kept(kit, value, "a container")


@case()
async def refuses_non_finite_floats(kit: Kit) -> None:
    """NaN and infinities are a StateEncodeError wherever they stand, and nothing is written."""
    for bad in (math.nan, math.inf, -math.inf):
        await _refused(kit, new_state(share=bad), StateEncodeError, f"a field of {bad}")
        await _refused(kit, new_state(data={"a": [{"b": bad}]}), StateEncodeError, f"a nested {bad}")


@case()
async def refuses_nul_and_lone_surrogates(kit: Kit) -> None:
    """NUL and lone surrogates are a StateEncodeError in values and in keys, and nothing is written."""
    for bad in ("a\x00b", "\x00", "a\ud800", "\udfff"):
        await _refused(kit, new_state(bad), StateEncodeError, f"the text {bad!r}")
        await _refused(kit, new_state(data={"a": [bad]}), StateEncodeError, f"the nested text {bad!r}")
        await _refused(kit, new_state(data={bad: 1}), StateEncodeError, f"the key {bad!r}")


@case()
async def refuses_what_is_no_json(kit: Kit) -> None:
    """Integers beyond 64 bits, empty keys and unknown types are a StateEncodeError, and nothing is written."""
    for bad in (2**63, -(2**63) - 1, 2**64, 10**30):
        await _refused(kit, new_state(data={"a": bad}), StateEncodeError, f"the integer {bad}")
    await _refused(kit, new_state(data={"": 1}), StateEncodeError, "an empty key")
    await _refused(kit, new_state(data={"a": object()}), StateEncodeError, "an object of an unknown type")


@case()
async def refuses_naive_datetimes(kit: Kit) -> None:
    """A naive datetime in a state is an InvalidSagaError, and nothing is written."""
    naive = datetime(2026, 1, 1, 12, 0, 0)  # noqa: DTZ001 - the point of the case
    await _refused(kit, new_state(data={"at": naive}), InvalidSagaError, "a naive datetime")


@case()
async def a_megabyte(kit: Kit) -> None:
    """A state of a megabyte comes back whole, or is a StateTooLargeError where the store declares a smaller limit."""
    store = await kit.store()
    limit = kit.capabilities.max_state_bytes
    big = new_state(data={"block": "0123456789abcde\n" * (MEGABYTE // 16)})
    if limit is None or limit > MEGABYTE + 200_000:
        await store.insert(MAIN, "order-1", big)
        await kit.holds("order-1", big, "a state of a megabyte")
        newer = follow(big, "newer")
        await store.update(MAIN, newer, 0)
        await kit.holds("order-1", newer, "a megabyte after an update")
        return
    error = await expect.raises(store.insert(MAIN, "order-1", big), StateTooLargeError, "inserting a megabyte")
    expect.equal(error.limit, limit, "the error's limit")
    expect.true(error.size > MEGABYTE, f"the error's size is {error.size}, the state has more than {MEGABYTE} bytes")
    await _refused(kit, big, StateTooLargeError, "a megabyte")
    fits = new_state("x" * (limit - 1000))
    await store.insert(MAIN, "order-2", fits)
    await kit.holds("order-2", fits, "a state just below the declared limit")

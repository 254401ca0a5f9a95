"""The codec: what goes in comes back, and what would not is refused."""

from __future__ import annotations

import asyncio
import enum
import math
import uuid
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, computed_field

from saga_bus.store import (
    InvalidSagaError,
    JsonStateCodec,
    SagaMetadata,
    SagaState,
    StateCodec,
    StateDecodeError,
    StateEncodeError,
    TypedStateCodec,
    UnsupportedOperationError,
    UntypedSagaState,
)
from saga_bus.store_inmemory import InMemorySagaStore

NAIVE = datetime(2024, 1, 2, 3, 4, 5)  # noqa: DTZ001
AWARE = datetime(2024, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
META = SagaMetadata(saga_id="1", version=0, created_at=AWARE, updated_at=AWARE)
HEAD = (
    b'{"metadata":{"saga_id":"1","version":0,"created_at":"2024-01-02T03:04:05Z","updated_at":"2024-01-02T03:04:05Z"}'
)


class Colour(enum.Enum):
    RED = "red"
    NUL = "nul"


class Level(enum.IntEnum):
    LOW = 1


class Card(msgspec.Struct, tag="card", frozen=True):
    number: str


class Cash(msgspec.Struct, tag="cash", frozen=True):
    coins: int


@dataclass
class Address:
    city: str
    lines: list[str] = field(default_factory=list)


class Everything(SagaState, kw_only=True):
    text: str = ""
    number: int = 0
    real: float = 0.0
    flag: bool = False
    nothing: None = None
    when: datetime = AWARE
    day: date = date(2024, 2, 29)
    clock: time = time(1, 2, 3, 4)
    span: timedelta = timedelta(0)
    amount: Decimal = Decimal("0.10")
    key: uuid.UUID = uuid.UUID(int=7)
    blob: bytes = b""
    colour: Colour = Colour.RED
    level: Level = Level.LOW
    tags: set[str] = msgspec.field(default_factory=set)
    fixed: frozenset[int] = frozenset()
    pair: tuple[int, str] = (0, "")
    address: Address | None = None
    payment: Card | Cash | None = None
    payments: list[Card | Cash] = msgspec.field(default_factory=list)
    status: Literal["new", "paid"] = "new"
    by_id: dict[uuid.UUID, int] = msgspec.field(default_factory=dict)
    anything: Any = None


class Moments(SagaState, kw_only=True):
    when: datetime | None = None
    by_moment: dict[datetime, int] = msgspec.field(default_factory=dict)
    nested: list[dict[str, datetime]] = msgspec.field(default_factory=list)


class Number(SagaState, kw_only=True):
    value: float = 0.0


class Model(BaseModel):
    metadata: SagaMetadata = Field(default_factory=SagaMetadata.fresh)


class Line(BaseModel):
    sku: str
    price: Decimal


class Order(Model):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    placed: datetime | None = None
    blob: bytes = b""
    span: timedelta = timedelta(0)
    key: uuid.UUID = uuid.UUID(int=7)
    tags: set[str] = set()
    pair: tuple[int, str] = (0, "")
    lines: list[Line] = []
    real: float = 0.0
    reals: dict[str, list[float]] = {}
    note: str = ""
    colour: Colour = Colour.RED


@dataclass
class PlainOrder:
    total: Decimal
    metadata: SagaMetadata = field(default_factory=SagaMetadata.fresh)


def there_and_back(state: Any, codec: JsonStateCodec | None = None) -> Any:
    codec = codec or JsonStateCodec({"S": type(state)})
    back = codec.decode("S", codec.encode(state))
    assert back is not state
    return back


@pytest.mark.parametrize(
    "fields",
    [
        {"text": 'é\U0001f600\u202e\\u0000 "":\\ \x01\x7f'},
        {"number": 2**63 - 1},
        {"number": -(2**63)},
        {"real": 0.1},
        {"real": -0.0},
        {"real": 5e-324},
        {"real": 1.7976931348623157e308},
        {"flag": True, "nothing": None},
        {"when": AWARE.astimezone(timezone(timedelta(hours=5, minutes=45)))},
        {"when": datetime(1, 1, 1, tzinfo=UTC)},
        {"when": datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)},
        {"day": date(1, 1, 1), "clock": time(23, 59, 59, 999_999)},
        {"span": timedelta(days=-3, microseconds=1)},
        {"amount": Decimal("123456789012345678901234567890.10")},
        {"key": uuid.UUID(int=2**128 - 1)},
        {"blob": bytes(range(256))},
        {"colour": Colour.NUL, "level": Level.LOW},
        {"tags": {"a", "b"}, "fixed": frozenset({1, 2}), "pair": (1, "x")},
        {"address": Address("Rome", ["a", "b"])},
        {"payment": Card("4"), "payments": [Cash(1), Card("2")]},
        {"payment": Cash(3), "status": "paid"},
        {"by_id": {uuid.UUID(int=1): 2}},
        {"anything": {"a.b": [None, {"$x": [1, 2.5, "z"]}]}},
    ],
    ids="+".join,
)
def test_every_supported_type_comes_back_typed_and_equal(fields: dict[str, Any]) -> None:
    state = Everything(metadata=META, **fields)
    back = there_and_back(state)
    assert back == state
    assert {name: type(getattr(back, name)) for name in fields} == {name: type(value) for name, value in fields.items()}
    assert math.copysign(1, back.real) == math.copysign(1, state.real)


def test_every_field_of_metadata_comes_back() -> None:
    full = SagaMetadata(
        saga_id="\U0001f600",
        version=2**63 - 1,
        created_at=datetime(1, 1, 1, tzinfo=UTC),
        updated_at=datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        is_completed=True,
        archived_at=AWARE,
        trace_parent="00-a-b-01",
        trace_state="x=y",
        timeout=timedelta(days=1, microseconds=1),
        timeout_expires_at=AWARE,
        outbox=({"type": "Paid", "body": {"n": [1]}},),
        handled=("m1", "m2"),
    )
    for state in (Everything(metadata=full), Order(metadata=full), PlainOrder(Decimal(1), metadata=full)):
        assert there_and_back(state).metadata == full
    assert there_and_back(UntypedSagaState(metadata=full, data={"a": 1})) == UntypedSagaState(
        metadata=full, data={"a": 1}
    )


def test_dataclasses_are_states() -> None:
    state = PlainOrder(Decimal("1.10"), metadata=META)
    assert there_and_back(state) == state


def test_attrs_classes_are_states() -> None:
    attrs = pytest.importorskip("attrs")
    order = attrs.make_class(
        "AttrsOrder",
        {"total": attrs.field(type=Decimal), "metadata": attrs.field(type=SagaMetadata, default=META)},
    )
    state = order(Decimal("1.10"))
    assert there_and_back(state) == state


def test_pydantic_models_are_states() -> None:
    state = Order(
        metadata=META,
        placed=AWARE,
        blob=bytes(range(256)),
        span=timedelta(days=1, microseconds=1),
        tags={"a", "b"},
        pair=(1, "x"),
        lines=[Line(sku="a", price=Decimal("1.10"))],
        real=0.1,
        note="2024-01-02T03:04:05",
        colour=Colour.NUL,
    )
    back = there_and_back(state)
    assert back == state
    assert back.metadata.created_at.tzinfo is UTC


def test_pydantic_aliases_strict_mode_and_computed_fields_lose_nothing() -> None:
    class Strict(Model):
        model_config = ConfigDict(strict=True, extra="forbid", frozen=True, populate_by_name=False)
        when: datetime = Field(AWARE, alias="When")
        count: int = Field(0, validation_alias="c", serialization_alias="C")
        pair: tuple[int, ...] = ()

        @computed_field  # type: ignore[prop-decorator]
        @property
        def double(self) -> int:
            return self.count * 2

    state = Strict(metadata=META, When=AWARE + timedelta(days=1), c=5, pair=(1, 2))  # type: ignore[call-arg]
    assert there_and_back(state) == state


def test_pydantic_bytes_that_are_no_text_need_base64() -> None:
    class Raw(Model):
        blob: bytes

    assert there_and_back(Raw(blob="é".encode())).blob == "é".encode()
    with pytest.raises(StateEncodeError, match="utf-8"):
        JsonStateCodec().encode(Raw(blob=b"\xff"))


@pytest.mark.parametrize(
    ("changes", "error", "path"),
    [
        ({"real": math.nan}, StateEncodeError, "the float nan at $.real"),
        ({"reals": {"a": [0.5, -math.inf]}}, StateEncodeError, "the float -inf at $.reals.a[1]"),
        ({"note": "a\x00"}, StateEncodeError, "a NUL character at $.note"),
        ({"placed": NAIVE}, InvalidSagaError, "a naive datetime at $.placed"),
    ],
)
def test_pydantic_models_are_held_to_the_same_values(
    changes: dict[str, Any], error: type[Exception], path: str
) -> None:
    with pytest.raises(error) as caught:
        JsonStateCodec().encode(Order(**changes))
    assert path in str(caught.value)


BAD = [
    (math.nan, StateEncodeError, "the float nan"),
    (math.inf, StateEncodeError, "the float inf"),
    (-math.inf, StateEncodeError, "the float -inf"),
    ("\x00", StateEncodeError, "a NUL character"),
    ("a\x00b", StateEncodeError, "a NUL character"),
    ("\\u0000\x00", StateEncodeError, "a NUL character"),
    ("\ud800", StateEncodeError, "a lone surrogate"),
    ("\udc00a", StateEncodeError, "a lone surrogate"),
    (2**63, StateEncodeError, "an integer beyond 64 bits"),
    (2**64 - 1, StateEncodeError, "an integer beyond 64 bits"),
    (2**64, StateEncodeError, "an integer beyond 64 bits"),
    (-(2**63) - 1, StateEncodeError, "an integer beyond 64 bits"),
    (10**400, StateEncodeError, "an integer beyond 64 bits"),
    (NAIVE, InvalidSagaError, "a naive datetime"),
    (NAIVE.replace(microsecond=1), InvalidSagaError, "a naive datetime"),
    (NAIVE.replace(year=1), InvalidSagaError, "a naive datetime"),
]


@pytest.mark.parametrize(("value", "error", "what"), BAD, ids=lambda value: ascii(value)[:30])
@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda value: value, "$.x"),
        (lambda value: [1, {"k": [value]}], "$.x[1].k[0]"),
        (lambda value: ({"k": (value,)},), "$.x[0].k[0]"),
        (lambda value: {value: 1}, "$.x (a key)"),
    ],
    ids=["plain", "in lists", "in tuples", "as a key"],
)
def test_a_value_that_some_backend_would_change_is_refused_by_its_path(
    value: Any, error: type[Exception], what: str, wrap: Any, path: str
) -> None:
    untyped = UntypedSagaState(data={"x": wrap(value)})
    typed = Everything(anything=wrap(value))
    for state, where in ((untyped, path), (typed, path.replace("$.x", "$.anything"))):
        with pytest.raises(error) as caught:
            JsonStateCodec().encode(state)
        assert str(caught.value).startswith(f"{type(state).__name__}: {what} at {where}")


def test_an_empty_key_is_refused_and_text_that_looks_like_one_is_not() -> None:
    with pytest.raises(StateEncodeError, match=r"an empty key at \$\.x\[0\]"):
        JsonStateCodec().encode(UntypedSagaState(data={"x": [{"": 1}]}))
    state = UntypedSagaState(data={"x": '"":', "y": [""], '"': 1})
    assert there_and_back(state) == state


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_typed_float_is_finite(value: float) -> None:
    with pytest.raises(StateEncodeError, match=r"Number: the float -?(nan|inf) at \$\.value"):
        JsonStateCodec().encode(Number(value=value))


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"when": NAIVE}, "$.when"),
        ({"by_moment": {NAIVE: 1}}, "$.by_moment (a key)"),
        ({"nested": [{}, {"k": NAIVE}]}, "$.nested[1].k"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_naive_datetime_is_refused_wherever_it_stands(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidSagaError) as caught:
        JsonStateCodec().encode(Moments(**fields))
    assert str(caught.value) == f"Moments: a naive datetime at {path}; give it a time zone"


@pytest.mark.parametrize(
    "value",
    [
        "2024-01-02T03:04:05",
        "T00:00:00",
        "\\u0000",
        "\\\\u0000",
        '"\\u0000"',
        "\ufffe\uffff\ufeff",
        "Ë\x7fø",
        {"2024-01-02T03:04:05": "2024-01-02T03:04:05.1"},
        {"\\u0000": '"":'},
        {"a.b": {"$set": 1, "__proto__": 2, "metadata": 3}},
        [[], {}, None, "", 0, -0.0, [[[]]]],
    ],
    ids=ascii,
)
def test_what_only_looks_bad_is_fine(value: Any) -> None:
    state = UntypedSagaState(metadata=META, data={"x": value})
    assert there_and_back(state) == state


JSON_LIKE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**63 - 2, 2**63 + 2)
    | st.integers(-(2**63) - 2, -(2**63) + 2)
    | st.floats()
    | st.text()
    | st.text(st.characters())  # with surrogates
    | st.text(st.sampled_from(["\x00", "\\", "u", "0", '"', ":", "\xcb", "\x7f", "\xf8", "T", "1", "Ï", "ÿ"]))
    | st.datetimes()
    | st.datetimes(timezones=st.just(UTC)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def as_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, list):
        return [as_json(item) for item in value]
    return {key: as_json(item) for key, item in value.items()} if isinstance(value, dict) else value


def bad(value: Any) -> bool:
    if isinstance(value, list):
        return any(bad(item) for item in value)
    if isinstance(value, dict):
        return any(key == "" or bad(key) or bad(item) for key, item in value.items())
    if isinstance(value, str):
        return "\x00" in value or any("\ud800" <= char <= "\udfff" for char in value)
    if isinstance(value, datetime):
        return value.tzinfo is None
    if isinstance(value, float):
        return not math.isfinite(value)
    return isinstance(value, int) and not -(2**63) <= value < 2**63


@settings(max_examples=500, deadline=None)
@given(value=JSON_LIKE)
@example(value="\x7f\xf8\xcb\x7f\xf8")
@example(value=[float.fromhex("0x1.fffffffffffffp+1023"), 2**63 - 1])
@example(value=[AWARE, 0x7FF8000000000000])
def test_any_value_comes_back_exactly_or_is_refused_and_only_bad_ones_are(value: Any) -> None:
    state = UntypedSagaState(metadata=META, data={"x": value})
    try:
        back = there_and_back(state)
    except (StateEncodeError, InvalidSagaError):
        assert bad(value)
    else:
        assert not bad(value)
        # repr, so that 0.0 is not -0.0, 1 is not 1.0 and True is not 1
        assert repr(back) == repr(UntypedSagaState(metadata=META, data={"x": as_json(value)}))


@pytest.mark.parametrize("leaf", [1, "\x00", NAIVE], ids=ascii)
@pytest.mark.parametrize("depth", [900, 5_000, 100_000])
def test_deep_nesting_is_an_encode_error_if_any(leaf: Any, depth: int) -> None:
    value = leaf
    for _ in range(depth):
        value = [value]
    codec = JsonStateCodec()
    try:
        document = codec.encode(UntypedSagaState(data={"x": value}))
    except (StateEncodeError, InvalidSagaError):
        return
    assert leaf == 1
    codec.decode("S", document)


@pytest.mark.parametrize("state_type", [None, Everything, Order])
def test_deep_nesting_is_a_decode_error(state_type: type | None) -> None:
    codec = JsonStateCodec({} if state_type is None else {"S": state_type})
    depth = 200_000
    document = HEAD + b',"anything":' + b"[" * depth + b"]" * depth + b',"note":' + b"[" * depth + b"]" * depth + b"}"
    with pytest.raises(StateDecodeError, match="saga 'S'"):
        codec.decode("S", document)


@pytest.mark.parametrize(
    ("state_type", "document", "said"),
    [
        (Everything, HEAD + b',"address":{"city":1}}', ["Everything", "Expected `str`, got `int`", "$.address.city"]),
        (Everything, HEAD + b',"payment":{"type":"gold"}}', ["Everything", "$.payment"]),
        (Everything, HEAD.replace(b'"1"', b"1") + b"}", ["Everything", "$.metadata.saga_id"]),
        (PlainOrder, HEAD + b"}", ["PlainOrder", "missing required field `total`"]),
        (Order, HEAD + b',"lines":[{"sku":"a","price":"x"}]}', ["Order", "lines.0.price"]),
        (Order, HEAD.replace(b'"1"', b"1") + b"}", ["Order", "metadata", "saga_id"]),
        (None, HEAD.replace(b'"1"', b"1") + b"}", ["UntypedSagaState", "$.metadata.saga_id"]),
        (None, HEAD.replace(b"Z", b"") + b"}", ["UntypedSagaState", "created_at", "naive"]),
        (None, b'{"metadata":5}', ["UntypedSagaState", "Expected `object`, got `int`", "$.metadata"]),
        (None, b'{"a":1}', ["UntypedSagaState", "missing required field `metadata`"]),
        *((kind, junk, ["S"]) for kind in (None, Everything, Order) for junk in (b"", b"{", b"5", b'"\xff"', b"[]")),
    ],
)
def test_a_document_that_does_not_fit_is_refused_by_saga_type_and_path(
    state_type: type | None, document: bytes, said: list[str]
) -> None:
    codec = JsonStateCodec({} if state_type is None else {"S": state_type})
    with pytest.raises(StateDecodeError) as caught:
        codec.decode("S", document)
    for part in ("saga 'S'", *said):
        assert part in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_name_without_a_type_decodes_untyped_and_writes_the_same_document_again() -> None:
    codec = JsonStateCodec({"Order": Everything})
    document = codec.encode(Everything(metadata=META, text="x", amount=Decimal("1.10"), tags={"a"}))
    untyped = codec.decode("Unknown", document)
    assert isinstance(untyped, UntypedSagaState)
    assert untyped.metadata == META
    assert (untyped.data["text"], untyped.data["amount"], untyped.data["tags"]) == ("x", "1.10", ["a"])
    assert codec.decode("Order", codec.encode(untyped)) == codec.decode("Order", document)
    assert codec.encode(untyped) == document


def test_untyped_data_may_not_hold_metadata() -> None:
    with pytest.raises(StateEncodeError, match="metadata"):
        JsonStateCodec().encode(UntypedSagaState(data={"metadata": 1}))


class Point:
    def __init__(self, x: Any) -> None:
        self.x = x


class Located(SagaState, kw_only=True):
    at: Point


def test_hooks_carry_types_that_msgspec_does_not_know() -> None:
    codec = JsonStateCodec({"S": Located}, enc_hook=lambda point: [point.x], dec_hook=lambda kind, value: kind(*value))
    assert there_and_back(Located(at=Point(7)), codec).at.x == 7
    for value, error in ((math.nan, StateEncodeError), ("\x00", StateEncodeError), (NAIVE, InvalidSagaError)):
        with pytest.raises(error, match=r"\$\.at\[0\]"):
            codec.encode(Located(at=Point(value)))
    with pytest.raises(StateEncodeError, match="Point is unsupported"):
        JsonStateCodec().encode(Located(at=Point(7)))


def test_registering_again_is_fine_and_another_type_is_not() -> None:
    codec = JsonStateCodec({"S": Everything})
    codec.register("S", Everything)
    with pytest.raises(InvalidSagaError, match=r"saga 'S' has the state type Everything already, not .*Number"):
        codec.register("S", Number)
    assert codec.decode("S", codec.encode(Everything(metadata=META))) == Everything(metadata=META)


@pytest.mark.parametrize("state_type", [Everything | Number, 5])
def test_a_type_that_cannot_be_decoded_is_refused_when_it_is_registered(state_type: Any) -> None:
    with pytest.raises(InvalidSagaError, match="saga 'S'"):
        JsonStateCodec().register("S", state_type)


class Reversed:
    """A custom codec with nothing but the two methods."""

    inner = JsonStateCodec({"S": Everything})

    def encode(self, state: Any) -> bytes:
        return self.inner.encode(state)[::-1]

    def decode(self, saga_name: str, document: bytes) -> Any:
        return self.inner.decode(saga_name, document[::-1])


def test_a_codec_needs_two_methods_only_and_then_takes_no_types() -> None:
    async def scenario() -> None:
        codec = Reversed()
        assert isinstance(codec, StateCodec)
        assert not isinstance(codec, TypedStateCodec)
        assert isinstance(JsonStateCodec(), TypedStateCodec)
        async with InMemorySagaStore[Any](codec=codec) as store:
            state = Everything(metadata=META, text="x")
            await store.insert("S", "c", state)
            assert await store.get_by_id("S", "1") == state
            with pytest.raises(UnsupportedOperationError, match="Reversed takes no state types"):
                store.register("S", Everything)
        with pytest.raises(UnsupportedOperationError):
            InMemorySagaStore(codec=codec, state_types={"S": Everything})

    asyncio.run(scenario())


def test_a_state_that_could_not_be_read_back_is_refused_and_nothing_is_written() -> None:
    async def scenario() -> None:
        async with InMemorySagaStore[Any](state_types={"S": Number}) as store:
            wrong_field = Number(value="text")  # type: ignore[arg-type]
            wrong_type = UntypedSagaState(data={"value": []})
            for state in (wrong_field, wrong_type):
                with pytest.raises(StateEncodeError, match=r"could not be read back.*saga 'S'.*Number.*\$\.value"):
                    await store.insert("S", "c", state)
            assert store.size == 0
            good = Number(value=1.5)
            await store.insert("S", "c", good)
            with pytest.raises(StateEncodeError):
                await store.update(
                    "S",
                    Number(metadata=good.metadata.next(), value="x"),  # type: ignore[arg-type]
                    0,
                )
            assert await store.get_by_correlation_id("S", "c") == good

    asyncio.run(scenario())

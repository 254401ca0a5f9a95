"""Stores that bring a state back other than it was, or accept what they cannot keep."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import msgspec
from msgspec.structs import force_setattr

from controls.registry import fails
from controls.sound import CodecStore, LimitedStore, RewritingStore
from saga_bus.store import JsonStateCodec, SagaRow, SagaStoreError
from saga_bus.store_inmemory import InMemorySagaStore


def everywhere(value: Any, change: Callable[[Any], Any]) -> Any:
    """Change every part of a JSON value, from the inside out."""
    if isinstance(value, dict):
        return change({key: everywhere(item, change) for key, item in value.items()})
    if isinstance(value, list):
        return change([everywhere(item, change) for item in value])
    return change(value)


@fails(
    "values_metadata_keeps_microseconds", says="timestamps given in UTC, by id: the state differs; metadata.created_at"
)
class MillisecondsOnly(RewritingStore):
    """Timestamps keep their milliseconds only."""

    def document(self, fields: dict[str, Any]) -> dict[str, Any]:
        for field in ("created_at", "updated_at", "archived_at"):
            if field in fields["metadata"]:
                fields["metadata"][field] = re.sub(r"(\.\d{3})\d+", r"\1", fields["metadata"][field])
        return fields


@fails("values_metadata_keeps_microseconds", says="metadata.created_at")
class OffsetDropped(RewritingStore):
    """Naive datetimes: the time zone is dropped, and local time (UTC+1) is assumed when they are read."""

    def document(self, fields: dict[str, Any]) -> dict[str, Any]:
        metadata = fields["metadata"]
        metadata["created_at"] = metadata["created_at"].replace("Z", "+01:00")
        return fields


class _TextMomentCodec(JsonStateCodec):
    def decode(self, saga_name: str, document: bytes) -> Any:
        state = super().decode(saga_name, document)
        force_setattr(state.metadata, "updated_at", state.metadata.updated_at.isoformat())
        return state


@fails("values_metadata_keeps_microseconds", says="+00:00'")
class TimestampsAsTexts(CodecStore):
    """Timestamps come back as texts."""

    codec_type = _TextMomentCodec


@fails("values_metadata_keeps_extreme_years", says="metadata.updated_at")
class EndsIn2038(RewritingStore):
    """Timestamps end in the year 2038."""

    def document(self, fields: dict[str, Any]) -> dict[str, Any]:
        fields["metadata"]["updated_at"] = min(fields["metadata"]["updated_at"], "2038-01-19T03:14:07Z")
        return fields


@fails("values_every_type_of_the_codec", says="price: expected Decimal")
class DecimalsAsFloats(RewritingStore):
    """Decimals are kept as floats."""

    def document(self, fields: dict[str, Any]) -> dict[str, Any]:
        if "price" in fields:
            fields["price"] = str(Decimal(float(fields["price"])))
        return fields


@fails("values_every_type_of_the_codec", says="the digits of a Decimal")
class DecimalsNormalised(RewritingStore):
    """Decimals lose their trailing zeros."""

    def document(self, fields: dict[str, Any]) -> dict[str, Any]:
        if "price" in fields:
            fields["price"] = fields["price"].rstrip("0")
        return fields


@fails("values_numbers", says=f"the value {2**53 + 1}")
class IntegersAsFloats(RewritingStore):
    """Great integers pass through floats and lose digits."""

    def document(self, fields: dict[str, Any]) -> dict[str, Any]:
        def change(value: Any) -> Any:
            return int(float(value)) if type(value) is int and -(2**62) < value < 2**62 else value

        fields["data"] = everywhere(fields["data"], change)
        return fields


@fails("values_numbers", says="the value 1.0: expected 1.0, got 1")
class WholeFloatsAsIntegers(RewritingStore):
    """Floats without a fraction come back as integers."""

    def document(self, fields: dict[str, Any]) -> dict[str, Any]:
        def change(value: Any) -> Any:
            return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value

        fields["data"] = everywhere(fields["data"], change)
        return fields


@fails("values_negative_zero", says="the sign of -0.0: expected -1.0, got 1.0")
class NegativeZeroLost(RewritingStore):
    """The float -0.0 becomes 0."""

    def document(self, fields: dict[str, Any]) -> dict[str, Any]:
        if fields["share"] == 0:
            fields["share"] = 0.0
        return fields


@fails("values_texts", says="decomposed (NFD)")
class TextsNormalised(RewritingStore):
    """Texts are normalised to NFC."""

    def document(self, fields: dict[str, Any]) -> dict[str, Any]:
        def change(value: Any) -> Any:
            return unicodedata.normalize("NFC", value) if isinstance(value, str) else value

        fields["data"] = everywhere(fields["data"], change)
        return fields


@fails("values_texts", says="empty")
class EmptyTextIsNull(RewritingStore):
    """Empty texts become null."""

    def document(self, fields: dict[str, Any]) -> dict[str, Any]:
        fields["data"] = everywhere(fields["data"], lambda value: None if value == "" else value)
        return fields


@fails("values_keys", says="odd keys")
class DotsReplaced(RewritingStore):
    """Dots in keys are replaced."""

    def document(self, fields: dict[str, Any]) -> dict[str, Any]:
        def change(value: Any) -> Any:
            return {key.replace(".", "_"): item for key, item in value.items()} if isinstance(value, dict) else value

        fields["data"] = everywhere(fields["data"], change)
        return fields


@fails("values_containers", says="a container: the state differs; data: expected {'value': []}")
class EmptyContainersDropped(RewritingStore):
    """Empty lists become null."""

    def document(self, fields: dict[str, Any]) -> dict[str, Any]:
        fields["data"] = everywhere(fields["data"], lambda value: None if value == [] else value)
        return fields


class _LenientCodec(JsonStateCodec):
    """Lets one kind of problem pass."""

    problem = ""

    def _search(self, state: Any, plain: Any) -> None:
        try:
            super()._search(state, plain)
        except SagaStoreError as error:
            if self.problem not in str(error):
                raise


class _NanCodec(_LenientCodec):
    problem = "the float"


class _BigIntegerCodec(_LenientCodec):
    problem = "an integer beyond"


class _EmptyKeyCodec(_LenientCodec):
    problem = "an empty key"


class _NaiveCodec(_LenientCodec):
    problem = "a naive datetime"


class _NulCodec(_LenientCodec):
    problem = "a NUL character"

    def encode(self, state: Any) -> bytes:
        return super().encode(state).replace(b"\\u0000", b"")


@fails(
    "values_refuses_non_finite_floats",
    says="inserting a field of nan: expected StateEncodeError, but nothing was raised",
)
class NanBecomesNull(CodecStore):
    """NaN and infinities are written as null."""

    codec_type = _NanCodec


@fails(
    "values_refuses_nul_and_lone_surrogates",
    says="inserting the text 'a\\x00b': expected StateEncodeError, but nothing was raised",
)
class NulStripped(CodecStore):
    """NUL is stripped from texts."""

    codec_type = _NulCodec


@fails(
    "values_refuses_what_is_no_json",
    says=f"inserting the integer {2**63}: expected StateEncodeError, but nothing was raised",
)
class BigIntegersAccepted(CodecStore):
    """Integers that no 64-bit column takes are accepted."""

    codec_type = _BigIntegerCodec


@fails(
    "values_refuses_what_is_no_json", says="inserting an empty key: expected StateEncodeError, but nothing was raised"
)
class EmptyKeysAccepted(CodecStore):
    """Empty keys are accepted, which some databases refuse."""

    codec_type = _EmptyKeyCodec


@fails(
    "values_refuses_naive_datetimes",
    says="inserting a naive datetime: expected InvalidSagaError, but nothing was raised",
)
class NaiveDatetimesAccepted(CodecStore):
    """Naive datetimes in a state are accepted."""

    codec_type = _NaiveCodec


@fails("values_a_megabyte", says="inserting a megabyte: expected StateTooLargeError, but nothing was raised")
class LimitNotEnforced(LimitedStore):
    """The declared limit of a state's size is not enforced."""

    def _row(self, saga_name: str, state: Any) -> SagaRow:
        declared, self.capabilities = self.capabilities, replace(self.capabilities, max_state_bytes=None)
        try:
            return super()._row(saga_name, state)
        finally:
            self.capabilities = declared


@fails("values_a_megabyte", says="StateDecodeError")
class LongDocumentsCut(InMemorySagaStore[Any]):
    """Documents are cut after 65,535 bytes."""

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        await super()._insert(msgspec.structs.replace(row, document=row.document[:65_535]), correlation_id)

"""The codec: a state becomes one JSON document, and the same state comes back."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import msgspec

from saga_bus.store.errors import InvalidSagaError, StateDecodeError, StateEncodeError
from saga_bus.store.state import SagaMetadata, UntypedSagaState

__all__ = ["JsonStateCodec", "StateCodec", "TypedStateCodec"]

_NAIVE = "a naive datetime"
_INT64 = range(-(2**63), 2**63)
# What must not be written is looked for in the msgpack form of a state, where each starts with a byte that most
# states do not hold at all; a match may also be part of something else, so it only leads to the thorough search.
_SUSPECT_NUMBER = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]|\xcf[\x80-\xff]")  # not finite; 2**63 or more
_SUSPECT_DATETIME = re.compile(rb"[\xb3\xba]\d{4}-\d\d-\d\dT\d\d:")  # a text of 19 or 26 bytes, as naive ones are
_EMPTY_TEXT = b"\xa0"


@runtime_checkable
class StateCodec(Protocol):
    """What a store needs of a codec."""

    def encode(self, state: Any) -> bytes:
        """Turn a state into a JSON document, in UTF-8.

        Args:
            state: The state.

        Raises:
            StateEncodeError: The state holds what the document cannot.
        """
        ...

    def decode(self, saga_name: str, document: bytes) -> Any:
        """Turn a document back into a state.

        Args:
            saga_name: The saga's name.
            document: The JSON document.

        Raises:
            StateDecodeError: The document does not fit the saga's state type.
        """
        ...


@runtime_checkable
class TypedStateCodec(StateCodec, Protocol):
    """A codec that is told each saga's state type."""

    def register(self, saga_name: str, state_type: type) -> None:
        """Tell the type of a saga's states.

        Args:
            saga_name: The saga's name.
            state_type: The type.
        """
        ...


class JsonStateCodec:
    """JSON through msgspec, for Structs, dataclasses, attrs classes and pydantic models (from 2.11 on).

    What would be lost or changed on the way to a database and back is refused before it is written: NaN and
    infinities, NUL, lone surrogates, integers beyond 64 bits, empty keys, naive datetimes.

    Args:
        state_types: The state type of each saga name; a name that is missing decodes to `UntypedSagaState`.
        enc_hook: Turns an object of a type that msgspec does not know into one that it knows.
        dec_hook: Turns it back: called with the type and the value.
    """

    def __init__(
        self,
        state_types: Mapping[str, type] | None = None,
        *,
        enc_hook: Callable[[Any], Any] | None = None,
        dec_hook: Callable[[type, Any], Any] | None = None,
    ) -> None:
        self._enc_hook = enc_hook
        self._dec_hook = dec_hook
        self._json = msgspec.json.Encoder(enc_hook=enc_hook)
        self._msgpack = msgspec.msgpack.Encoder(enc_hook=enc_hook)
        self._types: dict[str, type] = {}
        self._decode: dict[str, Callable[[bytes], Any]] = {}
        self._native: set[type] = set()  # registered types that msgspec encodes as they are
        for saga_name, state_type in (state_types or {}).items():
            self.register(saga_name, state_type)

    def register(self, saga_name: str, state_type: type) -> None:
        """Tell the type of a saga's states.

        Args:
            saga_name: The saga's name.
            state_type: The type; registering the same one again does nothing.

        Raises:
            InvalidSagaError: The name has another type already, or msgspec cannot decode the type.
        """
        known = self._types.get(saga_name)
        if known is state_type:
            return
        if known is not None:
            raise InvalidSagaError(
                f"saga {saga_name!r} has the state type {known.__qualname__} already, not {state_type!r}"
            )
        self._decode[saga_name] = self._decoder(saga_name, state_type)
        self._types[saga_name] = state_type

    def encode(self, state: Any) -> bytes:
        """Turn a state into a JSON document, in UTF-8.

        Args:
            state: The state.

        Raises:
            StateEncodeError: The state holds what the document cannot; the message names the path.
            InvalidSagaError: The state holds a naive datetime.
        """
        plain = state if type(state) in self._native else _plain(state)
        try:
            document = self._json.encode(plain)
            packed = self._msgpack.encode(plain)
        except (OverflowError, UnicodeEncodeError) as error:
            self._search(state, plain)  # its error names the path
            raise StateEncodeError(f"{_name(state)}: {error}") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise StateEncodeError(f"{_name(state)}: {error}") from error
        if (
            (b"\\" in document and b"\\u0000" in document)
            or (_EMPTY_TEXT in packed and b'"":' in document)
            or ((b"\xcb" in packed or b"\xcf" in packed) and _SUSPECT_NUMBER.search(packed))
            or ((b"\xb3" in packed or b"\xba" in packed) and _SUSPECT_DATETIME.search(packed))
        ):
            self._search(state, plain)
        return document

    def decode(self, saga_name: str, document: bytes) -> Any:
        """Turn a document back into a state of the saga's type.

        Args:
            saga_name: The saga's name.
            document: The JSON document.

        Raises:
            StateDecodeError: The document does not fit; the message names the saga, the type and the path.
        """
        decode = self._decode.get(saga_name, _decode_untyped)
        try:
            return decode(document)
        except (TypeError, ValueError, KeyError, RecursionError) as error:
            state_type = self._types.get(saga_name, UntypedSagaState)
            raise StateDecodeError(
                f"saga {saga_name!r}: the document is no {state_type.__qualname__}: {error}"
            ) from error

    def _decoder(self, saga_name: str, state_type: type) -> Callable[[bytes], Any]:
        if state_type is UntypedSagaState:
            return _decode_untyped
        if _is_pydantic(state_type):
            return lambda document: _decode_pydantic(state_type, document)
        try:
            decode: Callable[[bytes], Any] = msgspec.json.Decoder(state_type, dec_hook=self._dec_hook).decode
        except TypeError as error:
            raise InvalidSagaError(f"saga {saga_name!r}: msgspec cannot decode {state_type!r}: {error}") from error
        self._native.add(state_type)
        return decode

    def _search(self, state: Any, plain: Any) -> None:
        try:
            builtins = msgspec.to_builtins(plain, enc_hook=self._enc_hook, builtin_types=(datetime,))
            found = next(chain(_problems("$", builtins), _naive_moments(state)), None)
        except (TypeError, ValueError, RecursionError) as error:
            raise StateEncodeError(f"{_name(state)}: {error}") from error
        if found is None:
            return
        path, problem = found
        if problem == _NAIVE:
            raise InvalidSagaError(f"{_name(state)}: {problem} at {path}; give it a time zone")
        raise StateEncodeError(f"{_name(state)}: {problem} at {path}")


def _name(state: Any) -> str:
    return type(state).__qualname__


def _plain(state: Any) -> Any:
    if isinstance(state, UntypedSagaState):
        if "metadata" in state.data:
            raise StateEncodeError("UntypedSagaState: data may not hold a key 'metadata'")
        return {"metadata": state.metadata, **state.data}
    if _is_pydantic(type(state)):
        return {"metadata": state.metadata, **_pydantic_fields(state, "json")}
    return state


def _is_pydantic(state_type: type) -> bool:
    return hasattr(state_type, "model_dump") and hasattr(state_type, "model_validate_json")


def _pydantic_fields(state: Any, mode: str) -> dict[str, Any]:
    # Under the names of the fields, without what is computed from them: so aliases may differ or change.
    try:
        fields: dict[str, Any] = state.model_dump(mode=mode, exclude={"metadata"}, by_alias=False, round_trip=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise StateEncodeError(f"{_name(state)}: {error}") from error
    return fields


def _decode_pydantic(state_type: Any, document: bytes) -> Any:
    # In JSON mode, or strict models and the model's own way to write bytes would not be understood.
    return state_type.model_validate_json(document, by_alias=False, by_name=True)


def _naive_moments(state: Any) -> Iterator[tuple[str, str]]:
    # pydantic writes datetimes itself, so that they are texts already where msgspec sees them
    if _is_pydantic(type(state)):
        yield from (found for found in _problems("$", _pydantic_fields(state, "python")) if found[1] == _NAIVE)


def _decode_untyped(document: bytes) -> UntypedSagaState:
    fields = _decode_object(document)
    metadata = _metadata(fields)
    del fields["metadata"]
    return UntypedSagaState(metadata=metadata, data=fields)


def _decode_object(document: bytes) -> dict[str, Any]:
    return msgspec.json.decode(document, type=dict[str, Any])


def _metadata(fields: dict[str, Any]) -> SagaMetadata:
    if "metadata" not in fields:
        raise ValueError("Object missing required field `metadata`")
    try:
        return msgspec.convert(fields["metadata"], SagaMetadata)
    except msgspec.ValidationError as error:
        message = str(error)
        raise ValueError(
            message.replace("`$.", "`$.metadata.") if "`$" in message else f"{message} - at `$.metadata`"
        ) from error


def _problems(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the path and the name of everything in a value that must not be written."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "":
                yield path, "an empty key"
            yield from _problems(f"{path} (a key)", key)
            yield from _problems(f"{path}.{key}", item)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, item in enumerate(value):
            yield from _problems(f"{path}[{index}]", item)
    elif problem := _problem(value):
        yield path, problem


def _problem(value: Any) -> str | None:
    if isinstance(value, str):
        return _bad_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f"the float {value}"
    if isinstance(value, int) and value not in _INT64:
        return "an integer beyond 64 bits"
    if isinstance(value, datetime) and value.utcoffset() is None:
        return _NAIVE
    return None


def _bad_text(text: str) -> str | None:
    if "\x00" in text:
        return "a NUL character"
    if any("\ud800" <= char <= "\udfff" for char in text):
        return "a lone surrogate"
    return None

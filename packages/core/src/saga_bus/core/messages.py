"""Messages are plain typed objects with a name; here they become JSON and come back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec

from saga_bus.core.errors import ConfigurationError, MessageDecodeError, MessageEncodeError

__all__ = ["check_message_type", "decode_message", "encode_message", "message_name"]

_LONGEST_NAME = 200
_encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode
_names: dict[type, str] = {}  # both grow to as many entries as a program has message types
_decoders: dict[type, Callable[[bytes], Any]] = {}


def message_name(message_type: type) -> str:
    """The name of a message type: its own ``message_name`` attribute, else the name of the class.

    A subclass does not inherit the attribute: two types never share a name by accident.

    Args:
        message_type: The type.

    Raises:
        ConfigurationError: The attribute is no text of 1 to 200 characters.
    """
    known = _names.get(message_type)
    if known is not None:
        return known
    name = vars(message_type).get("message_name", message_type.__name__)
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise ConfigurationError(
            f"{message_type.__qualname__}.message_name must be 1 to {_LONGEST_NAME} printable characters, not {name!r}"
        )
    return _names.setdefault(message_type, name)


def _decoder(message_type: type) -> Callable[[bytes], Any]:
    if message_type not in _decoders:
        check_message_type(message_type)
    return _decoders[message_type]


def check_message_type(message_type: object) -> None:
    """Refuse what cannot be a message type.

    Args:
        message_type: A Struct, a dataclass or an attrs class.

    Raises:
        ConfigurationError: It is something else, or has a field that JSON cannot bring back.
    """
    if not isinstance(message_type, type) or not (
        issubclass(message_type, msgspec.Struct)
        or dataclasses.is_dataclass(message_type)
        or hasattr(message_type, "__attrs_attrs__")
    ):
        raise ConfigurationError(f"a message type is a Struct, a dataclass or an attrs class, not {message_type!r}")
    message_name(message_type)
    try:
        _decoders[message_type] = msgspec.json.Decoder(message_type).decode
    except (TypeError, NameError) as error:
        raise ConfigurationError(f"{message_type.__qualname__} cannot be a message: {error}") from error


def encode_message(message: Any) -> bytes:
    """Turn a message into JSON, and make sure that it reads back.

    Args:
        message: An object of a message type.

    Raises:
        MessageEncodeError: It cannot be encoded, or a field holds what its type does not allow (NaN among it).
    """
    message_type = type(message)
    try:
        body = _encode(message)
        _decoder(message_type)(body)
    except (TypeError, ValueError, NameError, OverflowError, RecursionError) as error:
        raise MessageEncodeError(f"a {message_type.__qualname__} cannot be sent: {error}") from error
    return body


def decode_message(message_type: type, body: bytes) -> Any:
    """Turn JSON back into a message.

    Args:
        message_type: The type.
        body: The JSON, in UTF-8.

    Raises:
        MessageDecodeError: It does not fit the type.
    """
    try:
        return _decoder(message_type)(body)
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise MessageDecodeError(f"the body is no {message_type.__qualname__}: {error}") from error

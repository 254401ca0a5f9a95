"""Checks of a handler's signature, made when it is declared and not when the first message comes."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

from saga_bus.core.errors import ConfigurationError

__all__ = ["check_handler", "raw_annotations"]


def check_handler(handler: Callable[..., Any], takes: Sequence[tuple[str, type]], returns: type | None) -> None:
    """Refuse a handler that cannot be called as it will be.

    Args:
        handler: An ``async def`` function, or an object whose ``__call__`` is one.
        takes: What it is called with: what each argument is called in error messages, and its type.
        returns: The type that it may return instead of None; None when nothing is expected of it.

    Raises:
        ConfigurationError: It is not async, takes another number of arguments, or an annotation does not fit or
            cannot be understood.
    """
    name = getattr(handler, "__qualname__", type(handler).__qualname__)
    function = handler if inspect.isroutine(handler) else getattr(handler, "__call__", None)  # noqa: B004
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"{name} must be an async def function")
    try:
        signature = _signature(handler)
        signature.bind(*(None for _ in takes))
    except TypeError as error:
        wanted = ", ".join(what for what, _ in takes)
        raise ConfigurationError(f"{name} must take ({wanted}): {error}") from error
    hints = _hints(function)
    positional = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    for parameter, (what, wanted_type) in zip(positional, takes, strict=False):
        annotation = hints.get(parameter.name, Any)
        if not _accepts(annotation, wanted_type, f"{name}: the annotation of {parameter.name}"):
            raise ConfigurationError(
                f"{name} gets the {what} as {wanted_type.__qualname__}, and {parameter.name} is annotated "
                f"{_show(annotation)}"
            )
    answer = hints.get("return", Any)
    if returns is not None and not _fits(answer, returns, f"{name}: the annotation of what it returns"):
        raise ConfigurationError(
            f"{name} must return None or a {returns.__qualname__}, and is annotated {_show(answer)}"
        )


def _signature(handler: Callable[..., Any]) -> inspect.Signature:
    if sys.version_info >= (3, 14):  # a name that only type checkers see must not matter here
        from annotationlib import Format  # noqa: PLC0415

        return inspect.signature(handler, annotation_format=Format.STRING)
    return inspect.signature(handler)


def raw_annotations(thing: Any) -> dict[str, Any]:
    """The annotations of a function or of a class itself, as texts where they cannot be looked up.

    Args:
        thing: The function or the class.
    """
    if sys.version_info >= (3, 14):  # they are evaluated when they are asked for (PEP 649)
        from annotationlib import Format, get_annotations  # noqa: PLC0415

        return get_annotations(thing, format=Format.STRING)
    return inspect.get_annotations(thing)


def _hints(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except Exception:  # noqa: BLE001 - a name that only type checkers see; each annotation is then read by itself
        space = getattr(inspect.unwrap(function), "__globals__", {})
        return {key: _evaluated(value, space) for key, value in raw_annotations(function).items()}


def _evaluated(annotation: Any, space: dict[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    holder = types.new_class("_Holder")
    holder.__annotations__ = {"it": annotation}
    try:
        return get_type_hints(holder, globalns=space)["it"]
    except Exception:  # noqa: BLE001 - then only its text is known
        return annotation


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _class_of(annotation: Any, where: str) -> Any:
    if isinstance(annotation, TypeVar | str) or annotation in (Any, None, type(None)):
        return annotation
    if isinstance(annotation, NewType):
        return annotation.__supertype__
    found = get_origin(annotation) or annotation
    if not isinstance(found, type):
        raise ConfigurationError(f"{where}, {_show(annotation)}, is ambiguous: write a class")
    return found


def _accepts(annotation: Any, wanted: type, where: str) -> bool:
    if wanted is object:  # whatever comes: what is annotated narrows it for type checkers
        return True
    for member in _members(annotation):
        found = _class_of(member, where)
        if found is Any or isinstance(found, TypeVar):
            return True
        if isinstance(found, str):
            if _names(found, wanted, where):
                return True
        elif found is not None and (getattr(found, "_is_protocol", False) or issubclass(wanted, found)):
            return True
    return False


def _fits(annotation: Any, wanted: type, where: str) -> bool:
    for member in _members(annotation):
        found = _class_of(member, where)
        if found in (Any, None, type(None)) or isinstance(found, TypeVar):
            continue
        if isinstance(found, str):
            if not all(part == "None" or _names(part, wanted, where) for part in map(str.strip, found.split("|"))):
                return False
        elif found is not wanted:
            return False
    return True


def _names(text: str, wanted: type, where: str) -> bool:
    # The annotation stands in a place that cannot be looked up; what can be said of it is its text.
    parts = [part.strip().rpartition(".")[2] for part in text.split("|")]
    if any(not part.isidentifier() for part in parts):
        raise ConfigurationError(f"{where}, {text!r}, is ambiguous: it cannot be looked up")
    known = {base.__name__ for base in wanted.__mro__}
    return any(part in known for part in parts)


def _show(annotation: Any) -> str:
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation)

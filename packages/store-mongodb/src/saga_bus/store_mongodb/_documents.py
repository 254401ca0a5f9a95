"""A saga as a document of MongoDB, and back.

The state is a sub-document with the fields of the encoded JSON in their order, so that it can be queried and indexed.
Three things that JSON has and MongoDB has not, or only with exceptions, are written in another way, and read back
exactly:

- in a key, ``~`` becomes ``~0``, ``.`` becomes ``~1``, and ``$`` at its start becomes ``~2``: so every key can be
  named in a query, and none looks like an operator or a DBRef;
- what is nested deeper than 90 levels becomes ``{"~json": its JSON text}``: MongoDB takes 100 levels, of which the
  document itself needs some (https://www.mongodb.com/docs/manual/reference/limits/#bson-documents);
- so does a state that is no object, as a codec of the user's may write it.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import bson
import msgspec
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument

from saga_bus.store import SagaRow, StateDecodeError, StateEncodeError, StateTooLargeError
from saga_bus.store.checks import microseconds

__all__ = ["MAX_STATE_BYTES", "Insert", "Update", "correlation_filter", "json_of", "key_of"]

Document = dict[str, Any]

# A document has 16 MiB at the most (https://www.mongodb.com/docs/manual/reference/limits/#bson-documents), of which
# the names, the ids and the other fields beside the state need less than 8 KiB, however long they are.
MAX_STATE_BYTES = 16 * 1024 * 1024 - 8 * 1024

_BEFORE_FIELD = 4 + 1 + 1  # of a document with one field of an empty name: its length, its type, its name
_MAX_DEPTH = 90
_TEXT = "~json"
_ESCAPED = re.compile("~[012]")
_DOTTED = re.compile(rb'\.[^"]*"\s*:')  # a key with a dot, or what looks like one
_MEANING = {"~0": "~", "~1": ".", "~2": "$"}


def _plain(value: Any) -> Any:
    if isinstance(value, int):  # bson's Int64, which the driver makes of every number stored in 64 bits
        return int(value)
    raise TypeError(f"a value of the type {type(value).__name__}")


_CONTAINERS = frozenset({dict, list})
_decode_json = msgspec.json.Decoder().decode
_encode_json = msgspec.json.Encoder(enc_hook=_plain).encode


def key_of(saga_name: str, saga_id: str) -> str:
    """The ``_id`` of a saga: no other name and id have the same one.

    Args:
        saga_name: The saga's name; a "/" in it is escaped, so that the first one ends it.
        saga_id: The saga's id.
    """
    if "~" in saga_name or "/" in saga_name:
        saga_name = saga_name.replace("~", "~0").replace("/", "~1")
    return f"{saga_name}/{saga_id}"


def correlation_filter(saga_name: str, correlation_id: str) -> Document:
    """What finds a saga by its correlation id, on the unique index.

    Args:
        saga_name: The saga's name.
        correlation_id: Its correlation id.
    """
    return {"saga_name": saga_name, "correlation_id": correlation_id}


class Insert(NamedTuple):
    """A saga to be inserted.

    Args:
        row: The row.
        correlation_id: The saga's correlation id.
        document: The document.
    """

    row: SagaRow
    correlation_id: str
    document: Document

    @classmethod
    def of(cls, row: SagaRow, correlation_id: str) -> Insert:
        """Make the document.

        Args:
            row: The row.
            correlation_id: The saga's correlation id.

        Raises:
            StateEncodeError: MongoDB cannot hold the state.
            StateTooLargeError: It is too large.
        """
        set_, _ = _fields(row)
        keys = {"saga_name": row.saga_name, "saga_id": row.saga_id, "correlation_id": correlation_id}
        return cls(row, correlation_id, {"_id": key_of(row.saga_name, row.saga_id), **keys, **set_})


class Update(NamedTuple):
    """A saga to be updated.

    Args:
        row: The row.
        expected_version: The version that must be there.
        where: The filter that finds the document at that version.
        changes: What makes the next version of it.
    """

    row: SagaRow
    expected_version: int
    where: Document
    changes: Document

    @classmethod
    def of(cls, row: SagaRow, expected_version: int) -> Update:
        """Make the update.

        Args:
            row: The row.
            expected_version: The version that must be there.

        Raises:
            StateEncodeError: MongoDB cannot hold the state.
            StateTooLargeError: It is too large.
        """
        set_, unset = _fields(row)
        changes = {"$set": set_, "$unset": dict.fromkeys(unset, "")} if unset else {"$set": set_}
        # With the name, because an upsert in a sharded collection needs the shard key, which the name has to be.
        where = {"_id": key_of(row.saga_name, row.saga_id), "saga_name": row.saga_name, "version": expected_version}
        return cls(row, expected_version, where, changes)


def _fields(row: SagaRow) -> tuple[Document, list[str]]:
    fields: Document = {
        "version": row.version,
        "is_completed": row.is_completed,
        "outbox_pending": row.outbox_pending,
        "created_at": microseconds(row.created_at),
        "updated_at": microseconds(row.updated_at),
    }
    absent = []  # rather than null, so that partial indexes leave them out
    for name, moment in (("archived_at", row.archived_at), ("timeout_expires_at", row.timeout_expires_at)):
        if moment is None:
            absent.append(name)
        else:
            fields[name] = microseconds(moment)
    fields["state"] = _encoded_state(row)
    return fields, absent


def _encoded_state(row: SagaRow) -> RawBSONDocument:  # encoded once, to be counted and to be sent
    try:
        state = _decode_json(row.document)
        fields = _storable(state, row.document) if isinstance(state, dict) else {_TEXT: row.document.decode()}
        # As a field of another document, because in an outermost one the driver moves a field "_id" to the front.
        raw = bson.encode({"": fields})[_BEFORE_FIELD:-1]
    except (BSONError, msgspec.MsgspecError, OverflowError, RecursionError, UnicodeError) as error:
        where = f"saga {row.saga_name!r} {row.saga_id!r}"
        raise StateEncodeError(f"{where}: MongoDB cannot hold the state: {error}") from error
    if len(raw) > MAX_STATE_BYTES:
        raise StateTooLargeError(saga_name=row.saga_name, saga_id=row.saga_id, size=len(raw), limit=MAX_STATE_BYTES)
    return RawBSONDocument(raw)


def json_of(state: Any) -> bytes:
    """A stored state as the JSON document that it was.

    Args:
        state: What is in the field ``state``.

    Raises:
        StateDecodeError: It is none that this store wrote.
    """
    try:
        document = _encode_json(state)
        if b"~" not in document or not _has_escapes(state):
            return document
        if state.keys() == {_TEXT}:
            return bytes(state[_TEXT].encode())
        return _encode_json(_restored(state))
    except (TypeError, ValueError, AttributeError, KeyError, msgspec.MsgspecError, RecursionError) as error:
        raise StateDecodeError(f"the stored state was not written by a saga store: {error}") from error


def _storable(state: Document, document: bytes) -> Document:
    return _escaped(state, 1) if _may_need_care(document) and _needs_care(state, 1) else state


def _may_need_care(document: bytes) -> bool:
    """Whether the JSON of a state has what a key to be escaped has, or levels enough; that is sooner seen."""
    return (
        b"~" in document
        or b"$" in document
        or b"\\" in document
        or document.count(b"{") + document.count(b"[") > _MAX_DEPTH
        or _DOTTED.search(document) is not None
    )


def _needs_care(value: Any, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        return True
    if type(value) is dict:
        for key, item in value.items():
            if "~" in key or "." in key or key[:1] == "$":
                return True
            if type(item) in _CONTAINERS and _needs_care(item, depth + 1):
                return True
        return False
    return any(type(item) in _CONTAINERS and _needs_care(item, depth + 1) for item in value)


def _escaped(value: Any, depth: int) -> Any:
    if type(value) not in _CONTAINERS:
        return value
    if depth > _MAX_DEPTH:
        return {_TEXT: _encode_json(value).decode()}
    if type(value) is list:
        return [_escaped(item, depth + 1) for item in value]
    return {_escaped_key(key): _escaped(item, depth + 1) for key, item in value.items()}


def _escaped_key(key: str) -> str:
    key = key.replace("~", "~0").replace(".", "~1")
    return "~2" + key[1:] if key[:1] == "$" else key


def _has_escapes(value: Any) -> bool:
    if type(value) is dict:
        return any("~" in key or (type(item) in _CONTAINERS and _has_escapes(item)) for key, item in value.items())
    return any(type(item) in _CONTAINERS and _has_escapes(item) for item in value)


def _restored(value: Any) -> Any:
    if type(value) is list:
        return [_restored(item) for item in value]
    if type(value) is not dict:
        return value
    if value.keys() == {_TEXT}:
        return _decode_json(value[_TEXT])
    return {
        _ESCAPED.sub(lambda found: _MEANING[found[0]], key) if "~" in key else key: _restored(item)
        for key, item in value.items()
    }

"""The model: what schema.prisma must say of it, and what a generated client says of its own."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from saga_bus.store import InvalidSagaError, SchemaError
from saga_bus.store.identifiers import check_identifier, derived_identifier

__all__ = ["FIELDS", "INDEXES", "KEYS", "Field", "Model", "Provider", "get_schema_prisma", "model_of", "problems_of"]

Provider = Literal["postgresql", "mysql", "sqlite", "sqlserver"]

# Times are microseconds since 1970 in UTC: exact, where the client would cut a DateTime to milliseconds.
# updated_hour is the hour of updated_at; state is the whole JSON document, of which the fields from version to
# outbox_pending are an index.
FIELDS: Mapping[str, str] = {
    "saga_name": "String",
    "saga_id": "String",
    "correlation_id": "String",
    "version": "BigInt",
    "is_completed": "Boolean",
    "created_at": "BigInt",
    "updated_at": "BigInt",
    "updated_hour": "BigInt",
    "archived_at": "BigInt?",
    "timeout_expires_at": "BigInt?",
    "outbox_pending": "Boolean",
    "state": "String",
}
KEYS = (("saga_name", "saga_id"), ("saga_name", "correlation_id"))

# An ordinary update changes no indexed column: updated_hour does once an hour, and within an hour is sorted.
INDEXES: Mapping[str, tuple[str, ...]] = {
    "ix_newest": ("created_at", "saga_name", "saga_id"),
    "ix_newest_of_name": ("saga_name", "created_at", "saga_id"),
    "ix_stalest": ("is_completed", "updated_hour"),
    "ix_stalest_of_name": ("saga_name", "is_completed", "updated_hour"),
    "ix_due": ("is_completed", "timeout_expires_at", "saga_name", "saga_id"),
    "ix_pending": ("outbox_pending", "created_at", "saga_name", "saga_id"),
}

# Without these, Prisma takes VARCHAR(191) and NVARCHAR(1000). In SQL Server 128 characters can be 256 units, and one
# more is for the mark behind a trailing blank.
_NATIVE: Mapping[Provider, Mapping[str, str]] = {
    "postgresql": {},
    "sqlite": {},
    "mysql": {
        "saga_name": "@db.VarChar(128)",
        "saga_id": "@db.VarChar(128)",
        "correlation_id": "@db.VarChar(256)",
        "state": "@db.LongText",
    },
    "sqlserver": {
        "saga_name": "@db.NVarChar(257)",
        "saga_id": "@db.NVarChar(257)",
        "correlation_id": "@db.NVarChar(513)",
        "state": "@db.NVarChar(Max)",
    },
}
_ID = {"sqlserver": "@@id([saga_name, saga_id], clustered: false)"}  # too long for a clustered one
_MODEL = """\
model {model} {{
{fields}

  {id}
  @@unique([saga_name, correlation_id])
{indexes}
  @@map({table})
}}
"""


@dataclass(frozen=True)
class Field:
    """A field of a model.

    Args:
        kind: Its type, with the question mark of an optional one.
        column: The column's name.
    """

    kind: str
    column: str


@dataclass(frozen=True)
class Model:
    """A model as a client was generated with it.

    Args:
        provider: The database, as the datasource calls it.
        name: The model's name.
        table: The table's name.
        schema: The table's schema where the model names one.
        fields: Its fields.
        keys: Its unique keys, each the names of its fields in their order.
    """

    provider: str
    name: str
    table: str
    schema: str | None
    fields: Mapping[str, Field]
    keys: frozenset[tuple[str, ...]]


def get_schema_prisma(
    *, provider: Provider = "postgresql", model: str = "SagaInstance", table: str = "saga_instances"
) -> str:
    """The model for ``schema.prisma``.

    Args:
        provider: The datasource's provider: "postgresql", "mysql", "sqlite" or "sqlserver".
        model: The model's name; the client has it in lower case.
        table: The table's name.

    Raises:
        InvalidSagaError: A bad name, or another provider. MongoDB is one: Prisma has no compound ids there.
    """
    check_provider(provider)
    check_table(table)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", model):
        raise InvalidSagaError(f"the model name must have letters, digits and underscores only, not {model!r}")
    names, kinds = max(map(len, FIELDS)), max(map(len, FIELDS.values()))
    native = _NATIVE[provider]
    fields = (f"  {name:{names}} {kind:{kinds}} {native.get(name, '')}".rstrip() for name, kind in FIELDS.items())
    indexes = (
        f"  @@index([{', '.join(columns)}], map: {json.dumps(derived_identifier(table, suffix), ensure_ascii=False)})"
        for suffix, columns in INDEXES.items()
    )
    return _MODEL.format(
        model=model,
        fields="\n".join(fields),
        id=_ID.get(provider, "@@id([saga_name, saga_id])"),
        indexes="\n".join(indexes),
        table=json.dumps(table, ensure_ascii=False),
    )


def check_provider(provider: str) -> None:
    """Refuse a database that the store does not know.

    Args:
        provider: The datasource's provider.

    Raises:
        InvalidSagaError: It is another one.
    """
    if provider not in get_args(Provider):
        raise InvalidSagaError(f"the provider must be one of {', '.join(get_args(Provider))}, not {provider!r}")


def check_table(table: str) -> None:
    """Refuse a table's name that a database or the engine cannot take.

    Args:
        table: 1 to 63 bytes in UTF-8.

    Raises:
        InvalidSagaError: It is a bad one.
    """
    check_identifier(table)
    if found := re.search(r'["`\[\]]', table):
        raise InvalidSagaError(f"the table name {table!r} holds {found[0]!r}, which Prisma's engine does not quote")


def model_of(prisma: Any, actions: Any) -> Model:
    """The model of a client, from the schema.prisma that ``prisma generate`` put beside it.

    Args:
        prisma: The client.
        actions: What the client has for the model.

    Raises:
        SchemaError: The model is not to be found there.
        InvalidSagaError: The client is of a database that the store does not know.
    """
    path = getattr(sys.modules.get(type(prisma).__module__), "PACKAGED_SCHEMA_PATH", None)
    name = type(actions).__name__.removesuffix("Actions")
    try:
        text = Path(path).read_text(encoding="utf-8")  # type: ignore[arg-type]  # None is a TypeError
    except (OSError, TypeError) as error:
        raise SchemaError("the client's schema.prisma cannot be read: run `prisma generate` again") from error
    return parsed(text, name)


def parsed(text: str, name: str) -> Model:
    """A model of a schema.

    Args:
        text: The schema, as Prisma has accepted it.
        name: The model's name.

    Raises:
        SchemaError: There is no such model.
        InvalidSagaError: The datasource is of a database that the store does not know.
    """
    sources = _block(text, "datasource", r"\w+")
    lines = _block(text, "model", name)
    if lines is None or sources is None:
        raise SchemaError(f"the client's schema.prisma has no model {name}: run `prisma generate` again")
    provider = next(found[1] for line in sources if (found := re.match(r'provider\s*=\s*"(\w+)"', line)))
    provider = "postgresql" if provider == "postgres" else provider
    check_provider(provider)
    fields: dict[str, Field] = {}
    keys: set[tuple[str, ...]] = set()
    table, schema = name, None
    for line in lines:
        if found := re.match(r"(\w+)\s+(\w+(?:\?|\[\])?)(.*)", line):
            fields[found[1]] = Field(found[2], _argument(r"@map", found[3]) or found[1])
        elif found := re.match(r"@@(?:id|unique)\(\s*(?:fields:\s*)?\[([^\]]*)\]", line):
            keys.add(tuple(re.findall(r"\w+", re.sub(r"\([^)]*\)", "", found[1]))))
        else:
            table = _argument(r"@@map", line) or table
            schema = _argument(r"@@schema", line) or schema
    return Model(provider, name, table, schema, fields, frozenset(keys))


def problems_of(model: Model) -> Iterator[str]:
    """What a model lacks.

    Args:
        model: The model.
    """
    for name, kind in FIELDS.items():
        if name not in model.fields:
            yield f"the field {name} is missing"
        elif model.fields[name].kind != kind:
            yield f"the field {name} is {model.fields[name].kind} and must be {kind}"
    for key in KEYS:
        if key not in model.keys:
            yield f"the key ({', '.join(key)}) is missing"


def _block(text: str, what: str, name: str) -> list[str] | None:
    """The lines of a block, without comments; Prisma's own parser wants a field a line."""
    found = re.search(rf"^[ \t]*{what}\s+{name}\s*\{{(.*?)^[ \t]*\}}", text, re.MULTILINE | re.DOTALL)
    if found is None:
        return None
    without_comments = (re.sub(r'("(?:[^"\\]|\\.)*")|//.*', r"\1", line).strip() for line in found[1].splitlines())
    return [line for line in without_comments if line]


def _argument(attribute: str, line: str) -> str | None:
    found = re.search(rf'(?<!@){attribute}\(\s*(?:name:\s*)?("(?:[^"\\]|\\.)*")', line)
    return None if found is None else str(json.loads(found[1]))

"""The model and the table: what Prisma itself takes, and what check_schema and create_schema refuse."""

from __future__ import annotations

import asyncio

import pytest

import saga_bus.store_sqlite
from providers.mysql import execute
from providers.prisma import run_prisma, shared_schema
from saga_bus.store import InvalidSagaError, SchemaError, UntypedSagaState
from saga_bus.store_prisma import (
    PrismaSagaStore,
    check_schema,
    create_schema,
    drop_schema,
    get_schema_prisma,
    get_schema_sql,
)
from saga_bus.store_prisma._model import FIELDS, KEYS, model_of, parsed, problems_of
from saga_bus.store_prisma._statements import DATABASES

PROVIDERS = ("postgresql", "mysql", "sqlite", "sqlserver")
TABLE = '"Saga 0 é"'


def schema_of(provider, model):
    return f'datasource db {{\n  provider = "{provider}"\n  url = env("SAGA_DATABASE_URL")\n}}\n\n{model}'


def validated(tmp_path, schema, monkeypatch, url="file:x.db"):
    monkeypatch.setenv("SAGA_DATABASE_URL", url)
    (tmp_path / "schema.prisma").write_text(schema, encoding="utf-8")
    return run_prisma("validate", "--schema", "schema.prisma", folder=tmp_path)


# -- the model ---------------------------------------------------------------------------------------------

URLS = {"postgresql": "postgresql://x", "mysql": "mysql://x", "sqlite": "file:x.db", "sqlserver": "sqlserver://x"}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_prisma_takes_the_model(databases, tmp_path, monkeypatch, provider):
    databases.url("prisma")
    model = get_schema_prisma(provider=provider, model="Odd_Name1", table="Mein Tisch é")
    done = validated(tmp_path, schema_of(provider, model), monkeypatch, URLS[provider])
    assert done.returncode == 0, done.stdout + done.stderr
    found = parsed(schema_of(provider, model), "Odd_Name1")
    assert list(problems_of(found)) == []
    assert (found.provider, found.table) == (provider, "Mein Tisch é")


def test_prisma_has_no_compound_ids_on_mongodb(databases, tmp_path, monkeypatch):
    """Why the provider is refused; a store without a compound id would be another model, and another store."""
    databases.url("prisma")
    schema = schema_of("mongodb", get_schema_prisma(provider="sqlite"))
    done = validated(tmp_path, schema, monkeypatch, "mongodb://x/x")
    assert done.returncode != 0
    assert "@id" in done.stderr
    assert "_id" in done.stderr
    with pytest.raises(InvalidSagaError, match="mongodb"):
        get_schema_prisma(provider="mongodb")
    with pytest.raises(InvalidSagaError, match="mongodb"):
        parsed(schema, "SagaInstance")


def test_names_that_prisma_cannot_quote():
    for table in ('a"b', "a`b", "a[b", "a]b", "", "x" * 64, "a\nb"):
        with pytest.raises(InvalidSagaError):
            get_schema_prisma(table=table)
        with pytest.raises(InvalidSagaError):
            get_schema_sql(table=table)
    for model in ("", "1a", "a b", "a-b", "é"):
        with pytest.raises(InvalidSagaError, match="model name"):
            get_schema_prisma(model=model)
    with pytest.raises(InvalidSagaError, match="oracle"):
        get_schema_sql(provider="oracle")


@pytest.mark.parametrize("field", FIELDS)
def test_a_model_without_a_field_or_with_another_type(field):
    schema = schema_of("sqlite", get_schema_prisma(provider="sqlite"))
    lines = schema.splitlines()
    without = [line for line in lines if not line.startswith(f"  {field} ")]
    assert len(without) == len(lines) - 1
    assert list(problems_of(parsed("\n".join(without), "SagaInstance"))) == [f"the field {field} is missing"]
    other = schema.replace(f"\n  {field} ", f"\n  {field} DateTime // was ")
    assert list(problems_of(parsed(other, "SagaInstance"))) == [
        f"the field {field} is DateTime and must be {FIELDS[field]}"
    ]


def test_a_model_without_its_keys():
    schema = schema_of("sqlite", get_schema_prisma(provider="sqlite"))
    lines = [line for line in schema.splitlines() if "@@id" not in line and "@@unique" not in line]
    assert list(problems_of(parsed("\n".join(lines), "SagaInstance"))) == [
        f"the key ({', '.join(key)}) is missing" for key in KEYS
    ]


WRITTEN_BY_HAND = """
// model Sagas { in a comment }
datasource pg {
  url      = env("X") // provider = "mysql"
  provider = "postgres"
}
  model  Sagas  {
    saga_name String @map("name") @db.Text // the name }
    saga_id   String? @map(name: "id")
    tags String[]
    @@id(fields: [saga_name, saga_id], map: "x")
    @@unique([saga_name(sort: Desc), tags])
    @@map(name: "my // sagas")
    @@schema("other")
  }
"""


def test_a_model_that_was_written_by_hand():
    model = parsed(WRITTEN_BY_HAND, "Sagas")
    assert (model.provider, model.table, model.schema) == ("postgresql", "my // sagas", "other")
    assert {name: (field.kind, field.column) for name, field in model.fields.items()} == {
        "saga_name": ("String", "name"),
        "saga_id": ("String?", "id"),
        "tags": ("String[]", "tags"),
    }
    assert model.keys == {("saga_name", "saga_id"), ("saga_name", "tags")}
    with pytest.raises(SchemaError, match="no model Saga"):
        parsed(WRITTEN_BY_HAND, "Saga")


def test_the_model_of_a_generated_client(on_sqlite):
    client = on_sqlite.new()
    model = model_of(client, client.saga1)
    assert (model.provider, model.name, model.table) == ("sqlite", "Saga1", "Saga 1 é")
    assert list(problems_of(model)) == []


def test_a_client_with_another_model(on_sqlite):
    """The model of the tests' business rows, as one that somebody else wrote."""

    async def main():
        async with on_sqlite.connected() as client:
            store = PrismaSagaStore(prisma=client, model="businessrow")
            for call in (store.check_schema(), store.create_schema()):
                with pytest.raises(SchemaError, match=r"field saga_name is missing.*get_schema_prisma"):
                    await call
            with pytest.raises(SchemaError, match="check_schema"):
                await store.get_by_id("OrderSaga", "1")
            with pytest.raises(SchemaError, match="check_schema"):
                await store.insert("OrderSaga", "1", UntypedSagaState())

    asyncio.run(main())


# -- the table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["saga_instances", "Odd 'Täble'", "x" * 63])
def test_the_table_of_sqlite_is_that_of_the_sqlite_store(table):
    ours = get_schema_sql(provider="sqlite", table=table)
    assert ours == saga_bus.store_sqlite.get_schema_sql(table=table)


def changed(sql, old, new):
    assert old in sql
    return sql.replace(old, new)


BIGINT = "updated_at          bigint  NOT NULL"
WRONG = [
    (BIGINT, "updated_at          timestamptz NOT NULL", "column updated_at is of the type timestamp with time zone"),
    ("state               text ", "state jsonb ", "column state is of the type jsonb"),
    ("state               text ", "state varchar(191) ", "column state has room for 191 characters only"),
    (
        'correlation_id      text    COLLATE "C"',
        "correlation_id varchar(255)",
        "column correlation_id has room for 255",
    ),
    ("    archived_at         bigint,\n", "", "column archived_at is missing"),
    ("UNIQUE (saga_name, correlation_id)", "CHECK (true)", "unique key on (saga_name, correlation_id) is missing"),
    ("PRIMARY KEY (saga_name, saga_id)", "PRIMARY KEY (saga_id)", "unique key on (saga_name, saga_id) is missing"),
]


def test_tables_of_postgresql_that_do_not_serve(on_postgres):
    right = get_schema_sql(provider="postgresql", table="Saga 0 é").split(";\n\n")[0]

    async def main():
        async with on_postgres.connected() as client:
            for old, new, said in WRONG:
                await client.execute_raw(changed(right, old, new))
                try:
                    for work in (check_schema, create_schema, drop_schema):
                        with pytest.raises(SchemaError) as caught:
                            await work(client, model="saga0")
                        assert said in str(caught.value)
                        assert "get_schema_sql" in str(caught.value)
                finally:
                    await client.execute_raw(f"DROP TABLE {TABLE}")

    asyncio.run(main())


def test_writing_into_a_column_of_the_wrong_type(on_postgres):
    right = get_schema_sql(provider="postgresql", table="Saga 0 é").split(";\n\n")[0]

    async def main():
        async with on_postgres.connected() as client:
            store = PrismaSagaStore(prisma=client, model="saga0")
            await client.execute_raw(changed(right, BIGINT, "updated_at date NOT NULL"))
            try:
                with pytest.raises(SchemaError, match="check_schema"):
                    await store.insert("OrderSaga", "1", UntypedSagaState())
            finally:
                await client.execute_raw(f"DROP TABLE {TABLE}")

    asyncio.run(main())


# As Prisma Migrate makes it of the model, which knows no STRICT, no collation and no partial index.
MIGRATED = f"""
CREATE TABLE {TABLE} (
    "saga_name" TEXT NOT NULL, "saga_id" TEXT NOT NULL, "correlation_id" TEXT NOT NULL, "version" BIGINT NOT NULL,
    "is_completed" BOOLEAN NOT NULL, "created_at" BIGINT NOT NULL, "updated_at" BIGINT NOT NULL,
    "updated_hour" BIGINT NOT NULL, "archived_at" BIGINT, "timeout_expires_at" BIGINT,
    "outbox_pending" BOOLEAN NOT NULL, "state" TEXT NOT NULL,
    PRIMARY KEY ("saga_name", "saga_id")
)
"""
MIGRATED_KEY = f'CREATE UNIQUE INDEX "key" ON {TABLE} ("saga_name", "correlation_id")'


def test_a_table_that_prisma_migrate_made(on_sqlite):
    async def main():
        async with on_sqlite.connected() as client:
            await client.execute_raw(MIGRATED)
            with pytest.raises(SchemaError, match="correlation_id"):
                await check_schema(client, model="saga0")
            await client.execute_raw(MIGRATED_KEY)
            await create_schema(client, model="saga0")
            await check_schema(client, model="saga0")
            store = PrismaSagaStore(prisma=client, model="saga0")
            await store.insert("OrderSaga", "1", UntypedSagaState())
            assert await store.get_by_correlation_id("OrderSaga", "1") is not None
            await drop_schema(client, model="saga0")

    asyncio.run(main())


def test_a_key_that_ignores_case_is_none(on_sqlite):
    async def main():
        async with on_sqlite.connected() as client:
            await client.execute_raw(changed(MIGRATED, '"correlation_id" TEXT', '"correlation_id" TEXT COLLATE NOCASE'))
            await client.execute_raw(MIGRATED_KEY)
            with pytest.raises(SchemaError, match=r"unique key on \(saga_name, correlation_id\)"):
                await check_schema(client, model="saga0")

    asyncio.run(main())


# -- MySQL and SQL Server, as far as without an engine for them -------------------------------------------------


def test_the_statements_for_mysql_run_on_a_server(databases):
    url = databases.url("mysql")
    table = "prisma é sagas"
    statement = get_schema_sql(provider="mysql", table=table).strip().removesuffix(";")
    mysql = DATABASES["mysql"]
    execute(url, statement, statement)  # a second time is no error
    try:
        values = [sql.replace("?", f"'{table}'", 1).replace("?", "''") for sql in (mysql.columns, mysql.keys)]
        columns = {row[0]: row[2] for row in execute(url, values[0])}
        assert columns.keys() == FIELDS.keys()
        for name, kind in FIELDS.items():
            assert columns[name] in mysql.kinds[kind.removesuffix("?")]
        keys = {}
        for key, name, _ in execute(url, values[1]):
            keys.setdefault(key, set()).add(name)
        assert sorted(map(sorted, keys.values())) == sorted(map(sorted, KEYS))
        execute(url, mysql.health)
        execute(url, f"ALTER TABLE `{table}` MODIFY saga_id VARCHAR(128) COLLATE utf8mb4_general_ci NOT NULL")
        assert {row[0]: row[2] for row in execute(url, values[0])}["saga_id"].endswith("utf8mb4_general_ci")
    finally:
        execute(url, f"DROP TABLE `{table}`")


def test_the_statement_for_sql_server():
    sqlglot = pytest.importorskip("sqlglot")
    assert "N'[o''clock]'" in get_schema_sql(provider="sqlserver", table="o'clock")
    sql = get_schema_sql(provider="sqlserver", table="Mein Tisch é")
    table = sql[sql.index("CREATE TABLE") :].strip().removesuffix(";")
    tree = sqlglot.parse_one(table.replace("NONCLUSTERED", ""), dialect="tsql")
    assert {column.name for column in tree.find_all(sqlglot.exp.ColumnDef)} >= FIELDS.keys()
    for statement in (DATABASES["sqlserver"].columns, DATABASES["sqlserver"].keys):
        sqlglot.parse_one(statement, dialect="tsql")


def test_the_kits_schema_has_no_output():
    assert "output" not in shared_schema("sqlite", "")

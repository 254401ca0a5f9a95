"""A durable saga store on PostgreSQL: a table of JSONB documents, with concurrent calls grouped into one statement."""

from saga_bus.store_postgres._schema import get_schema_sql
from saga_bus.store_postgres._store import PostgresSagaStore, check_schema, create_schema, drop_schema

__all__ = ["PostgresSagaStore", "check_schema", "create_schema", "drop_schema", "get_schema_sql"]

"""A durable saga store in one SQLite file, with group commit; several processes may share the file."""

from saga_bus.store_sqlite._schema import get_schema_sql
from saga_bus.store_sqlite._store import SqliteSagaStore, check_schema, create_schema, drop_schema

__all__ = ["SqliteSagaStore", "check_schema", "create_schema", "drop_schema", "get_schema_sql"]

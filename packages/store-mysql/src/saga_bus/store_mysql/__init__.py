"""A durable saga store on MySQL and MariaDB, with grouped reads and writes."""

from saga_bus.store_mysql._schema import get_schema_sql
from saga_bus.store_mysql._store import MySqlSagaStore, check_schema, create_schema, drop_schema

__all__ = ["MySqlSagaStore", "check_schema", "create_schema", "drop_schema", "get_schema_sql"]

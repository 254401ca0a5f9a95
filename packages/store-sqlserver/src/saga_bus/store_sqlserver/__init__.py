"""A durable saga store on Microsoft SQL Server, through pyodbc and any ODBC driver for it."""

from saga_bus.store_sqlserver._schema import get_schema_sql
from saga_bus.store_sqlserver._store import SqlServerSagaStore, check_schema, create_schema, drop_schema

__all__ = ["SqlServerSagaStore", "check_schema", "create_schema", "drop_schema", "get_schema_sql"]

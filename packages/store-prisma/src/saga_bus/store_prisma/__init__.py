"""A durable saga store on a generated Prisma Client for Python, for PostgreSQL, SQLite, MySQL and SQL Server."""

from saga_bus.store_prisma._client import PrismaClient
from saga_bus.store_prisma._model import get_schema_prisma
from saga_bus.store_prisma._schema import get_schema_sql
from saga_bus.store_prisma._store import PrismaSagaStore, check_schema, create_schema, drop_schema

__all__ = [
    "PrismaClient",
    "PrismaSagaStore",
    "check_schema",
    "create_schema",
    "drop_schema",
    "get_schema_prisma",
    "get_schema_sql",
]

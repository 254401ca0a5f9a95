"""A durable saga store on MongoDB: a collection of documents that can be queried, with concurrent calls in groups."""

from saga_bus.store_mongodb._schema import get_schema_commands
from saga_bus.store_mongodb._store import MongoSagaStore, check_schema, create_schema, drop_schema

__all__ = ["MongoSagaStore", "check_schema", "create_schema", "drop_schema", "get_schema_commands"]

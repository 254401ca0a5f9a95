"""A durable saga store on Redis and Valkey: a script for each write, on a server, behind Sentinels or in a Cluster."""

from saga_bus.store_redis._schema import get_key_layout
from saga_bus.store_redis._store import RedisSagaStore, check_schema, create_schema, drop_schema

__all__ = ["RedisSagaStore", "check_schema", "create_schema", "drop_schema", "get_key_layout"]

"""A durable saga store on Amazon DynamoDB, through boto3."""

from saga_bus.store_dynamodb._schema import table_definition
from saga_bus.store_dynamodb._store import DynamoDBSagaStore, check_schema, create_schema, drop_schema

__all__ = ["DynamoDBSagaStore", "check_schema", "create_schema", "drop_schema", "table_definition"]

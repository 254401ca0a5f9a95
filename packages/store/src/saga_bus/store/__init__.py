"""Durable saga state: one contract for every database, and what a backend author needs to keep it."""

from saga_bus.store.base import BaseSagaStore
from saga_bus.store.coalesce import Coalescer
from saga_bus.store.codec import JsonStateCodec, StateCodec, TypedStateCodec
from saga_bus.store.errors import (
    ConcurrencyError,
    Conflict,
    DuplicateSagaError,
    InvalidSagaError,
    OutcomeUnknownError,
    SagaNotFoundError,
    SagaStoreError,
    SchemaError,
    StateCodecError,
    StateDecodeError,
    StateEncodeError,
    StateTooLargeError,
    StoreClosedError,
    StoreUnavailableError,
    UnsupportedOperationError,
    version_conflict,
)
from saga_bus.store.protocol import (
    DeletesConditionally,
    FindsSagas,
    JoinsTransactions,
    ManagesSchema,
    Ping,
    Pings,
    PurgesSagas,
    SagaStore,
    StoreCapabilities,
    capabilities_of,
)
from saga_bus.store.query import CursorPosition, Page, SagaFilter, SagaOrder, SagaRecord
from saga_bus.store.registry import open_store
from saga_bus.store.repository import SagaRepository
from saga_bus.store.rows import FoundRow, SagaQuery, SagaRow
from saga_bus.store.state import HasMetadata, SagaMetadata, SagaState, UntypedSagaState, new_saga_id

__all__ = [
    "BaseSagaStore",
    "Coalescer",
    "ConcurrencyError",
    "Conflict",
    "CursorPosition",
    "DeletesConditionally",
    "DuplicateSagaError",
    "FindsSagas",
    "FoundRow",
    "HasMetadata",
    "InvalidSagaError",
    "JoinsTransactions",
    "JsonStateCodec",
    "ManagesSchema",
    "OutcomeUnknownError",
    "Page",
    "Ping",
    "Pings",
    "PurgesSagas",
    "SagaFilter",
    "SagaMetadata",
    "SagaNotFoundError",
    "SagaOrder",
    "SagaQuery",
    "SagaRecord",
    "SagaRepository",
    "SagaRow",
    "SagaState",
    "SagaStore",
    "SagaStoreError",
    "SchemaError",
    "StateCodec",
    "StateCodecError",
    "StateDecodeError",
    "StateEncodeError",
    "StateTooLargeError",
    "StoreCapabilities",
    "StoreClosedError",
    "StoreUnavailableError",
    "TypedStateCodec",
    "UnsupportedOperationError",
    "UntypedSagaState",
    "capabilities_of",
    "new_saga_id",
    "open_store",
    "version_conflict",
]

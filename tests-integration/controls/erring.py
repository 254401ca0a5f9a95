"""Stores that notice what is wrong and raise the wrong error."""

from __future__ import annotations

import sqlite3
from typing import Any, ClassVar

from controls.registry import fails
from saga_bus.store import ConcurrencyError, DuplicateSagaError, SagaNotFoundError, SagaRow, SagaStoreError
from saga_bus.store_inmemory import InMemorySagaStore


class _Translating(InMemorySagaStore[Any]):
    """Raises another error than the right one."""

    def conflict(self, error: ConcurrencyError) -> BaseException:
        return error

    def duplicate(self, error: DuplicateSagaError) -> BaseException:
        return error

    async def _insert(self, row: SagaRow, correlation_id: str) -> None:
        try:
            await super()._insert(row, correlation_id)
        except DuplicateSagaError as error:
            raise self.duplicate(error) from error

    async def _update(self, row: SagaRow, expected_version: int) -> None:
        try:
            await super()._update(row, expected_version)
        except ConcurrencyError as error:
            raise self.conflict(error) from error


@fails("update_refuses_a_stale_version", says="expected ConcurrencyError, got SagaStoreError")
class ConflictIsAnyError(_Translating):
    """A conflict is raised as the root of all errors."""

    def conflict(self, error: ConcurrencyError) -> BaseException:
        return SagaStoreError(str(error))


@fails("update_refuses_a_stale_version", says="expected ConcurrencyError, got KeyError")
class ConflictIsKeyError(_Translating):
    """A conflict is raised as a KeyError."""

    def conflict(self, error: ConcurrencyError) -> BaseException:
        return KeyError(error.saga_id)


@fails("update_refuses_a_stale_version", says="the error's actual_version: expected 1, got None")
class ActualVersionMissing(_Translating):
    """A conflict does not say which version the store holds."""

    def conflict(self, error: ConcurrencyError) -> BaseException:
        if isinstance(error, SagaNotFoundError):
            return error
        return ConcurrencyError(
            saga_name=error.saga_name, saga_id=error.saga_id, expected_version=error.expected_version
        )


@fails("update_refuses_a_stale_version", says="the error's type: expected <class 'saga_bus.store.errors.Concurrency")
class ConflictIsNotFound(_Translating):
    """A conflict is raised as a SagaNotFoundError."""

    def conflict(self, error: ConcurrencyError) -> BaseException:
        return SagaNotFoundError(
            saga_name=error.saga_name, saga_id=error.saga_id, expected_version=error.expected_version
        )


@fails("update_missing_saga_is_not_found", says="expected SagaNotFoundError, got ConcurrencyError")
class NotFoundIsConflict(_Translating):
    """A missing saga is raised as a plain conflict."""

    def conflict(self, error: ConcurrencyError) -> BaseException:
        return ConcurrencyError(
            saga_name=error.saga_name,
            saga_id=error.saga_id,
            expected_version=error.expected_version,
            actual_version=error.actual_version,
        )


@fails("insert_refuses_taken_id", says="expected DuplicateSagaError, got IntegrityError")
class DriverErrorEscapes(_Translating):
    """A duplicate is raised as the driver's own error."""

    def duplicate(self, error: DuplicateSagaError) -> BaseException:
        return sqlite3.IntegrityError(str(error))


class _FinalDuplicateError(DuplicateSagaError):
    retryable: ClassVar[bool] = False


@fails("insert_refuses_taken_id", says="the error must be retryable")
class DuplicateNotRetryable(_Translating):
    """A duplicate is not retryable."""

    def duplicate(self, error: DuplicateSagaError) -> BaseException:
        return _FinalDuplicateError(
            saga_name=error.saga_name,
            saga_id=error.saga_id,
            correlation_id=error.correlation_id,
            conflict=error.conflict,
        )


@fails("insert_refuses_taken_correlation_id", says="the error's conflict is 'saga_id', taken is correlation_id")
class WrongKeyBlamed(_Translating):
    """A duplicate correlation id is reported as a duplicate id."""

    def duplicate(self, error: DuplicateSagaError) -> BaseException:
        error.conflict = "saga_id"
        return error

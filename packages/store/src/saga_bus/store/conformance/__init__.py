"""The conformance kit: proves that a store keeps the contract, ours or anybody's own.

Three ways to run it, with one thing to write, ``open_store(namespace)``: subclass `SagaStoreConformance` for
pytest, ``python -m saga_bus.store.conformance package.module:open_store`` in a terminal, or
``await run_conformance(open_store)`` from code.
"""

from saga_bus.store.conformance.cases import CASES, GROUPS
from saga_bus.store.conformance.differential import run_differential
from saga_bus.store.conformance.history import History, Operation
from saga_bus.store.conformance.kit import Case, Hooks, Transaction
from saga_bus.store.conformance.linearizability import Violation, check
from saga_bus.store.conformance.machine import run_machine
from saga_bus.store.conformance.report import (
    SUITE_VERSION,
    CannotOpenError,
    CaseResult,
    ConformanceReport,
    run_conformance,
)
from saga_bus.store.conformance.states import STATE_TYPES
from saga_bus.store.conformance.suite import SagaStoreConformance

__all__ = [
    "CASES",
    "GROUPS",
    "STATE_TYPES",
    "SUITE_VERSION",
    "CannotOpenError",
    "Case",
    "CaseResult",
    "ConformanceReport",
    "History",
    "Hooks",
    "Operation",
    "SagaStoreConformance",
    "Transaction",
    "Violation",
    "check",
    "run_conformance",
    "run_differential",
    "run_machine",
]

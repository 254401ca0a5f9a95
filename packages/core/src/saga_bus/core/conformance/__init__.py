"""Proves that a transport carries messages as the bus needs it: subclass `TransportConformance` for pytest."""

from saga_bus.core.conformance.cases import CASES
from saga_bus.core.conformance.kit import Kit, PutAside
from saga_bus.core.conformance.suite import TransportConformance

__all__ = ["CASES", "Kit", "PutAside", "TransportConformance"]

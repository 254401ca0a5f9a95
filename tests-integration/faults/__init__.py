"""Faults on purpose: a proxy that cuts connections at a chosen moment, and a load that proves what survived."""

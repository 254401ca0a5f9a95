"""Settings of a database that put saga state at risk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["warnings_about"]

# The setting, the values that are safe, and what it means otherwise.
_SAFE = (
    ("fsync", {"on"}, "a power failure can damage the database"),
    ("synchronous_commit", {"on", "remote_apply", "remote_write", "local"}, "a crash can lose the last commits"),
    ("innodb_flush_log_at_trx_commit", {"1"}, "a crash can lose the last commits"),
    ("journal_mode", {"wal", "delete", "truncate", "persist"}, "a crash in the middle of a write damages the file"),
    ("synchronous", {"2", "3"}, "a power failure can lose the last commits"),
)


def warnings_about(settings: Mapping[str, Any]) -> list[str]:
    """Say what puts sagas at risk.

    Args:
        settings: What the server says of itself, as far as it has such a setting.
    """
    return [
        f"{name} is {settings[name]}: {risk}"
        for name, safe, risk in _SAFE
        if name in settings and str(settings[name]) not in safe
    ]

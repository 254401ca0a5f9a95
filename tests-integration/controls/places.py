"""Where the controls keep their sagas: the hooks that the kit asks the author of a store for."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MemoryPlaces", "SqlitePlaces", "SqliteTransaction"]


@dataclass(frozen=True)
class MemoryPlaces:
    """Places in this process's memory.

    Args:
        store: The class of the stores.
    """

    store: type[Any]

    def open_store(self, namespace: str) -> Any:
        """A store on the place that a namespace names."""
        return self.store(f"memory://{namespace}")


class SqliteTransaction:
    """A transaction of the sqlite3 module, with business rows in a table of its own.

    Args:
        path: The database file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("CREATE TABLE IF NOT EXISTS business (key TEXT PRIMARY KEY)")
        self.connection.execute("BEGIN IMMEDIATE")

    async def commit(self) -> None:
        """Commit it."""
        self.connection.commit()

    async def rollback(self) -> None:
        """Roll it back."""
        self.connection.rollback()

    async def put_row(self, key: str) -> None:
        """Write a business row inside the transaction."""
        self.connection.execute("INSERT INTO business VALUES (?)", (key,))

    async def has_row(self, key: str) -> bool:
        """Whether a business row is there, seen from outside."""
        with closing(sqlite3.connect(self._path)) as outside:
            return outside.execute("SELECT 1 FROM business WHERE key = ?", (key,)).fetchone() is not None


@dataclass(frozen=True)
class SqlitePlaces:
    """Places that are SQLite files.

    Args:
        store: The class of the stores.
        directory: Where the files are.
    """

    store: type[Any]
    directory: Path

    def open_store(self, namespace: str) -> Any:
        """A store on the file that a namespace names."""
        return self.store(self._path(namespace), durability="normal")

    @asynccontextmanager
    async def open_transaction(self, namespace: str) -> AsyncIterator[SqliteTransaction]:
        """A transaction on the file that a namespace names."""
        transaction = SqliteTransaction(self._path(namespace))
        try:
            yield transaction
        finally:
            transaction.connection.close()

    def _path(self, namespace: str) -> Path:
        return self.directory / f"{namespace}.db"

"""A connection and its cursors: statements with bound types, drained results, and whether it is still of use."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from threading import Lock
from typing import Any

from saga_bus.store import OutcomeUnknownError, SagaStoreError
from saga_bus.store_sqlserver._errors import (
    ends_transaction,
    is_deadlock,
    lost_connection,
    timed_out,
    translated,
    writing,
)
from saga_bus.store_sqlserver._odbc import is_freetds, load
from saga_bus.store_sqlserver._values import FREETDS_TEXT, TEXT, Binding, Statement

__all__ = ["SETTINGS", "WAIT_FOR_LOCKS", "Session"]

# The count of rows tells whether a compare-and-swap succeeded, and a state must come back whole: a server's or a
# driver's configuration may say otherwise.
SETTINGS = "SET NOCOUNT OFF; SET TEXTSIZE 2147483647"
WAIT_FOR_LOCKS = "SET LOCK_TIMEOUT -1"

_SQL_DRIVER_NAME = 6
_KEPT_CURSORS = 32

Row = tuple[Any, ...]


class Session:
    """Runs statements on one connection, for one thread at a time.

    A cursor is kept for each statement: closing one would cost another request, which releases what was prepared.

    Args:
        connection: A pyodbc connection.
        in_transaction: Whether it is for the caller's transaction.

    Attributes:
        is_lost: The connection failed or is in doubt, so it is of no more use.
        is_cut: It is lost because the server or the network ended it.
        has_ended: The server has ended the caller's transaction. The next statement would be in another one or, with
            FreeTDS, in none, without what the caller did in the first.
        was_victim: The last error was a deadlock, which the server ended by rolling this session's work back.
        used_at: When a statement last succeeded, as `time.monotonic` counts.
        is_freetds: Whether the driver is FreeTDS.
    """

    def __init__(self, connection: Any, *, in_transaction: bool = False) -> None:
        self.connection = connection
        self.is_lost = False
        self.is_cut = False
        self.has_ended = False
        self.was_victim = False
        self.used_at = time.monotonic()
        self._cursors: OrderedDict[str, tuple[Any, str]] = OrderedDict()
        self._running: Any = None
        self._stopping = Lock()
        self._in_transaction = in_transaction
        self._is_babelfish: bool | None = None
        self.is_freetds = is_freetds(str(connection.getinfo(_SQL_DRIVER_NAME)))

    @property
    def is_babelfish(self) -> bool:
        """Whether the server is Babelfish for PostgreSQL; it is asked once.

        Raises:
            SagaStoreError: It did not say.
        """
        if self._is_babelfish is None:
            ((answer,),) = self.read(_BABELFISH)
            self._is_babelfish = bool(answer)
        return self._is_babelfish

    def read(self, statement: Statement, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run a SELECT.

        Args:
            statement: The statement.
            parameters: None of them None.

        Raises:
            SagaStoreError: SQL Server or the driver refused.
        """
        return self._rows(statement, parameters, translated)

    def write_group(self, statement: Statement, parameters: Sequence[Any]) -> list[Row]:
        """Run a group of writes, which sets a lock timeout for itself.

        Args:
            statement: The statement.
            parameters: None of them None.

        Returns:
            The rows that the statement gives for what it wrote, if it gives any.

        Raises:
            OutcomeUnknownError: The connection failed after the statement was sent.
            SagaStoreError: SQL Server or the driver refused.
        """
        try:
            return self._rows(statement, parameters, writing)
        except SagaStoreError:
            if not self.is_lost:
                self._wait_for_locks()
            raise

    def _wait_for_locks(self) -> None:
        # Not every error leaves the rest of a group undone, but some do.
        try:
            self.run(WAIT_FOR_LOCKS)
        except SagaStoreError:
            self.is_lost = True

    def _rows(
        self, statement: Statement, parameters: Sequence[Any], meaning: Callable[[BaseException], SagaStoreError]
    ) -> list[Row]:
        rows: list[Row] = []
        with self._cursor(statement, parameters, meaning) as cursor:
            while True:
                if cursor.description is not None:
                    rows += (tuple(row) for row in cursor.fetchall())
                # An error behind the rows shows only here, and until all results are read the connection takes no
                # other statement.
                if not cursor.nextset():
                    return rows

    def write(self, statement: Statement, parameters: Sequence[Any] = ()) -> int:
        """Run an INSERT, UPDATE or DELETE.

        Args:
            statement: The statement.
            parameters: None of them None.

        Returns:
            How many rows it wrote.

        Raises:
            OutcomeUnknownError: The connection failed after the statement was sent.
            SagaStoreError: SQL Server or the driver refused.
        """
        with self._cursor(statement, parameters, writing) as cursor:
            # What triggers wrote comes first, the statement's own count last.
            count: int = cursor.rowcount
            while cursor.nextset():
                count = cursor.rowcount if cursor.rowcount >= 0 else count
        if count < 0:
            raise OutcomeUnknownError("the connection reports no counts of rows: SET NOCOUNT OFF on it")
        return count

    def run(self, sql: str) -> None:
        """Run a statement without parameters and without rows.

        Args:
            sql: The statement.

        Raises:
            SagaStoreError: SQL Server or the driver refused.
        """
        with self._errors(writing):
            cursor = self.connection.cursor()
            try:
                cursor.execute(sql)
                _drain(cursor)
            finally:
                cursor.close()
            self.used_at = time.monotonic()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction of the session's own, committed at the end of the block and rolled back where it fails."""
        with self._errors(writing):
            self.connection.autocommit = False
        try:
            yield
        except BaseException:
            self.roll_back()
            raise
        else:
            with self._errors(writing):
                self.connection.commit()
        finally:
            if not self.is_lost:
                with self._errors(translated):
                    self.connection.autocommit = True

    def answers(self) -> bool:
        """Whether the server still answers on this connection."""
        try:
            self.read(_NOTHING)
        except SagaStoreError:
            self.is_lost = True
        return not self.is_lost

    def roll_back(self) -> None:
        """Leave no transaction open; a connection that refuses that is lost."""
        try:
            self.connection.rollback()
        except load().Error:
            self.is_lost = True

    def cancel(self) -> None:
        """Ask the server to stop the statement that another thread runs here; nothing to stop is no error."""
        with self._stopping:
            if self._running is not None:
                try:
                    self._running.cancel()
                except load().Error:
                    return  # it has ended by itself, or its own thread learns what is wrong

    def close(self) -> None:
        """Close the cursors and the connection; one that cannot be closed is as good as closed."""
        self.forget_cursors()
        try:
            self.connection.close()
        except load().Error:
            return

    def forget_cursors(self) -> None:
        """Close the kept cursors, and leave the connection open."""
        for cursor, _ in self._cursors.values():
            _close(cursor)
        self._cursors.clear()

    @contextmanager
    def _cursor(
        self, statement: Statement, parameters: Sequence[Any], meaning: Callable[[BaseException], SagaStoreError]
    ) -> Iterator[Any]:
        with self._errors(meaning):
            # pyodbc knows its prepared statement again by the very object that it was given.
            cursor, sql = self._cursors.pop(statement.sql, (None, statement.sql))
            if cursor is None:
                cursor = self.connection.cursor()
                if statement.bindings:
                    cursor.setinputsizes([self._binding(binding) for binding in statement.bindings])
            self._running = cursor
            try:
                cursor.execute(sql, *parameters)
                yield cursor
            except BaseException:
                self._no_longer_runs()
                _close(cursor)
                raise
            self._no_longer_runs()
            self._cursors[sql] = (cursor, sql)
            if len(self._cursors) > _KEPT_CURSORS:
                _, (oldest, _) = self._cursors.popitem(last=False)
                _close(oldest)
            self.used_at = time.monotonic()

    def _no_longer_runs(self) -> None:
        # A statement that was stopped ends before the call that stopped it; to close it under that one would crash the
        # process.
        with self._stopping:
            self._running = None

    def _binding(self, binding: Binding) -> Binding:
        return FREETDS_TEXT if binding == TEXT and self.is_freetds else binding

    @contextmanager
    def _errors(self, meaning: Callable[[BaseException], SagaStoreError]) -> Iterator[None]:
        try:
            yield
        except load().Error as error:
            ours = meaning(error)
            self.was_victim = is_deadlock(error)
            self.is_cut = self.is_cut or lost_connection(error)
            # After a timeout the driver may not have read the server's last word: such a connection could answer
            # the next statement with this one's result.
            self.is_lost = self.is_lost or self.is_cut or timed_out(error)
            if self._in_transaction and not self.is_cut:
                self.has_ended = self.has_ended or ends_transaction(error) or self._aborts()
            raise ours from error

    def _aborts(self) -> bool:
        """Whether XACT_ABORT is on, so that the server has rolled everything back after whatever error."""
        try:
            with closing(self.connection.cursor()) as cursor:
                return bool(cursor.execute(_XACT_ABORT).fetchval())
        except load().Error as error:
            return ends_transaction(error)


_XACT_ABORT = "SELECT @@OPTIONS & 16384 AS xact_abort"
_NOTHING = Statement("SELECT 1 AS alive", ())
_BABELFISH = Statement("SELECT COALESCE(CAST(SERVERPROPERTY('Babelfish') AS INT), 0) AS babelfish", ())


def _drain(cursor: Any) -> None:
    while cursor.nextset():
        pass


def _close(cursor: Any) -> None:
    try:
        cursor.close()
    except load().Error:
        return

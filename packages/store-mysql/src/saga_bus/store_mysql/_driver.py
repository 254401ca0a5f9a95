"""aiomysql with types: connecting, and running a text of statements."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import aiomysql  # type: ignore[import-untyped]

from saga_bus.store import InvalidSagaError, SagaStoreError
from saga_bus.store_mysql._dialect import Dialect, dialect_of
from saga_bus.store_mysql._errors import MySQLError, connection_lost, is_lost, translated
from saga_bus.store_mysql._literals import Quote, quote, quote_plain

__all__ = ["Address", "Result", "Session", "check_charset", "connect", "is_alive"]


# https://dev.mysql.com/doc/dev/mysql-server/latest/group__group__cs__capabilities__flags.html and mysql_com.h
_CLIENT_FOUND_ROWS = 2
_STATUS_NO_BACKSLASH_ESCAPES = 512

# A server that is not strict would cut what does not fit into a column that somebody has narrowed.
_SETTINGS = b"SET autocommit = 1, innodb_lock_wait_timeout = %d, sql_mode = CONCAT(@@sql_mode, ',STRICT_TRANS_TABLES')"


class Result(NamedTuple):
    """What one statement gave.

    Args:
        rows: Its rows, in texts, bytes and numbers.
        affected: How many rows it changed.
        warnings: How many warnings the server has of it, 0 for a statement with rows.
    """

    rows: Sequence[tuple[Any, ...]]
    affected: int
    warnings: int


@dataclass(frozen=True)
class Address:
    """Where a server is, and how to log in.

    Args:
        host: Its name or IP address.
        port: Its TCP port.
        user: The user's name.
        password: The password, which ``repr`` leaves out.
        database: The database, "" for none.
        unix_socket: A socket file instead of host and port.
        tls: How to encrypt, None for not at all.
    """

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str
    unix_socket: str | None = None
    tls: ssl.SSLContext | None = field(default=None, repr=False)


class Session:
    """A connection for one user at a time.

    Args:
        connection: An aiomysql connection.
        command_timeout: How long the server may take for a text of statements, in seconds.
    """

    __slots__ = ("_is_late", "_loop", "command_timeout", "connection", "dialect")

    def __init__(self, connection: Any, command_timeout: float) -> None:
        self.connection = connection
        self.command_timeout = command_timeout
        self.dialect: Dialect = dialect_of(connection.get_server_info())
        self._loop = connection.loop
        self._is_late = False

    @property
    def quote(self) -> Quote:
        """What makes a literal of a text in this session."""
        plain = self.connection.server_status & _STATUS_NO_BACKSLASH_ESCAPES
        return quote_plain if plain else quote

    async def run(self, sql: bytes, *, commits: bool = False) -> list[Result]:
        """Run statements in one round trip; the first that fails is the last that runs.

        Args:
            sql: One or more statements, in UTF-8.
            commits: Whether a write in them may be committed by the time that they end.

        Returns:
            What each of them gave.

        Raises:
            MySQLError: The server refused a statement; the connection is whole.
            StoreUnavailableError: The connection broke, and was closed.
            OutcomeUnknownError: The same after a write was sent that may have been committed.
            SagaStoreError: The server has left the write uncommitted; the connection was closed.
        """
        connection = self.connection
        if connection.closed:
            raise connection_lost(aiomysql.InterfaceError(0, "closed"), write_sent=False)
        results: list[Result] = []
        # A third of what asyncio.timeout() costs, and that is a few per cent of a lone get.
        timer = self._loop.call_later(self.command_timeout, self._expire)
        try:
            await connection.query(sql)
            result = connection._result  # noqa: SLF001 - what a Cursor does, without its SHOW WARNINGS
            results.append(Result(result.rows or (), result.affected_rows, result.warning_count))
            while result.has_next:
                await connection.next_result()
                result = connection._result  # noqa: SLF001
                results.append(Result(result.rows or (), result.affected_rows, result.warning_count))
        except MySQLError as error:
            if not is_lost(error):
                raise
            self.close()
            raise connection_lost(TimeoutError() if self._is_late else error, write_sent=commits) from error
        except (OSError, EOFError) as error:
            self.close()
            raise connection_lost(error, write_sent=commits) from error
        except BaseException:
            self.close()  # half of an answer may be unread, which the next user would take for his own
            raise
        finally:
            timer.cancel()
        if commits and connection.get_transaction_status():
            self.close()  # which rolls back
            raise SagaStoreError(
                "nothing was written: the session is not in autocommit mode, as behind a pooler that forgets what its "
                "clients set"
            )
        return results

    def _expire(self) -> None:
        self._is_late = True
        writer: Any = self.connection._writer  # noqa: SLF001
        if writer is not None:
            writer.transport.abort()  # so whoever reads an answer finds the connection broken

    async def roll_back(self) -> None:
        """Roll back, or close the connection, which makes the server do it."""
        try:
            await self.run(b"ROLLBACK")
        except (MySQLError, SagaStoreError):
            self.close()

    def close(self) -> None:
        """Close the connection without a word."""
        self.connection.close()


async def connect(address: Address, *, connect_timeout: float, command_timeout: float, lock_timeout: int) -> Session:
    """Connect and log in.

    Args:
        address: Where to.
        connect_timeout: How long all of it may take, in seconds.
        command_timeout: How long a text of statements may take, in seconds.
        lock_timeout: How long a statement shall wait for a lock, in seconds.

    Raises:
        StoreUnavailableError: There was no answer, or the server takes nobody now.
        SagaStoreError: The server refused, or does not encrypt.
    """
    options: dict[str, Any] = {
        "host": address.host,
        "port": address.port,
        "user": address.user,
        "password": address.password,
        "db": address.database or None,
        "unix_socket": address.unix_socket,
        "charset": "utf8mb4",
        "client_flag": _CLIENT_FOUND_ROWS,  # an update that changes nothing still counts the row that it matched
        "autocommit": None,  # it is set below, with the rest
        "ssl": address.tls,
        "program_name": "saga-bus",
    }
    connection = aiomysql.Connection(**options)
    try:
        async with asyncio.timeout(connect_timeout):
            await _log_in(connection)
    except MySQLError as error:
        if is_lost(error):
            raise connection_lost(error, write_sent=False) from error
        raise translated(error) from error
    except (OSError, EOFError) as error:
        raise connection_lost(error, write_sent=False) from error
    except RuntimeError as error:  # aiomysql's own: a package for the server's way to log in is not installed
        raise SagaStoreError(f"{error}; pip install 'saga-bus-store-mysql[rsa]', or use TLS") from error
    session = Session(connection, command_timeout)
    writer: Any = connection._writer  # noqa: SLF001
    if address.tls is not None and writer.get_extra_info("ssl_object") is None:
        session.close()  # aiomysql goes on without encryption where the server offers none
        raise SagaStoreError("the server does not offer TLS, which the URL asks for")
    try:
        await session.run(_SETTINGS % lock_timeout)
    except MySQLError as error:
        session.close()
        raise translated(error) from error
    return session


async def _log_in(connection: Any) -> None:
    try:
        await connection._connect()  # noqa: SLF001 - aiomysql.connect() leaves the socket open where it is cancelled
    except BaseException:
        connection.close()
        raise


def is_alive(connection: Any) -> bool:
    """Whether nothing has come in on an idle connection, as far as is known without asking.

    Args:
        connection: An aiomysql connection.
    """
    reader = connection._reader  # noqa: SLF001 - aiomysql's own pool looks at the same things
    return (
        not connection.closed
        and not reader.at_eof()
        and reader.exception() is None
        and not getattr(reader, "eof_received", False)
    )


def check_charset(connection: Any) -> None:
    """Refuse a connection on which texts would mean something else.

    Args:
        connection: An aiomysql connection.

    Raises:
        InvalidSagaError: Its character set is not utf8mb4.
    """
    if connection.charset != "utf8mb4":
        raise InvalidSagaError(
            f"the given connection has the character set {connection.charset!r}: make it with charset='utf8mb4'"
        )

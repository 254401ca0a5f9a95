"""Where MySQL 8 and MariaDB differ, all of it.

A text in version comments is one statement for both: only MySQL from 8.0.17 on reads ``/*!80017 ... */`` (MariaDB
leaves out the numbers 50700 to 99999), and only MariaDB reads ``/*M! ... */``. So the schema is one script for
both servers. What cannot be written that way is a `Dialect`, which a connection's server version picks.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EXACT_COLLATIONS", "EXACT_TEXT", "MARIADB", "MYSQL", "NEW_ROW", "Dialect", "dialect_of", "new_value"]

# Compares byte by byte and pads nothing: "a", "A", "á" and "a " are four ids. (utf8mb4_bin ignores trailing
# blanks on both servers.) VARBINARY would do as well, but the clients of both show it as hexadecimal digits.
EXACT_TEXT = "CHARACTER SET utf8mb4 COLLATE /*!80017 utf8mb4_0900_bin */ /*M! utf8mb4_nopad_bin */"
EXACT_COLLATIONS = frozenset({"utf8mb4_0900_bin", "utf8mb4_nopad_bin"})

# Stands before ON DUPLICATE KEY UPDATE: MySQL gives the new row a name, MariaDB does not know that.
NEW_ROW = "/*!80019 AS new */"


def new_value(column: str) -> str:
    """The new row's value of a column, behind ON DUPLICATE KEY UPDATE.

    Args:
        column: The column's name.
    """
    return f"/*!80019 new.{column} */ /*M! VALUES({column}) */"


@dataclass(frozen=True)
class Dialect:
    """One of the two servers.

    Args:
        name: What to call it.
        before_impatient: Goes before a single write that shall not wait for the locks of others.
        after_impatient: Goes behind it, and must be run alone where the write failed.
        patience: How long such a write waits all the same, in seconds.
    """

    name: str
    before_impatient: bytes
    after_impatient: bytes
    patience: int

    def impatient(self, write: bytes) -> bytes:
        """One write as a text of statements that does not wait for the locks of others.

        Args:
            write: The write; its result is the one that has affected rows.
        """
        return self.before_impatient + write + self.after_impatient


MARIADB = Dialect("MariaDB", b"SET STATEMENT innodb_lock_wait_timeout = 0 FOR ", b"", 0)
# MySQL knows no timeout for one INSERT, and none below a second.
MYSQL = Dialect(
    "MySQL",
    b"SET @saga_bus_lock_wait = @@SESSION.innodb_lock_wait_timeout, SESSION innodb_lock_wait_timeout = 1;",
    # Behind a pooler it may run where the variable has no value, which has no type either.
    b";SET SESSION innodb_lock_wait_timeout = "
    b"CAST(COALESCE(@saga_bus_lock_wait, @@GLOBAL.innodb_lock_wait_timeout) AS SIGNED)",
    1,
)


def dialect_of(server_version: str) -> Dialect:
    """The dialect of a server.

    Args:
        server_version: What the server says in its greeting, such as ``8.4.5`` or ``5.5.5-10.11.6-MariaDB``.
    """
    return MARIADB if "mariadb" in server_version.lower() else MYSQL

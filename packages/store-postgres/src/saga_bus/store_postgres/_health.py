"""What about a server puts saga state at risk."""

from __future__ import annotations

from typing import Any

__all__ = ["warnings_about"]

_SETTINGS = """\
SELECT current_setting('synchronous_commit'), current_setting('fsync'), current_setting('full_page_writes'),
       current_setting('transaction_read_only'), pg_is_in_recovery(), current_setting('server_encoding'),
       current_setting('server_version_num')::integer,
       ARRAY(
           SELECT a.attname::text
           FROM pg_catalog.pg_attribute AS a
           JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid
           JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
           JOIN pg_catalog.pg_collation AS o ON o.oid = a.attcollation
           WHERE n.nspname = $1 AND c.relname = $2 AND NOT o.collisdeterministic
             AND a.attname IN ('saga_name', 'saga_id', 'correlation_id')
           ORDER BY a.attnum
       )"""
_OLDEST = 130_000


async def warnings_about(connection: Any, schema: str, table: str) -> list[str]:
    """Ask the server for its settings, and for the collations of the table's keys.

    Args:
        connection: Any connection.
        schema: The schema's name, not quoted.
        table: The table's name, not quoted.

    Returns:
        A sentence for each setting that puts saga state at risk.
    """
    commit, fsync, pages, read_only, standby, encoding, version, inexact = await connection.fetchrow(
        _SETTINGS, schema, table
    )
    warnings = []
    if commit == "off":
        warnings.append("synchronous_commit is off: a crash of the server loses the last acknowledged writes")
    if fsync == "off":
        warnings.append("fsync is off: a power failure can destroy the database")
    if pages == "off":
        warnings.append("full_page_writes is off: a power failure can damage pages for good")
    if standby:
        warnings.append("the server is a standby: it takes no writes, and reads may be behind the primary")
    elif read_only == "on":
        warnings.append("transactions are read-only by default: no write will succeed")
    if encoding != "UTF8":
        warnings.append(f"the database's encoding is {encoding}, not UTF8: many characters cannot be stored")
    # Only such a collation takes two texts for equal that are not (https://www.postgresql.org/docs/current/collation.html).
    if inexact:
        warnings.append(f"{', '.join(inexact)} has a nondeterministic collation: keys of different sagas may be equal")
    if version < _OLDEST:
        warnings.append(f"PostgreSQL {version // 10_000} is older than 13, the oldest one that is tested")
    return warnings

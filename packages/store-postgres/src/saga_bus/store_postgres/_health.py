"""What about a server puts saga state at risk."""

from __future__ import annotations

from typing import Any

__all__ = ["warnings_about"]

_SETTINGS = """\
SELECT current_setting('synchronous_commit'), current_setting('fsync'), current_setting('full_page_writes'),
       current_setting('transaction_read_only'), pg_is_in_recovery(), current_setting('server_encoding'),
       current_setting('server_version_num')::integer"""
_OLDEST = 130_000


async def warnings_about(connection: Any) -> list[str]:
    """Ask the server for its settings.

    Args:
        connection: Any connection.

    Returns:
        A sentence for each setting that puts saga state at risk.
    """
    commit, fsync, pages, read_only, standby, encoding, version = await connection.fetchrow(_SETTINGS)
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
    if version < _OLDEST:
        warnings.append(f"PostgreSQL {version // 10_000} is older than 13, the oldest one that is tested")
    return warnings

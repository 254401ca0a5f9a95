"""Settings of a server that put saga state at risk."""

from __future__ import annotations

from saga_bus.store_mysql._driver import Session
from saga_bus.store_mysql._schema import Place

__all__ = ["warnings_about"]

_VARIABLES = b"""\
SHOW VARIABLES WHERE Variable_name IN (
    'innodb_flush_log_at_trx_commit', 'sync_binlog', 'log_bin', 'read_only', 'innodb_doublewrite',
    'transaction_isolation', 'tx_isolation', 'sql_mode', 'character_set_client'
)"""
_ENGINE = (
    "SELECT CAST(engine AS BINARY) FROM information_schema.tables "
    "WHERE table_schema = COALESCE({schema}, DATABASE()) AND table_name = {table}"
)


async def warnings_about(place: Place, session: Session) -> list[str]:
    """Read the settings and say what puts sagas at risk.

    Args:
        place: The table.
        session: Any session.
    """
    schema = "NULL" if place.schema is None else session.quote(place.schema.encode()).decode()
    table = session.quote(place.table.encode()).decode()
    variables, engine = await session.run(_VARIABLES + b";" + _ENGINE.format(schema=schema, table=table).encode())
    values = {_text(name): _text(value) for name, value in variables.rows}
    warnings: list[str] = []
    if values.get("innodb_flush_log_at_trx_commit", "1") != "1":
        warnings.append("innodb_flush_log_at_trx_commit is not 1: a power failure can lose the last commits")
    if values.get("log_bin", "OFF").upper() in ("ON", "1") and values.get("sync_binlog", "1") == "0":
        warnings.append("sync_binlog is 0: after a power failure replicas can lack the last commits")
    if values.get("innodb_doublewrite", "ON").upper() in ("OFF", "0"):
        warnings.append("innodb_doublewrite is off: a power failure in a write can damage the table")
    if values.get("read_only", "OFF").upper() in ("ON", "1"):
        warnings.append("read_only is on: this is a replica, or a primary that was taken out of service")
    isolation = values.get("transaction_isolation") or values.get("tx_isolation", "")
    if isolation.upper() == "READ-UNCOMMITTED":
        warnings.append("the isolation level is READ UNCOMMITTED: a get can return a state that is never committed")
    if "STRICT_" not in values.get("sql_mode", ""):
        warnings.append("sql_mode is not strict: other writers' values can be cut without an error (never a saga's)")
    if values.get("character_set_client", "utf8mb4") != "utf8mb4":
        warnings.append(f"the session's character set is {values['character_set_client']}: texts can be misread")
    for (name,) in engine.rows:
        if name is not None and _text(name).lower() != "innodb":
            warnings.append(f"the table's engine is {_text(name)}, not InnoDB: there are no transactions")
    return warnings


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value

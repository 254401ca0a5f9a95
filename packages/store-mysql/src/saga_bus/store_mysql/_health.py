"""Settings of a server that put saga state at risk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from saga_bus.store_mysql._driver import Session
from saga_bus.store_mysql._schema import Place, select_columns, wrong_columns

__all__ = ["warnings_about"]

_VARIABLES = b"""\
SHOW VARIABLES WHERE Variable_name IN (
    'innodb_flush_log_at_trx_commit', 'sync_binlog', 'log_bin', 'read_only', 'innodb_doublewrite',
    'transaction_isolation', 'tx_isolation', 'sql_mode', 'character_set_client', 'autocommit'
)"""
_ENGINE = (
    "SELECT CAST(engine AS BINARY) FROM information_schema.tables "
    "WHERE table_schema = COALESCE({schema}, DATABASE()) AND table_name = {table}"
)


async def warnings_about(place: Place, session: Session, *, commits: bool) -> list[str]:
    """Read the settings and say what puts sagas at risk.

    Args:
        place: The table.
        session: Any session.
        commits: Whether it should be in autocommit mode.
    """
    schema = "NULL" if place.schema is None else session.quote(place.schema.encode()).decode()
    table = session.quote(place.table.encode()).decode()
    of_engine = _ENGINE.format(schema=schema, table=table).encode()
    texts = (_VARIABLES, of_engine, select_columns(place, session))
    variables, engine, columns = await session.run(b";".join(texts))
    warnings = list(_of_settings({_text(name): _text(value) for name, value in variables.rows}, commits=commits))
    for (name,) in engine.rows:
        if name is not None and _text(name).lower() != "innodb":
            warnings.append(f"the table's engine is {_text(name)}, not InnoDB: there are no transactions")
    warnings.extend(wrong_columns(columns.rows))
    return warnings


def _of_settings(values: Mapping[str, str], *, commits: bool) -> Iterator[str]:
    if values.get("innodb_flush_log_at_trx_commit", "1") != "1":
        yield "innodb_flush_log_at_trx_commit is not 1: a power failure can lose the last commits"
    if values.get("log_bin", "OFF").upper() in ("ON", "1") and values.get("sync_binlog", "1") != "1":
        yield "sync_binlog is not 1: a power failure can lose the last commits, or replicas can lack them"
    doublewrite = values.get("innodb_doublewrite", "ON").upper()
    if doublewrite in ("OFF", "0", "DETECT_ONLY"):
        yield f"innodb_doublewrite is {doublewrite}: a power failure in a write can damage the table"
    if values.get("read_only", "OFF").upper() in ("ON", "1"):
        yield "read_only is on: this is a replica, or a primary that was taken out of service"
    isolation = values.get("transaction_isolation") or values.get("tx_isolation", "")
    if isolation.upper() == "READ-UNCOMMITTED":
        yield "the isolation level is READ UNCOMMITTED: a get can return a state that is never committed"
    if "STRICT_" not in values.get("sql_mode", ""):
        yield "sql_mode is not strict: what does not fit into its column is cut, and only then an error"
    if commits and values.get("autocommit", "ON").upper() in ("OFF", "0"):
        yield "autocommit is off: a pooler forgets what its clients set, so the server must have it on"
    if values.get("character_set_client", "utf8mb4") != "utf8mb4":
        yield f"the session's character set is {values['character_set_client']}: texts can be misread"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value

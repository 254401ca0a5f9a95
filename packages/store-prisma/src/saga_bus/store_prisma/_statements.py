"""The SQL of each database: the table, what is looked up in its catalog, and what is asked for by ``ping``.

The model is written so that Prisma Migrate makes a table that serves, too. These tables have what a model cannot
say: texts that compare byte by byte. That of SQLite is the table of saga-bus-store-sqlite, which can share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DATABASES", "Database"]


@dataclass(frozen=True)
class Database:
    """The statements for one database.

    Args:
        table: Creates the table; {table} is its quoted name, other words in braces are quoted names after it.
        columns: What a catalog knows of the columns of the table $1: name, kind, width (NULL or -1 for any).
        keys: Its unique keys: key, name (of the column) and place, a row for each column.
        health: One row of settings.
        kinds: The kinds of a column that serve for each of Prisma's types.
    """

    table: str
    columns: str
    keys: str
    health: str
    kinds: Mapping[str, frozenset[str]]


_POSTGRESQL = Database(
    table="""\
CREATE TABLE {table} (
    saga_name           text    COLLATE "C" NOT NULL,
    saga_id             text    COLLATE "C" NOT NULL,
    correlation_id      text    COLLATE "C" NOT NULL,
    version             bigint  NOT NULL,
    is_completed        boolean NOT NULL,
    created_at          bigint  NOT NULL,
    updated_at          bigint  NOT NULL,
    updated_hour        bigint  NOT NULL,
    archived_at         bigint,
    timeout_expires_at  bigint,
    outbox_pending      boolean NOT NULL,
    state               text    NOT NULL,
    CONSTRAINT {pkey} PRIMARY KEY (saga_name, saga_id),
    CONSTRAINT {correlation_key} UNIQUE (saga_name, correlation_id)
) WITH (fillfactor = 50)""",
    columns="""\
SELECT column_name::text AS name, data_type::text AS kind, character_maximum_length::int AS width
FROM information_schema.columns
WHERE table_name = $1 AND table_schema = coalesce(nullif($2, ''), current_schema()::text)""",
    keys="""\
SELECT i.indexrelid::int AS key, a.attname::text AS name, k.place::int AS place
FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.indrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k(number, place)
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.number
WHERE i.indisunique AND i.indisvalid AND i.indpred IS NULL AND c.relname = $1
    AND n.nspname = coalesce(nullif($2, ''), current_schema()::text)""",
    health="SELECT current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS synchronous_commit",
    kinds={
        "String": frozenset({"text", "character varying"}),
        "BigInt": frozenset({"bigint"}),
        "Boolean": frozenset({"boolean"}),
    },
)

_SQLITE = Database(
    table="""\
CREATE TABLE {table} (
    saga_name           TEXT    NOT NULL,
    saga_id             TEXT    NOT NULL,
    correlation_id      TEXT    NOT NULL,
    version             INTEGER NOT NULL,
    is_completed        INTEGER NOT NULL,
    created_at          INTEGER NOT NULL,
    updated_at          INTEGER NOT NULL,
    updated_hour        INTEGER NOT NULL,
    archived_at         INTEGER,
    timeout_expires_at  INTEGER,
    outbox_pending      INTEGER NOT NULL,
    state               TEXT    NOT NULL,
    PRIMARY KEY (saga_name, saga_id),
    UNIQUE (saga_name, correlation_id)
) STRICT""",
    columns="SELECT name, lower(type) AS kind, -1 AS width FROM pragma_table_info(?1) WHERE ?2 = ''",
    keys="""\
SELECT l.seq AS key, i.name AS name, i.seqno AS place
FROM pragma_index_list(?1) AS l, pragma_index_xinfo(l.name) AS i
WHERE l."unique" = 1 AND l.partial = 0 AND i.key = 1 AND i.coll = 'BINARY' AND ?2 = ''""",
    health="""\
SELECT (SELECT journal_mode FROM pragma_journal_mode) AS journal_mode,
       (SELECT synchronous FROM pragma_synchronous) AS synchronous""",
    kinds={
        "String": frozenset({"text"}),
        "BigInt": frozenset({"integer", "bigint"}),
        "Boolean": frozenset({"integer", "boolean"}),
    },
)

# A text in version comments is one statement for both servers: only MySQL from 8.0.17 on reads the first, only
# MariaDB the second. (utf8mb4_bin would ignore trailing blanks on both.)
_EXACT = "CHARACTER SET utf8mb4 COLLATE /*!80017 utf8mb4_0900_bin */ /*M! utf8mb4_nopad_bin */"

_MYSQL = Database(
    table=f"""\
CREATE TABLE IF NOT EXISTS {{table}} (
    saga_name           VARCHAR(128) {_EXACT} NOT NULL,
    saga_id             VARCHAR(128) {_EXACT} NOT NULL,
    correlation_id      VARCHAR(256) {_EXACT} NOT NULL,
    version             BIGINT  NOT NULL,
    is_completed        BOOLEAN NOT NULL,
    created_at          BIGINT  NOT NULL,
    updated_at          BIGINT  NOT NULL,
    updated_hour        BIGINT  NOT NULL,
    archived_at         BIGINT  NULL,
    timeout_expires_at  BIGINT  NULL,
    outbox_pending      BOOLEAN NOT NULL,
    state               LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    PRIMARY KEY (saga_name, saga_id),
    UNIQUE KEY {{correlation_key}} (saga_name, correlation_id),
{{indexes}}
) ENGINE = InnoDB, ROW_FORMAT = DYNAMIC, DEFAULT CHARACTER SET = utf8mb4""",
    # A text that does not compare byte by byte is of no kind that serves.
    columns="""\
SELECT column_name AS name, character_maximum_length AS width,
    CASE WHEN column_name IN ('saga_name', 'saga_id', 'correlation_id')
              AND collation_name NOT IN ('utf8mb4_0900_bin', 'utf8mb4_nopad_bin')
         THEN CONCAT(data_type, ' with the collation ', collation_name) ELSE data_type END AS kind
FROM information_schema.columns
WHERE table_name = ? AND table_schema = COALESCE(NULLIF(?, ''), DATABASE())""",
    keys="""\
SELECT index_name AS `key`, column_name AS name, seq_in_index AS place
FROM information_schema.statistics
WHERE non_unique = 0 AND sub_part IS NULL AND table_name = ?
    AND table_schema = COALESCE(NULLIF(?, ''), DATABASE())""",
    health="SELECT @@innodb_flush_log_at_trx_commit AS innodb_flush_log_at_trx_commit",
    kinds={
        "String": frozenset({"varchar", "longtext"}),
        "BigInt": frozenset({"bigint"}),
        "Boolean": frozenset({"tinyint"}),
    },
)

_BINARY = "COLLATE Latin1_General_100_BIN2"

_SQLSERVER = Database(
    table=f"""\
IF OBJECT_ID({{literal}}) IS NULL CREATE TABLE {{table}} (
    saga_name           NVARCHAR(257) {_BINARY} NOT NULL,
    saga_id             NVARCHAR(257) {_BINARY} NOT NULL,
    correlation_id      NVARCHAR(513) {_BINARY} NOT NULL,
    version             BIGINT NOT NULL,
    is_completed        BIT NOT NULL,
    created_at          BIGINT NOT NULL,
    updated_at          BIGINT NOT NULL,
    updated_hour        BIGINT NOT NULL,
    archived_at         BIGINT NULL,
    timeout_expires_at  BIGINT NULL,
    outbox_pending      BIT NOT NULL,
    state               NVARCHAR(MAX) NOT NULL,
    CONSTRAINT {{pkey}} PRIMARY KEY NONCLUSTERED (saga_name, saga_id),
    CONSTRAINT {{correlation_key}} UNIQUE NONCLUSTERED (saga_name, correlation_id),
{{indexes}}
)""",
    columns="""\
SELECT COLUMN_NAME AS name, CHARACTER_MAXIMUM_LENGTH AS width,
    CASE WHEN COLUMN_NAME IN ('saga_name', 'saga_id', 'correlation_id') AND COLLATION_NAME NOT LIKE '%[_]BIN2'
         THEN CONCAT(DATA_TYPE, ' with the collation ', COLLATION_NAME) ELSE DATA_TYPE END AS kind
FROM INFORMATION_SCHEMA.COLUMNS
WHERE TABLE_NAME = @P1 AND TABLE_SCHEMA = COALESCE(NULLIF(@P2, ''), SCHEMA_NAME())""",
    keys="""\
SELECT i.index_id AS [key], c.name AS name, k.key_ordinal AS place
FROM sys.indexes AS i
JOIN sys.index_columns AS k ON k.object_id = i.object_id AND k.index_id = i.index_id AND k.key_ordinal > 0
JOIN sys.columns AS c ON c.object_id = k.object_id AND c.column_id = k.column_id
JOIN sys.tables AS t ON t.object_id = i.object_id
WHERE i.is_unique = 1 AND i.has_filter = 0 AND t.name = @P1
    AND SCHEMA_NAME(t.schema_id) = COALESCE(NULLIF(@P2, ''), SCHEMA_NAME())""",
    health="SELECT 1 AS answer",
    kinds={
        "String": frozenset({"nvarchar"}),
        "BigInt": frozenset({"bigint"}),
        "Boolean": frozenset({"bit"}),
    },
)

DATABASES: Mapping[str, Database] = {
    "postgresql": _POSTGRESQL,
    "sqlite": _SQLITE,
    "mysql": _MYSQL,
    "sqlserver": _SQLSERVER,
}

// The databases behind the WASM engine, which has no driver of its own: Prisma's adapter for PostgreSQL, and one for SQLite.
"use strict";

const { ColumnTypeEnum, err, ok } = require("@prisma/driver-adapter-utils");

const PATIENCE = 5000; // milliseconds; how long the native engine waits for a lock of SQLite
const LONGEST_PAUSE = 16;
const DECLARED = {
  BIGINT: ColumnTypeEnum.Int64,
  BOOLEAN: ColumnTypeEnum.Boolean,
  INTEGER: ColumnTypeEnum.Int64,
  INT: ColumnTypeEnum.Int64,
  REAL: ColumnTypeEnum.Double,
  TEXT: ColumnTypeEnum.Text,
};
const BUSY = new Set([5, 261]); // SQLITE_BUSY and SQLITE_BUSY_RECOVERY; a stale snapshot cannot be waited for

const LOCKED = new Set([5, 6]); // of both kinds, the waited for and the hopeless

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

class SqliteConnection {
  provider = "sqlite";
  adapterName = "saga-bus-sqlite";
  options = { usePhantomQuery: false };

  constructor(path, inTransaction = false) {
    this.path = path;
    this.inTransaction = inTransaction;
    this.open();
  }

  open() {
    const Database = require("libsql");
    this.database = new Database(this.path);
    this.database.defaultSafeIntegers(true);
  }

  async queryRaw({ sql, args }) {
    return this.patiently(sql, (statement) => {
      const rows = statement.raw().all(...args.map(toSqlite));
      const columns = statement.columns();
      const columnTypes = columns.map(({ type }, index) => DECLARED[type?.toUpperCase()] ?? typeOf(rows, index));
      return { columnNames: columns.map(({ name }) => name), columnTypes, rows: rows.map((row) => row.map(fromSqlite)) };
    });
  }

  async executeRaw({ sql, args }) {
    return this.patiently(sql, (statement) => {
      if (statement.reader) return statement.raw().all(...args.map(toSqlite)).length;
      return Number(statement.run(...args.map(toSqlite)).changes);
    });
  }

  // SQLite would wait in this process's one thread, and so for a transaction that this process itself must end.
  async patiently(sql, run) {
    const deadline = Date.now() + PATIENCE;
    let statement;
    for (let pause = 1; ; pause = Math.min(2 * pause, LONGEST_PAUSE)) {
      try {
        statement ??= this.database.prepare(sql);
        return ok(run(statement));
      } catch (error) {
        if (typeof error.rawCode !== "number") throw error;
        const isBusy = BUSY.has(error.rawCode);
        if (!isBusy || Date.now() > deadline) {
          if (LOCKED.has(error.rawCode & 255)) this.abandon();
          return err({ kind: "Sqlite", extendedCode: error.rawCode, message: error.message });
        }
      }
      await sleep(pause);
    }
  }

  // A statement that met a lock goes on being under way, as libsql resets it only when it is run again; with it the
  // connection would stay in its old snapshot. In a transaction the engine's ROLLBACK ends it.
  abandon() {
    if (this.inTransaction) return;
    this.database.close();
    this.open();
  }

  async startTransaction() {
    return ok(new SqliteConnection(this.path, true));
  }

  async commit() {
    this.database.close();
    return ok(undefined);
  }

  async rollback() {
    this.database.close();
    return ok(undefined);
  }
}

function toSqlite(value) {
  if (typeof value === "boolean") return value ? 1n : 0n;
  if (typeof value === "number" && Number.isInteger(value)) return BigInt(value);
  return value;
}

function fromSqlite(value) {
  return typeof value === "bigint" ? value.toString() : value;
}

function typeOf(rows, index) {
  const value = rows.map((row) => row[index]).find((each) => each !== null);
  if (typeof value === "bigint") return ColumnTypeEnum.Int64;
  return typeof value === "number" ? ColumnTypeEnum.Double : ColumnTypeEnum.Text;
}

function postgres(text) {
  const { Pool } = require("pg");
  const { PrismaPg } = require("@prisma/adapter-pg");
  const url = new URL(text);
  const option = (name, usual) => {
    const value = url.searchParams.get(name) ?? usual;
    url.searchParams.delete(name);
    return value;
  };
  const schema = option("schema", "public");
  const pool = new Pool({
    max: Number(option("connection_limit", "5")),
    connectionTimeoutMillis: Number(option("pool_timeout", "10")) * 1000,
    connectionString: url.href,
  });
  pool.on("error", () => {}); // of an idle connection: the next query says what is wrong
  return new PrismaPg(pool, { schema });
}

function open(provider, url) {
  if (provider === "sqlite") return new SqliteConnection(url.replace(/^file:/, ""));
  if (provider === "postgresql") return postgres(url);
  throw new Error(`no database adapter for ${provider}`);
}

// What went wrong below the engine, in the words that the native engine has for it.
function explained(error) {
  const text = `${error.code ?? ""} ${error.message}`;
  if (/timeout exceeded when trying to connect/.test(text)) {
    return ["P2024", "Timed out fetching a new connection from the connection pool."];
  }
  if (/ECONNREFUSED|ENOTFOUND|ENOENT|SQLITE_CANTOPEN/.test(text)) return ["P1001", "Can't reach database server"];
  return ["P1017", `Server has closed the connection. ${text}`];
}

module.exports = { explained, open };

// Stands in for Prisma's query engine: its command line and HTTP on the outside, the official WASM engine inside.
"use strict";

const fs = require("node:fs");
const http = require("node:http");
const path = require("node:path");
const { bindAdapter } = require("@prisma/driver-adapter-utils");
const { explained, open } = require("./databases.cjs");
const { fromGraphQL, toGraphQL } = require("./protocol.cjs");

const VERSION = "393aa359c9ad4a4bb28630fb5613f9c281cde053"; // of the engine in npm's @prisma/client 5.17.0
const PARENT = process.ppid;
const NO_TRACE = "{}";
const STATUS = [
  [/not found/i, 404],
  [/already closed/i, 422],
  [/Unable to start a transaction/i, 504],
];

function engineClass(provider) {
  const runtime = path.join(path.dirname(require.resolve("@prisma/client/package.json")), "runtime");
  const glue = require(path.join(runtime, `query_engine_bg.${provider}.js`));
  const bytes = fs.readFileSync(path.join(runtime, `query_engine_bg.${provider}.wasm`));
  const instance = new WebAssembly.Instance(new WebAssembly.Module(bytes), { "./query_engine_bg.js": glue });
  glue.__wbg_set_wasm(instance.exports);
  return glue.QueryEngine;
}

// The provider and the URL of the schema's datasource, as the native engine finds them.
function datasource(schema, environment) {
  const block = /^datasource\s+\w+\s*\{([^}]*)\}/m.exec(schema)[1];
  const provider = /^\s*provider\s*=\s*"(\w+)"/m.exec(block)[1];
  const [overwritten] = JSON.parse(environment.OVERWRITE_DATASOURCES ?? "[]");
  const [, variable, literal] = /^\s*url\s*=\s*(?:env\("(\w+)"\)|"([^"]*)")/m.exec(block);
  return { provider, url: overwritten?.url ?? literal ?? environment[variable] };
}

class Engine {
  constructor(schema, environment) {
    const { provider, url } = datasource(schema, environment);
    this.adapter = bindAdapter(open(provider, url));
    const options = { datamodel: schema, logLevel: "error", logQueries: false };
    this.engine = new (engineClass(provider))(options, () => {}, this.adapter);
  }

  async query(body, transaction) {
    const { alias, request } = fromGraphQL(JSON.parse(body).query);
    const answer = JSON.parse(await this.engine.query(JSON.stringify(request), NO_TRACE, transaction));
    for (const error of answer.errors ?? []) this.explain(error.user_facing_error);
    return [200, toGraphQL(alias, answer)];
  }

  async transaction(id, verb, body) {
    const answer = JSON.parse(
      verb === "start"
        ? await this.engine.startTransaction(body, NO_TRACE)
        : await this.engine[`${verb}Transaction`](id, NO_TRACE),
    );
    if (!answer.message) return [200, answer];
    this.explain(answer);
    return [STATUS.find(([said]) => said.test(answer.message))?.[1] ?? 500, answer];
  }

  // An error of the adapter's own leaves it as a number alone.
  explain(error) {
    if (error.error_code !== "P2036") return;
    const { error: cause } = this.adapter.errorRegistry.consumeError(error.meta.id);
    [error.error_code, error.message] = explained(cause);
    error.meta = {};
  }
}

async function answer(engine, request, body) {
  if (request.url === "/status") return [200, { status: "ok" }];
  const [, id, verb] = /^\/transaction\/(?:([^/]+)\/)?(start|commit|rollback)$/.exec(request.url) ?? [];
  if (verb !== undefined) return engine.transaction(id, verb, body);
  if (request.url === "/") return engine.query(body, request.headers["x-transaction-id"]);
  return [404, { message: "not found" }];
}

async function serve(port) {
  const engine = new Engine(fs.readFileSync(process.env.PRISMA_DML_PATH, "utf-8"), process.env);
  await engine.engine.connect(NO_TRACE);
  const server = http.createServer(async (request, response) => {
    let status = 500;
    let result;
    try {
      const chunks = [];
      for await (const chunk of request) chunks.push(chunk);
      [status, result] = await answer(engine, request, Buffer.concat(chunks).toString("utf-8"));
    } catch (error) {
      result = { is_panic: false, message: String(error) };
    }
    response.writeHead(status, { "content-type": "application/json" });
    response.end(JSON.stringify(result));
  });
  server.keepAliveTimeout = 0; // an idle connection stays, as with the native engine
  server.listen(port, "localhost");
  // A client that was killed cannot end its engine.
  setInterval(() => process.ppid === PARENT || process.exit(0), 500);
}

if (process.argv.includes("--version")) {
  console.log(`query-engine ${VERSION}`);
} else {
  for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(0));
  serve(Number(process.argv[process.argv.indexOf("-p") + 1]));
}

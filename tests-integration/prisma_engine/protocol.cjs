// Prisma Client Python speaks the engine's GraphQL, the WASM engine only its JSON protocol: from one to the other.
"use strict";

const TOKEN = /[\s,]*(?:([{}()[\]:])|("(?:[^"\\]|\\.)*")|(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*))/y;
const ACTIONS =
  /^(findUnique|findFirst|findMany|createOne|createMany|updateOne|updateMany|deleteOne|deleteMany|upsertOne|aggregate|groupBy)(\w+?)(OrThrow)?$/;

class Reader {
  constructor(text) {
    this.text = text;
    this.place = 0;
    this.next();
  }

  // Each token is a pair of its kind ("mark", "string", "number", "name" or "end") and its text.
  next() {
    const taken = this.token;
    TOKEN.lastIndex = this.place;
    const found = TOKEN.exec(this.text);
    if (found === null) {
      if (this.text.slice(this.place).trim() !== "") throw new Error(`no GraphQL at ${this.place}`);
      this.token = ["end", ""];
    } else {
      this.place = TOKEN.lastIndex;
      const kind = ["mark", "string", "number", "name"].find((_, index) => found[index + 1] !== undefined);
      this.token = [kind, found[0].replace(/^[\s,]+/, "")];
    }
    return taken;
  }

  at(mark) {
    return this.token[0] === "mark" && this.token[1] === mark;
  }

  skip(mark) {
    if (!this.at(mark)) throw new Error(`expected ${mark}, not ${this.token[1]} at ${this.place}`);
    this.next();
  }

  value() {
    if (this.at("{")) return this.object("{", "}");
    if (this.at("[")) {
      this.skip("[");
      const items = [];
      while (!this.at("]")) items.push(this.value());
      this.skip("]");
      return items;
    }
    const [kind, text] = this.next();
    if (kind === "string") return JSON.parse(text);
    if (kind === "number") {
      const number = Number(text);
      return Number.isSafeInteger(number) || /[.eE]/.test(text) ? number : { $type: "BigInt", value: text };
    }
    return { true: true, false: false, null: null }[text] ?? (text === "null" ? null : text);
  }

  object(opening, closing) {
    this.skip(opening);
    const fields = {};
    while (!this.at(closing)) {
      const [, name] = this.next();
      this.skip(":");
      fields[name] = this.value();
    }
    this.skip(closing);
    return fields;
  }

  query() {
    const query = {};
    if (this.at("(")) query.arguments = this.object("(", ")");
    query.selection = {};
    if (this.at("{")) {
      this.skip("{");
      while (!this.at("}")) {
        const [, name] = this.next();
        query.selection[name] = this.at("(") || this.at("{") ? this.query() : true;
      }
      this.skip("}");
    }
    return query;
  }
}

// { alias, request }: the name under which the client wants the answer, and the request of the JSON protocol.
function fromGraphQL(text) {
  const reader = new Reader(text);
  reader.next(); // query or mutation
  reader.skip("{");
  const [, alias] = reader.next();
  reader.skip(":");
  const [, operation] = reader.next();
  const query = reader.query();
  if (operation === "queryRaw" || operation === "executeRaw") return { alias, request: { action: operation, query } };
  const found = ACTIONS.exec(operation);
  if (found === null) throw new Error(`unknown operation ${operation}`);
  return { alias, request: { modelName: found[2], action: found[1] + (found[3] ?? ""), query } };
}

// The JSON protocol tags what JSON has no type for; GraphQL has the bare text.
function untagged(value) {
  if (Array.isArray(value)) return value.map(untagged);
  if (value === null || typeof value !== "object") return value;
  if ("$type" in value) return value.value;
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, untagged(inner)]));
}

function toGraphQL(alias, answer) {
  if (answer.errors) return answer;
  return { data: { [alias]: untagged(Object.values(answer.data)[0]) } };
}

module.exports = { fromGraphQL, toGraphQL };

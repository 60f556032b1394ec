#!/usr/bin/env node
// A client of authsock in Node.js, with nothing but its standard library: publishes an event and hears it.
//
// Run it as `authsock run -- ./client.mjs`, which makes it a session; by itself it is the owner.

import { existsSync, readFileSync } from "node:fs";
import { request } from "node:http";
import { createInterface } from "node:readline";

const runtime = process.env.XDG_RUNTIME_DIR || `/run/user/${process.getuid()}`;

// The socket, as docs/protocol.md says where to look.
function place() {
  if (process.env.AUTHSOCK_SOCKET) return process.env.AUTHSOCK_SOCKET;
  const found = `${runtime}/authsock.sock`;
  return existsSync(found) ? found : `${runtime}/authsock-ondemand.sock`;
}

// The token; it goes nowhere but into the header field of a request.
function token() {
  return readFileSync(process.env.AUTHSOCK_TOKEN_FILE || `${runtime}/authsock/token`, "ascii").trim();
}

// Begins one request, and gives the answer as soon as its head is there.
function begin(method, path, body, headers = {}) {
  return new Promise((resolve, reject) => {
    const fields = { Authorization: `Bearer ${token()}`, ...headers };
    request({ socketPath: place(), method, path, headers: fields, agent: false }, resolve)
      .on("error", reject)
      .end(body);
  });
}

async function text(answer) {
  let all = "";
  for await (const chunk of answer.setEncoding("utf8")) all += chunk;
  return all;
}

// One request; its answer, or an error with the daemon's own words.
async function ask(method, path, body, headers) {
  const answer = await begin(method, path, body, headers);
  const said = await text(answer);
  if (answer.statusCode >= 400) throw new Error(said ? JSON.parse(said).detail : answer.statusMessage);
  return said ? JSON.parse(said) : undefined;
}

// A method of JSON-RPC.
async function call(method, params) {
  const request = JSON.stringify({ jsonrpc: "2.0", id: 1, method, params });
  const answer = await ask("POST", "/v1/rpc", request, { "Content-Type": "application/json" });
  if (answer.error) throw new Error(answer.error.message);
  return answer.result;
}

// Events as they come: pairs of a name and what it tells. `event` is an event; see docs/http.md for the others.
async function* events(subjects, lastId) {
  const query = subjects.map((subject) => `subject=${encodeURIComponent(subject)}`).join("&");
  const answer = await begin("GET", `/v1/events?${query}`, undefined, lastId ? { "Last-Event-ID": lastId } : {});
  if (answer.statusCode !== 200) throw new Error(JSON.parse(await text(answer)).detail);
  let [name, data] = ["event", ""];
  for await (const line of createInterface({ input: answer, crlfDelay: Infinity })) {
    if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data = line.slice(6);
    else if (line === "" && data) {
      yield [name, JSON.parse(data)];
      [name, data] = ["event", ""];
    }
  }
}

try {
  const { session } = await ask("GET", "/v1/whoami");
  console.log("session", session.id, session.name);
  const stream = events(["recipes.>"]);
  const [begun] = (await stream.next()).value;
  if (begun !== "subscribed") throw new Error(begun);
  await call("events.publish", { subject: "recipes.node", data: { from: "node" } });
  const [name, event] = (await stream.next()).value;
  console.log(name, event.subject, event.publisher.name, JSON.stringify(event.data));
  process.exit(0);
} catch (problem) {
  console.error(`authsock: ${problem.message}`);
  process.exit(1);
}

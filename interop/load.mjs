// What a call costs: a bare upstream that counts its requests (`upstream`), and 16 callers who call it
// by HTTP alone, without an SDK (`drive ENDPOINT TOOL UPSTREAM`). It may not know what is between them.
import http from "node:http";

const CALLERS = 16;
const WARM = 10;
const MILLISECONDS = 4000;

const read = async (message) => {
  let text = "";
  for await (const part of message.setEncoding("utf8")) {
    text += part;
  }
  return text;
};

// Before 2026-07-28, with sessions; its tool answers with the token of its call.
const results = (params, token) => ({
  initialize: {
    protocolVersion: "2025-11-25",
    capabilities: { tools: {} },
    serverInfo: { name: "bare", version: "1" },
  },
  ping: {},
  "tools/list": { tools: [{ name: "token", inputSchema: { type: "object" } }] },
  "tools/call": { content: [{ type: "text", text: token ?? "none" }] },
});

const upstream = () => {
  let requests = 0;
  let sessions = 0;
  const server = http.createServer(async (request, response) => {
    if (request.url === "/count") {
      return response.end(String(requests));
    }
    requests += 1;
    const message = JSON.parse((await read(request)) || "{}");
    if (request.method !== "POST") {
      return response.writeHead(request.method === "DELETE" ? 200 : 405).end();
    }
    if (message.id === undefined) {
      return response.writeHead(202).end();
    }
    const result = results(message.params, request.headers.authorization)[message.method];
    const body = { jsonrpc: "2.0", id: message.id };
    Object.assign(body, result ? { result } : { error: { code: -32601, message: "unknown" } });
    const headers = { "content-type": "application/json" };
    if (message.method === "initialize") {
      headers["mcp-session-id"] = `session-${(sessions += 1)}`;
    }
    response.writeHead(result ? 200 : 404, headers).end(JSON.stringify(body));
  });
  server.listen(0, "127.0.0.1", () => {
    console.log(`listening on http://127.0.0.1:${server.address().port}/mcp`);
  });
};

const drive = async (endpoint, tool, upstreamAddress) => {
  const agent = new http.Agent({ keepAlive: true, maxSockets: CALLERS });
  const post = (message, more) =>
    new Promise((resolve, reject) => {
      const headers = { "content-type": "application/json", accept: "application/json, text/event-stream", ...more };
      const request = http.request(endpoint, { method: "POST", agent, headers }, async (response) => {
        resolve({ status: response.statusCode, headers: response.headers, text: await read(response) });
      });
      request.on("error", reject).end(JSON.stringify({ jsonrpc: "2.0", ...message }));
    });
  const count = async () => Number(await (await fetch(`${upstreamAddress}/count`)).text());

  const caller = async (who) => {
    const token = `Bearer caller-${who}-end`;
    const headers = { authorization: token };
    const clientInfo = { name: "load", version: "1" };
    const params = { protocolVersion: "2025-11-25", capabilities: {}, clientInfo };
    const begun = await post({ id: 0, method: "initialize", params }, headers);
    headers["mcp-session-id"] = begun.headers["mcp-session-id"];
    headers["mcp-protocol-version"] = "2025-11-25";
    await post({ method: "notifications/initialized" }, headers);
    let id = 0;
    return async () => {
      id += 1;
      const answer = await post({ id, method: "tools/call", params: { name: tool, arguments: {} } }, headers);
      return answer.status === 200 && answer.text.includes(`"${token}"`);
    };
  };

  const callers = await Promise.all(Array.from({ length: CALLERS }, (_, who) => caller(who)));
  let right = 0;
  let wrong = 0;
  const work = async (call, goesOn) => {
    while (goesOn()) {
      if (await call()) right += 1;
      else wrong += 1;
    }
  };
  const warm = callers.map((call) => {
    let left = WARM;
    return work(call, () => left-- > 0);
  });
  await Promise.all(warm);
  const [before, warmed] = [await count(), right + wrong];
  const began = performance.now();
  await Promise.all(callers.map((call) => work(call, () => performance.now() - began < MILLISECONDS)));
  const seconds = (performance.now() - began) / 1000;
  const calls = right + wrong - warmed;
  const each = ((await count()) - before) / calls;
  console.log(JSON.stringify({ persecond: calls / seconds, each, wrong }));
  agent.destroy();
};

const [role, ...rest] = process.argv.slice(2);
await { upstream, drive }[role](...rest);

// The TypeScript SDK's clients as the caller: does what `forwarding.py` asks for, and prints what it saw as
// JSON. The job names the SDK: `sdk` is its first line, `client` its second, which also speaks
// 2026-07-28. It may not know through which proxy it calls, nor what is right.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const job = JSON.parse(process.argv[2]);
const peers = createRequire(new URL(".peers/package.json", import.meta.url));
const load = (name) => import(pathToFileURL(peers.resolve(name)));

const sources = {
  sdk: ["@modelcontextprotocol/sdk/client/index.js", "@modelcontextprotocol/sdk/client/streamableHttp.js"],
  client: ["@modelcontextprotocol/client"],
};
const { Client, StreamableHTTPClientTransport } = Object.assign(
  {},
  ...(await Promise.all(sources[job.sdk].map(load))),
);

// One client whose HTTP requests have `base`, or what was named for the call that they carry.
class Caller {
  constructor(base, authProvider) {
    Object.assign(this, { base, calls: {}, answers: [], versions: [] });
    const mode = ["legacy", "auto"].includes(job.mode) ? job.mode : { pin: job.mode };
    const fetch = (url, init) => this.fetch(url, init);
    this.client = new Client({ name: "interop", version: "1" }, { versionNegotiation: { mode } });
    this.transport = new StreamableHTTPClientTransport(new URL(job.url), { fetch, authProvider });
  }

  async fetch(url, init = {}) {
    if (String(url) !== job.url) {
      this.answers.push([init.method ?? "GET", String(url)]);
      return fetch(url, init);
    }
    const message = init.method === "POST" ? JSON.parse(init.body) : {};
    const headers = new Headers(init.headers);
    const said = this.calls[message.params?.arguments?.call] ?? this.base;
    for (const [name, value] of Object.entries(said)) {
      headers.set(name, value);
    }
    const answer = await fetch(url, { ...init, headers });
    this.answers.push([init.method, answer.status, answer.headers.get("www-authenticate")]);
    return answer;
  }

  // What was sent with the call, and what arrived.
  async call({ call, sent = this.base, ...rest }) {
    this.calls[call] = sent;
    const result = await this.client.callTool({ name: "headers", arguments: { call, ...rest } });
    return { sent, arrived: result.structuredContent };
  }

  async during(work) {
    await this.client.connect(this.transport);
    try {
      return await work(this);
    } finally {
      await this.client.close();
    }
  }
}

const first = () =>
  new Caller(job.sent).during(async (it) => {
    const { tools } = await it.client.listTools();
    const pairs = [await it.call({ call: "first" }), await it.call({ call: "second", sent: job.renewed })];
    const version = it.client.getNegotiatedProtocolVersion?.() ?? it.transport.protocolVersion;
    return { version, tools: tools.map((tool) => tool.name), pairs };
  });

const crowd = async () => {
  const one = (calls) =>
    new Caller(calls[0].sent).during(async (it) => {
      const pairs = [];
      for (const call of calls) {
        pairs.push(await it.call(call));
      }
      return pairs;
    });
  return { pairs: (await Promise.all(job.crowd.map(one))).flat() };
};

const together = () =>
  new Caller(job.sent).during(async (it) => ({
    pairs: await Promise.all(job.together.map((call) => it.call(call))),
  }));

const revoke = (sent) =>
  fetch(job.revoke, { method: "POST", body: sent.authorization.replace("Bearer ", "") });

// The first 401 of a client that never had a good token, and of one whose token is revoked.
const refused = async () => {
  const seen = {};
  let it = new Caller(job.refused);
  try {
    await it.during((it) => it.call({ call: "refused" }));
  } catch (error) {
    seen.refused = { error: error.constructor.name, answers: it.answers };
  }
  it = new Caller(job.to_revoke);
  try {
    await it.during(async (it) => {
      seen.before = await it.call({ call: "before" });
      it.answers.length = 0;
      await revoke(job.to_revoke);
      await it.call({ call: "after" });
    });
  } catch (error) {
    seen.revoked = { error: error.constructor.name, answers: it.answers };
  }
  return seen;
};

// The SDK's own re-authorisation, with a refresh token, after the access token is revoked.
const renewed = async () => {
  let tokens = { access_token: job.to_renew, token_type: "Bearer", refresh_token: "refresh", issuer: job.issuer };
  const provider = {
    redirectUrl: "http://127.0.0.1/none",
    clientMetadata: { redirect_uris: ["http://127.0.0.1/none"] },
    clientInformation: () => ({ client_id: "interop", issuer: job.issuer }),
    tokens: () => tokens,
    saveTokens: (saved) => void (tokens = saved),
    redirectToAuthorization: () => {},
    saveCodeVerifier: () => {},
    codeVerifier: () => "none",
  };
  const it = new Caller({}, provider);
  return it.during(async () => {
    const before = await it.call({ call: "before" });
    it.answers.length = 0;
    await revoke({ authorization: `Bearer ${job.to_renew}` });
    const after = await it.call({ call: "after" });
    return { before: before.arrived, after: after.arrived, answers: it.answers };
  });
};

const seen = {};
for (const plan of [first, crowd, together, refused, renewed]) {
  seen[plan.name] = await plan();
}
console.log(JSON.stringify(seen));

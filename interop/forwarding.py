"""The headers of foreign clients, through each proxy, at a foreign upstream: what arrives, and what comes back.

It may not know how a client is made; `client.py` and `client.mjs` know.
"""

import json

from processes import HERE, NODE, PYTHON, run, serving

# The names of `examples/demo`, and its rules: `cookie` has none.
SENT = {
    "authorization": "Bearer alice-token-5f2c9e",
    "cookie": "session=b81d07aa43",
    "x-user-id": "user-alice-4711",
    "x-organization-id": "org-acme-01",
    "x-organization-ids": "acme-and-beta-0201,acme-and-gamma-0301",
    "x-custom-header": "anything that the operator allows",
}
ALLOWED = [name for name in SENT if name != "cookie"]
FLAGS = ["--allow-credential", "authorization"]
FLAGS += [part for name in ALLOWED[1:] for part in ("--allow", name)]

# What HTTP and MCP write for themselves on each hop.
TRANSPORT = ["accept", "connection", "content-length", "content-type", "host", "transfer-encoding", "user-agent"]

LEGACY, MODERN = "2025-11-25", "2026-07-28"
FASTMCP = [PYTHON, str(HERE / "client.py")]
TYPESCRIPT = [NODE, str(HERE / "client.mjs")]
# (title, program, its SDK, mode, version); the SDK's first line knows no other version.
CLIENTS = [
    ("FastMCP, legacy", FASTMCP, "fastmcp", "legacy", LEGACY),
    ("FastMCP, auto", FASTMCP, "fastmcp", "auto", MODERN),
    ("FastMCP, 2026-07-28", FASTMCP, "fastmcp", MODERN, MODERN),
    ("TypeScript v1, legacy", TYPESCRIPT, "sdk", "legacy", LEGACY),
    ("TypeScript v2, legacy", TYPESCRIPT, "client", "legacy", LEGACY),
    ("TypeScript v2, auto", TYPESCRIPT, "client", "auto", MODERN),
    ("TypeScript v2, 2026-07-28", TYPESCRIPT, "client", MODERN, MODERN),
]
# Where the upstream is from before 2026-07-28. The gateway is not, and speaks for it.
TO_LEGACY = [
    ("FastMCP, auto, to legacy", FASTMCP, "fastmcp", "auto", LEGACY),
    ("TypeScript v2, auto, to legacy", TYPESCRIPT, "client", "auto", LEGACY),
]


def upstream(metadata, *rest):
    return serving("upstream", [PYTHON, str(HERE / "upstream.py"), metadata, *rest])


def plan(run_id, mode, sdk, address, revoke, issuer):
    """What one client does: 20 clients of 10 calls each, then 10 calls at once in one session."""

    def named(who, call):
        sent = {"authorization": f"Bearer {run_id}-{who}", "x-user-id": who, "x-custom-header": call}
        return {"call": call, "sent": sent}

    at_once = [named(f"call-{i}", f"together-{i}") for i in range(10)]
    return {
        "url": f"{address}/mcp",
        "revoke": revoke,
        "issuer": issuer,
        "mode": mode,
        "sdk": sdk,
        "sent": SENT,
        "renewed": SENT | {"authorization": f"Bearer {run_id}-second"},
        "crowd": [[named(f"user-{i}", f"{i}-{j}") for j in range(10)] for i in range(20)],
        "together": [it | {"group": run_id, "size": len(at_once)} for it in at_once],
        "refused": {"x-user-id": "nobody"},
        "to_revoke": SENT | {"authorization": f"Bearer {run_id}-to-revoke"},
        "to_renew": f"{run_id}-to-renew",
    }


def faults_of(pair, direct):
    """What is wrong with what arrived; names only."""
    sent, arrived = pair["sent"], pair["arrived"]
    due = [name for name in sent if direct or name in ALLOWED]
    for name in due:
        if name not in arrived:
            yield f"`{name}` did not arrive"
        elif arrived[name] != sent[name]:
            yield f"`{name}` arrived with another value"
    if not direct:
        for name in arrived:
            if name not in due and name not in TRANSPORT and not name.startswith("mcp-"):
                yield f"`{name}` arrived and should not"


def judge(job, seen, version, name, metadata, renews):
    """Every fault in what one client saw."""
    direct = name == "direct"
    if seen["first"]["version"] != version:
        yield f"negotiated {seen['first']['version']}, not {version}"
    if seen["first"]["tools"] != ["headers"]:
        yield f"tools: {seen['first']['tools']}"
    for part, count in (("first", 2), ("crowd", 200), ("together", 10)):
        pairs = seen[part]["pairs"]
        if len(pairs) != count:
            yield f"{part}: {len(pairs)} answers to {count} calls"
        for fault in sorted({fault for pair in pairs for fault in faults_of(pair, direct)}):
            yield f"{part}: {fault}"
    for part in ("refused", "revoked"):
        answers = seen["refused"].get(part, {}).get("answers", [])
        challenges = [challenge for _, status, challenge in answers if status == 401]
        if not challenges:
            yield f"{part}: no 401 among {[status for _, status, _ in answers]}"
        for challenge in challenges:
            said = challenge or ""
            if f'resource_metadata="{metadata}"' not in said or ("upstream" in said) is not direct:
                yield f"{part}: the challenge is {challenge}"
    if renews:
        yield from renewal(job, seen["renewed"], metadata)


def renewal(job, seen, metadata):
    if ["GET", metadata] not in seen["answers"]:
        yield f"renewed: the metadata was not asked for: {seen['answers']}"
    if seen["before"].get("authorization") != f"Bearer {job['to_renew']}":
        yield "renewed: the first token did not arrive"
    if not seen["after"].get("authorization", "").startswith("Bearer renewed-"):
        yield "renewed: the new token did not arrive"


def check(clients, addresses, authority, report):
    """`addresses` begins with the upstream itself."""
    revoke = f"{addresses['direct']}/revoke"
    for title, program, sdk, mode, version in clients:
        cells, faults = [], []
        for name, address in addresses.items():
            run_id = f"{name}-{sdk}-{mode}"
            job = plan(run_id, mode, sdk, address, revoke, authority.address)
            out, err, ended = run([*program, json.dumps(job)], 60)
            due = MODERN if name == "gateway" and mode == "auto" else version
            if ended:
                renews = sdk != "fastmcp"
                found = list(judge(job, json.loads(out), due, name, authority.metadata(name), renews))
            else:
                said = [line for line in err.splitlines() if "Error" in line] or [err]
                found = [f"ended with an error: {said[-1].strip()[:200]}"]
            cells.append(f"{len(found)} faults" if found else "passes")
            faults += [f"{name}: {fault}" for fault in found]
        report.row(title, cells, faults)

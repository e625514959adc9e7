"""FastMCP as the upstream: its one tool answers with the HTTP headers of its own call.

It demands a bearer token on every request, and forgets one that is revoked. With `legacy` it speaks no
version from 2026-07-28 on. It may not know who calls.
"""

import asyncio
import json
import socket
import sys

import uvicorn
from fastmcp import FastMCP
from fastmcp.server.dependencies import get_http_request

server = FastMCP("upstream")
revoked = set()
waiting = {}


@server.tool
async def headers(call: str, group: str = "", size: int = 1) -> dict[str, str]:
    """The headers of this call, as soon as `size` calls of `group` are in flight."""
    raw = get_http_request().headers.raw
    arrived = {}
    for name, value in raw:
        arrived.setdefault(name.decode().lower(), []).append(value.decode())
    if size > 1:
        state = waiting.setdefault(group, [0, asyncio.Event()])
        state[0] += 1
        if state[0] == size:
            state[1].set()
        await asyncio.wait_for(state[1].wait(), 20)
    return {name: " | ".join(values) for name, values in arrived.items()}


class Guard:
    """401 without a bearer token or with one that was revoked, told as `POST /revoke` with it."""

    def __init__(self, app, metadata, legacy):
        self.app, self.legacy = app, legacy
        self.challenge = f'Bearer realm="upstream", resource_metadata="{metadata}"'

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["path"] == "/revoke":
            revoked.add("Bearer " + (await receive())["body"].decode())
            return await answer(send, 204, [], b"")
        version = dict(scope["headers"]).get(b"mcp-protocol-version", b"")
        if self.legacy and version >= b"2026-07-28":
            return await answer(send, 400, [], b"Bad Request: Unsupported protocol version")
        said = [value.decode() for name, value in scope["headers"] if name == b"authorization"]
        if len(said) == 1 and said[0].startswith("Bearer ") and said[0] not in revoked:
            return await self.app(scope, receive, send)
        body = json.dumps({"error": "invalid_token"}).encode()
        names = [(b"www-authenticate", self.challenge.encode()), (b"content-type", b"application/json")]
        return await answer(send, 401, names, body)


async def answer(send, status, names, body):
    names = [*names, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": names})
    await send({"type": "http.response.body", "body": body})


def main(metadata, *rest):
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
    app = Guard(server.http_app(path="/mcp"), metadata, "legacy" in rest)
    config = uvicorn.Config(app, log_level="warning", lifespan="on")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])

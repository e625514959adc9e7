"""FastMCP's client as the caller: does what `forwarding.py` asks for, and prints what it saw as JSON.

It may not know through which proxy it calls, nor what is right.
"""

import asyncio
import json
import sys
from contextlib import asynccontextmanager

import httpx2
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport


class Caller:
    """One client whose HTTP requests have `base`, or what was named for the call that they carry."""

    def __init__(self, job, base):
        self.base, self.calls, self.answers = dict(base), {}, []
        transport = StreamableHttpTransport(job["url"], httpx_client_factory=self.http)
        self.client = Client(transport, mode=job["mode"], init_timeout=20, timeout=30)

    def http(self, **settings):
        hooks = {"request": [self.sends], "response": [self.got]}
        settings.setdefault("timeout", httpx2.Timeout(30))
        return httpx2.AsyncClient(event_hooks=hooks, **settings)

    async def sends(self, request):
        message = json.loads(request.content or b"{}")
        arguments = message.get("params", {}).get("arguments") or {}
        request.headers.update(self.calls.get(arguments.get("call"), self.base))

    async def got(self, response):
        challenge = response.headers.get("www-authenticate")
        self.answers.append([response.request.method, response.status_code, challenge])

    async def call(self, call, sent=None, **arguments):
        """What was sent with the call, and what arrived."""
        sent = self.calls.setdefault(call, sent or self.base)
        result = await self.client.call_tool("headers", {"call": call, **arguments})
        return {"sent": sent, "arrived": result.structured_content}


@asynccontextmanager
async def caller(job, base):
    it = Caller(job, base)
    async with it.client:
        yield it


async def first(job):
    async with caller(job, job["sent"]) as it:
        tools = [tool.name for tool in await it.client.list_tools()]
        pair = await it.call("first")
        renewed = await it.call("second", job["renewed"])
        return {"version": it.client.protocol_version, "tools": tools, "pairs": [pair, renewed]}


async def crowd(job):
    async def one(calls):
        async with caller(job, calls[0]["sent"]) as it:
            return [await it.call(**call) for call in calls]

    pairs = await asyncio.gather(*(one(calls) for calls in job["crowd"]))
    return {"pairs": sum(pairs, [])}


async def together(job):
    async with caller(job, job["sent"]) as it:
        return {"pairs": await asyncio.gather(*(it.call(**call) for call in job["together"]))}


async def refused(job):
    """The first 401 of a client that never had a good token, and of one whose token is revoked."""
    seen = {}
    it = Caller(job, job["refused"])
    try:
        async with it.client:
            await it.call("refused")
    except Exception as error:
        seen["refused"] = {"error": type(error).__name__, "answers": it.answers}
    it = Caller(job, job["to_revoke"])
    try:
        async with it.client:
            seen["before"] = await it.call("before")
            it.answers.clear()
            async with httpx2.AsyncClient() as http:
                await http.post(job["revoke"], content=job["to_revoke"]["authorization"][7:])
            await it.call("after")
    except Exception as error:
        seen["revoked"] = {"error": type(error).__name__, "answers": it.answers}
    return seen


async def main(job):
    plans = [first, crowd, together, refused]
    print(json.dumps({plan.__name__: await plan(job) for plan in plans}))


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))

"""FastMCP's own proxy, for the figures; it may not know what calls it."""

import socket
import sys

import uvicorn
from fastmcp.server import create_proxy

if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
    app = create_proxy(sys.argv[1]).http_app(path="/mcp")
    uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on")).run(sockets=[listener])

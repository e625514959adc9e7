"""A small OAuth server: the metadata that challenges point to, and a token for whoever refreshes one.

It may not know which tokens the upstream takes.
"""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

METADATA = "/.well-known/oauth-protected-resource/"


class Authority:
    """`resources` maps the last part of a metadata URL to the MCP endpoint that it is for."""

    def __init__(self, address):
        self.address, self.resources, self.issued = address, {}, 0

    def metadata(self, name):
        return f"{self.address}{METADATA}{name}"

    def answer(self, method, path):
        if (method, path) == ("POST", "/token"):
            self.issued += 1
            token = {"access_token": f"renewed-{self.issued}", "token_type": "Bearer", "expires_in": 3600}
            return token | {"refresh_token": "refresh"}
        if method == "GET" and path.startswith(METADATA):
            resource = self.resources.get(path.removeprefix(METADATA))
            return resource and {"resource": resource, "authorization_servers": [self.address]}
        if (method, path) == ("GET", "/.well-known/oauth-authorization-server"):
            return {
                "issuer": self.address,
                "authorization_endpoint": f"{self.address}/authorize",
                "token_endpoint": f"{self.address}/token",
                "response_types_supported": ["code"],
                "grant_types_supported": ["authorization_code", "refresh_token"],
                "code_challenge_methods_supported": ["S256"],
                "token_endpoint_auth_methods_supported": ["none"],
            }
        return None


@contextmanager
def authority():
    class Handler(BaseHTTPRequestHandler):
        def reply(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            found = it.answer(self.command, self.path)
            body = json.dumps(found).encode()
            self.send_response(200 if found else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = reply

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    it = Authority(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield it
    finally:
        server.shutdown()
        server.server_close()

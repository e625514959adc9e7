"""Calls per second, and upstream requests per call, directly and through each proxy.

Rates are printed and never judged: machines differ. It may not know what a call carries.
"""

import json
import socket
from contextlib import contextmanager

from processes import HERE, NODE, PEERS, run, serving

LOAD = str(HERE / "load.mjs")
FLAGS = ["--allow-credential", "authorization"]

# Where MCP is, and what the upstream's tool is called there.
USUAL = ("/mcp", "token")
OTHERWISE = {"mcp-proxy": ("/", "bare/token")}


def upstream():
    return serving("bare-upstream", [NODE, LOAD, "upstream"])


@contextmanager
def mcp_proxy(upstream):
    """The Rust crate `mcp-proxy`, with nothing switched on; it forwards no header, and is not judged."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = PEERS / "mcp-proxy.toml"
    config.write_text(f"""
[proxy]
name = "peer"
separator = "/"
[proxy.listen]
host = "127.0.0.1"
port = {port}
[[backends]]
name = "bare"
transport = "http"
url = "{upstream}/mcp"
[observability]
log_level = "info"
""")
    command = [str(PEERS / "cargo/bin/mcp-proxy"), "--config", str(config)]
    with serving("mcp-proxy", command, NO_COLOR="1") as address:
        yield address


def check(addresses, ours, report):
    """Of `ours`, every answer has to be the caller's own, by one request for each call."""
    measured, faults = {}, []
    for name, address in addresses.items():
        path, tool = OTHERWISE.get(name, USUAL)
        out, err, ended = run([NODE, LOAD, "drive", address + path, tool, addresses["direct"]], 120)
        if not ended:
            raise SystemExit(f"{name}: {err}")
        measured[name] = json.loads(out)
        if name in ours and measured[name]["wrong"]:
            faults.append(f"{name}: {measured[name]['wrong']} answers are not the caller's")
        # What a proxy does now and then beside the calls, such as a ping, is no cost of a call.
        if name in ours and not 1 <= measured[name]["each"] < 1.01:
            faults.append(f"{name}: {measured[name]['each']:.2f} upstream requests per call")
    report.row("calls per second", [f"{it['persecond']:.0f}" for it in measured.values()], [])
    report.row("upstream requests per call", [f"{it['each']:.2f}" for it in measured.values()], faults)

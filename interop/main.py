"""Runs every check against the examples that were built, prints a table; its exit status tells.

It may not know what a check does.
"""

import sys
import time
from contextlib import ExitStack

import conformance
import figures
import forwarding
from authority import authority
from processes import HERE, PYTHON, end_on_signals, serving


class Report:
    """The table, one line at a time, and the faults under each line."""

    def __init__(self, columns):
        self.failed = False
        self.began = time.monotonic()
        self.line("", columns)

    def line(self, title, cells):
        print(f"{title:32}" + "".join(f"{cell:>14}" for cell in cells), flush=True)

    def row(self, title, cells, faults):
        self.line(title, cells)
        for fault in faults:
            print(f"  {fault}", flush=True)
        self.failed |= bool(faults)


def proxies(upstream, examples, names, flags, rest=lambda _: []):
    """Each example in front of `upstream`; contexts by name."""
    for name in names:
        command = [f"{examples}/{name}", "--listen", "127.0.0.1:0", "--upstream", f"{upstream}/mcp"]
        yield name, serving(name, [*command, *flags, *rest(name)])


def peer(upstream):
    """FastMCP's own proxy, to compare with; it is not judged."""
    return serving("fastmcp-proxy", [PYTHON, str(HERE / "proxy.py"), f"{upstream}/mcp"])


def main(examples, names, has_mcp_proxy):
    end_on_signals()
    report = Report(["direct", *names, "FastMCP", *["mcp-proxy"] * has_mcp_proxy])
    with ExitStack() as started:
        direct = started.enter_context(conformance.everything_server())
        addresses = {"direct": direct}
        for name, it in proxies(direct, examples, names, []):
            addresses[name] = started.enter_context(it)
        addresses["FastMCP"] = started.enter_context(peer(direct))
        conformance.check(addresses, names, report)
    for clients, rest in ((forwarding.CLIENTS, []), (forwarding.TO_LEGACY, ["legacy"])):
        with ExitStack() as started:
            tokens = started.enter_context(authority())
            direct = started.enter_context(forwarding.upstream(tokens.metadata("direct"), *rest))
            addresses = {"direct": direct}
            metadata = lambda name: ["--resource-metadata", tokens.metadata(name)]
            for name, it in proxies(direct, examples, names, forwarding.FLAGS, metadata):
                addresses[name] = started.enter_context(it)
            tokens.resources |= {name: f"{address}/mcp" for name, address in addresses.items()}
            forwarding.check(clients, addresses, tokens, report)
    with ExitStack() as started:
        direct = started.enter_context(figures.upstream())
        addresses = {"direct": direct}
        for name, it in proxies(direct, examples, names, figures.FLAGS):
            addresses[name] = started.enter_context(it)
        addresses["FastMCP"] = started.enter_context(peer(direct))
        if has_mcp_proxy:
            addresses["mcp-proxy"] = started.enter_context(figures.mcp_proxy(direct))
        figures.check(addresses, names, report)
    print(f"{'failed' if report.failed else 'passed'} in {time.monotonic() - report.began:.0f} s")
    return report.failed


if __name__ == "__main__":
    examples, *names = sys.argv[1:]
    ours = [name for name in names if name != "mcp-proxy"]
    sys.exit(main(examples, ours, "mcp-proxy" in names))

"""The conformance scenarios for servers: directly, and through each proxy.

It may not know how headers travel: the scenarios send none.
"""

import re

from processes import NODE, PEERS, PYTHON, run, serving

# (title, package, arguments)
SUITES = [
    ("2025-11-25", "@modelcontextprotocol/conformance", []),
    ("2025-11-25, all", "conformance-next", ["--suite", "all", "--spec-version", "2025-11-25"]),
    ("2026-07-28, all", "conformance-next", ["--suite", "all", "--spec-version", "2026-07-28"]),
]
OUTCOME = re.compile(r"^[✓✗] ([^\s:]+): (\d+) passed, (\d+) failed", re.MULTILINE)


def everything_server():
    """The reference server, which ships with the SDK's source."""
    sources = PEERS / "sdist/examples/servers/everything-server"
    command = [PYTHON, "-m", "mcp_everything_server", "--port", "0", "--log-level", "WARNING"]
    return serving("everything-server", command, PYTHONPATH=str(sources))


def outcomes(package, arguments, address):
    """Passed and failed checks for each scenario."""
    script = str(PEERS / "node_modules" / package / "dist/index.js")
    command = [NODE, script, "server", "--url", f"{address}/mcp", *arguments]
    out, err, _ = run(command, 120)
    found = {name: (int(passed), int(failed)) for name, passed, failed in OUTCOME.findall(out)}
    if not found:
        raise SystemExit(f"no scenario ran:\n{out}\n{err}")
    return found


def check(addresses, ours, report):
    """`addresses` begins with the reference server itself, which is what `ours` have to reach."""
    for title, package, arguments in SUITES:
        columns = {name: outcomes(package, arguments, it) for name, it in addresses.items()}
        direct = next(iter(columns.values()))
        cells, faults = [], []
        for name, column in columns.items():
            passed = sum(it[0] for it in column.values())
            cells.append(f"{passed} of {passed + sum(it[1] for it in column.values())}")
            for scenario, (due, failed) in direct.items() if name in ours else ():
                # How many checks pass differs where one of them is only noted, or asks for what a hop decides.
                passed, broken = column.get(scenario, (0, 0))
                if failed == 0 and (passed == 0 or broken > 0):
                    faults.append(f"{name}: {scenario}: {passed} passed, {broken} failed; directly {due} passed")
        report.row(f"conformance {title}", cells, faults)

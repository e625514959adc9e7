"""Calls per second, and upstream requests per call, directly and through each proxy.

Rates are printed and never judged: machines differ. It may not know what a call carries.
"""

import json

from processes import HERE, NODE, run, serving

LOAD = str(HERE / "load.mjs")
FLAGS = ["--allow-credential", "authorization"]


def upstream():
    return serving("bare-upstream", [NODE, LOAD, "upstream"])


def check(addresses, ours, report):
    """Of `ours`, every answer has to be the caller's own, by one request for each call."""
    measured, faults = {}, []
    for name, address in addresses.items():
        out, err, ended = run([NODE, LOAD, "drive", address, addresses["direct"]], 120)
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

"""Starts programs that say where they listen, and ends them by id.

It may not know what the programs are for.
"""

import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = HERE / ".peers"
PYTHON = str(PEERS / "venv/bin/python")
NODE = str(PEERS / "node_modules/node/bin/node")

# As the crate's examples say it, uvicorn, and `mcp-proxy`.
LISTENING = re.compile(r"(?:listening on http://|Uvicorn running on http://|Proxy ready listen=)([^\s/]+)")


@contextmanager
def serving(name, command, limit=30, **environment):
    """Runs `command` for as long as the block; its address without a path."""
    log = PEERS / "logs" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w+") as output:
        program = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
        )
        try:
            yield _address(name, program, log, limit)
        finally:
            program.terminate()
            try:
                program.wait(5)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()


def _address(name, program, log, limit):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        said = LISTENING.search(log.read_text())
        if said:
            return f"http://{said[1]}"
        if program.poll() is not None:
            raise SystemExit(f"{name} ended by itself:\n{log.read_text()}")
        time.sleep(0.05)
    raise SystemExit(f"{name} does not listen after {limit} s:\n{log.read_text()}")


def run(command, limit, **environment):
    """Runs `command` to its end, at most `limit` seconds; what it wrote, and whether it succeeded."""
    program = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        out, err = program.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        program.kill()
        out, err = program.communicate()
        err += f"\nended after {limit} s"
    except BaseException:
        program.kill()
        program.wait()
        raise
    return out, err, program.returncode == 0


def end_on_signals():
    """Makes a signal an exception, so that what was started is ended as well."""

    def stop(number, _):
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, stop)

"""Runs a service, and the device's agent twice: with its own selector and with `centre.py`'s.

Prints which 12 of a picture's 36 tokens each selector keeps, and the service's answers from them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edge_agent.__main__ import main as edge_agent
from edge_agent.prefill import load
from edge_agent.sources import open_source
from examples.selector.centre import Centre
from projector.codec import select
from protos.errors import BridgeError, SourceError
from protos.state import KVState
from reference.demo.processes import Child, ChildError

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "examples" / "selector"
SMALL, LARGE = ROOT / "reference/models/edge-a", ROOT / "reference/models/cloud"
BUNDLE = ROOT / "reference/bundles/edge-a-cloud"
SOURCE = "yard://test?start=11&count=1&questions=4"
TOKENS = 12
START_S = 300.0


def seen() -> KVState:
    """The edge model's cache of the picture."""
    (capture,) = open_source(SOURCE)
    if capture.picture is None:
        raise SourceError(f"{SOURCE} is no picture")
    return load(SMALL).see(capture.picture).state


def run(server: str, selector: str) -> int:
    """Let the agent ask the picture's questions, and print the answers; its exit status."""
    records = OUT / f"{selector}.jsonl"
    records.unlink(missing_ok=True)
    command = ["run", "--model", str(SMALL), "--server", server, "--source", SOURCE]
    command += ["--selector", selector, "--token-budget", str(TOKENS)]
    status = edge_agent([*command, "--output", str(records), "--log-level", "error"])
    for record in map(json.loads, records.read_text("utf-8").splitlines()):
        print(f"  {record['question']} -> {record['answer']} ({record['payload_bytes']} bytes)")
    return status


def main() -> int:
    """Run it all; returns the exit status of the first run that fails."""
    serve = ["cloud_server", "serve", "--model", str(LARGE), "--bundles", str(BUNDLE)]
    serve += ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--no-spare"]
    try:
        state = seen()
        with Child("cloud-server", serve, OUT / "cloud-server.log") as server:
            address = f"127.0.0.1:{server.ready(START_S)['port']}"
            for selector in (select.DEFAULT, Centre.name):
                kept = select.get(selector).keep(state, TOKENS).reshape(state.grid)
                print(selector)
                for row in kept:
                    print("  " + " ".join("#" if token else "." for token in row))
                if status := run(address, selector):
                    return status
    except (BridgeError, ChildError) as error:
        print(f"examples.selector: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`make example-node`: a service, one picture of the yard, and the client in JavaScript."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from examples.node.export_state import export
from protos.errors import BridgeError
from reference.demo.halves import EDGE_MODEL, cloud_server, ready
from reference.demo.processes import ChildError

ROOT = Path(__file__).resolve().parents[2]
CLIENT = Path(__file__).with_name("client.mjs")
OUT = ROOT / "build" / "node"


def main() -> int:
    """Run it all; returns the client's exit status."""
    node = shutil.which("node")
    if node is None or not CLIENT.with_name("node_modules").is_dir():
        print("example-node: needs Node.js and its modules: make example-node", file=sys.stderr)
        return 1
    try:
        with cloud_server(OUT / "cloud-server.log") as server:
            seen = export(EDGE_MODEL, "yard://test?count=1", OUT)
            command = [node, str(CLIENT), "--server", ready(server).address]
            command += ["--state", str(OUT / "state.safetensors")]
            command += ["--picture", str(OUT / "picture.png"), *seen.questions[:2]]
            print("$", shlex.join(command), flush=True)
            return subprocess.run(command).returncode
    except (BridgeError, ChildError) as error:
        print(f"example-node: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

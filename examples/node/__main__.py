"""`make example-node`: a service, one picture of the yard, and the client in JavaScript."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from examples.node.export_state import export
from protos.errors import BridgeError
from reference.demo.processes import Child, ChildError

ROOT = Path(__file__).resolve().parents[2]
CLIENT = Path(__file__).with_name("client.mjs")
OUT = ROOT / "build" / "node"
START_S = 300.0


def main() -> int:
    """Run it all; returns the client's exit status."""
    node = shutil.which("node")
    if node is None or not CLIENT.with_name("node_modules").is_dir():
        print("example-node: needs Node.js and its modules: make example-node", file=sys.stderr)
        return 1
    serve = ["cloud_server", "serve", "--model", str(ROOT / "reference/models/cloud")]
    serve += ["--bundles", str(ROOT / "reference/bundles/edge-a-cloud")]
    serve += ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0"]
    try:
        with Child("cloud-server", serve, OUT / "cloud-server.log") as server:
            seen = export(ROOT / "reference/models/edge-a", "yard://test?count=1", OUT)
            address = f"127.0.0.1:{server.ready(START_S)['port']}"
            command = [node, str(CLIENT), "--server", address]
            command += ["--state", str(OUT / "state.safetensors")]
            command += ["--picture", str(OUT / "picture.png"), *seen.questions[:2]]
            print("$", shlex.join(command), flush=True)
            return subprocess.run(command).returncode
    except (BridgeError, ChildError) as error:
        print(f"example-node: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""Node.js and the example's modules, or a skip with the reason."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "node"
REQUIRE = "REQUIRE_NODE"
"""Set where these tests must run: a missing Node.js then fails them."""

Script = Callable[..., Any]


@pytest.fixture(scope="session")
def node() -> str:
    """Path of Node.js."""
    found = shutil.which("node")
    missing = ""
    if found is None:
        missing = "there is no Node.js here (Debian: apt-get install nodejs npm)"
    elif not (FOLDER / "node_modules").is_dir():
        missing = "examples/node has no node_modules (make node)"
    if missing and os.environ.get(REQUIRE):
        pytest.fail(missing)
    if missing or found is None:
        pytest.skip(missing)
    return found


@pytest.fixture(scope="session")
def script(node: str) -> Script:
    """Run some JavaScript that sees `given` and returns what it prints as JSON."""

    def run(imports: str, expression: str, given: Any) -> Any:
        source = (
            f"{imports}\nconst given = JSON.parse(await new Response(process.stdin).text());"
            f"\nconsole.log(JSON.stringify({expression}));"
        )
        done = subprocess.run(
            [node, "--input-type=module", "-e", source],
            cwd=FOLDER,
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run

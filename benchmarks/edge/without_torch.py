"""A device without torch: what the install takes, what the agent holds, how soon it answers.

The wheel is installed with its extra `edge` into an environment of its own. The agent there asks a
service about one picture, with an edge export of the reference model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.edge.figures import at_most
from projector.commands import cli as projector
from reference.demo.halves import BUNDLE, CLOUD_MODEL, EDGE_MODEL
from reference.demo.processes import Child
from reference.demo.testset import TestSet

_NOT_OURS = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence.pth")
_RUNS, _PICTURES = 5, 40
_QUESTION = "is there a fire ?"
_AGENT = """
import json, sys
from edge_agent.__main__ import main
code = main(sys.argv[1:])
from protos.process.memory import peak_bytes, resident_bytes
held = {"peak_bytes": peak_bytes(), "resident_bytes": resident_bytes()}
print(json.dumps(held), file=sys.stderr)
sys.exit(code)
"""


@dataclass(frozen=True)
class Started:
    """One start of the agent, from nothing to its answer.

    Attributes:
        record: the record that it printed.
        wall_s: from its start to its end.
        load_s: of it, the model was loaded and checked.
        peak_bytes: the most memory that it held in RAM.
        resident_bytes: what it held at its end.
    """

    record: dict[str, Any]
    wall_s: float
    load_s: float
    peak_bytes: int
    resident_bytes: int


def install(folder: Path) -> Path:
    """Install the wheel with the extra `edge` into a fresh environment; returns its Python.

    Raises:
        RuntimeError: pip could not.
    """
    python = folder / "venv" / "bin" / "python"
    wheels = folder / "wheels"
    with tempfile.TemporaryDirectory() as built:  # what setuptools leaves in the tree stays here
        source = Path(built) / "source"
        subprocess.run(["git", "clone", "-q", str(command.ROOT), str(source)], check=True)
        _pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(source))
    venv.create(folder / "venv", with_pip=True, clear=True)
    wheel = next(wheels.glob("neural_bridge-*.whl"))
    pins = command.ROOT / ".ci" / "constraints.txt"
    _pip(str(python), "install", "-c", str(pins), f"{wheel}[edge]")
    return python


def _pip(python: str, *arguments: str) -> None:
    command_line = [python, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    done = subprocess.run(command_line, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip {arguments[0]} failed: {done.stderr[-500:]}")


def installed_bytes(python: Path) -> dict[str, int]:
    """Bytes of each top-level entry of the environment's packages, pip's own left out."""
    (packages,) = (python.parent.parent / "lib").glob("python*/site-packages")
    return {
        entry.name: sum(f.stat().st_size for f in [entry, *entry.rglob("*")] if f.is_file())
        for entry in packages.iterdir()
        if not entry.name.startswith(_NOT_OURS)
    }


def ask(python: Path, model: Path, server: str, seen: Path, state: Path, *more: str) -> Started:
    """Start the agent of an environment, which asks and ends.

    Args:
        python: of the environment.
        model: an edge export.
        server: of the service.
        seen: a picture, asked about by `ask`; or a folder, worked through by `run`.
        state: directory of the agent's state.
        more: further flags.

    Raises:
        RuntimeError: it did not answer.
    """
    arguments = ["--log-level", "info", "--model", str(model), "--server", server, *more]
    arguments += ["--state-dir", str(state)]
    if seen.is_dir():
        arguments = ["run", "--source", str(seen), "--question", _QUESTION, *arguments]
    else:
        arguments = ["ask", str(seen), _QUESTION, "--json", *arguments]
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("NEURAL_BRIDGE", "PYTHON"))}
    environ |= {"OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    done = subprocess.run(
        [str(python), "-c", _AGENT, *arguments],
        capture_output=True,
        text=True,
        cwd=state.parent,
        env=environ,
    )
    wall_s = time.monotonic() - began
    if done.returncode:
        raise RuntimeError(f"the agent ended with {done.returncode}: {done.stderr[-500:]}")
    told = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    load_ms = next(row["load_ms"] for row in told if row.get("event") == "model")
    held = next(row for row in told if "peak_bytes" in row)
    record = json.loads(done.stdout.splitlines()[0])
    return Started(record, wall_s, load_ms / 1000, held["peak_bytes"], held["resident_bytes"])


def without_torch(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure; returns figures, and the largest packages."""
    folder.mkdir(parents=True, exist_ok=True)
    python, export = install(folder), folder / "export"
    sizes = installed_bytes(python)
    if projector.main(["export-edge", str(EDGE_MODEL), str(export)]):
        raise RuntimeError("the reference model cannot be exported")
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    for number, each in enumerate(TestSet.load("test", _PICTURES, 1).pictures):
        each.save(pictures / f"{number}.png")
    serve = ["cloud_server", "serve", "--model", str(CLOUD_MODEL), "--bundles", str(BUNDLE)]
    with Child(
        "service", [*serve, "--port", "0", "--metrics-port", "0"], folder / "log"
    ) as service:
        server = f"127.0.0.1:{service.ready(180.0)['port']}"
        starts = [
            ask(python, export, server, pictures / "0.png", folder / f"state-{i}")
            for i in range(1 if quick else _RUNS)
        ]
        stays = ask(python, export, server, pictures, folder / "state")
    weights = sum(file.stat().st_size for file in export.glob("*.weights"))
    cold = sorted(start.wall_s - start.load_s for start in starts)[len(starts) // 2]
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:10]
    return {
        "figures": [
            at_most("install size without torch", sum(sizes.values()) / 1e6, 400.0, "MB"),
            at_most(
                "resident memory without torch, beside the model",
                (stays.resident_bytes - weights) / 1e6,
                150.0,
                "MB",
            ),
            at_most("cold start to first answer, model excluded", cold, 3.0, "s"),
        ],
        "answer": starts[0].record["answer"],
        "peak_mb": {
            "ask": round(max(start.peak_bytes for start in starts) / 1e6, 1),
            f"run, {_PICTURES} pictures": round(stays.peak_bytes / 1e6, 1),
        },
        "weights_mb": round(weights / 1e6, 1),
        "load_s": [round(start.load_s, 3) for start in starts],
        "wall_s": [round(start.wall_s, 3) for start in starts],
        "largest_packages_mb": {name: round(size / 1e6, 1) for name, size in largest},
    }

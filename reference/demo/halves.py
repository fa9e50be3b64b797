"""Starts the service and the agent as processes, and reads what an agent's run leaves.

The demo and the benchmarks use the same model files, commands and environment. No model is loaded
here.
"""

from __future__ import annotations

import json
import os
import socket
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protos.process.threads import choose
from reference.demo.processes import Child
from reference.demo.terminal import Terminal

REFERENCE = Path(__file__).resolve().parents[1]
MODELS = REFERENCE / "models"
EDGE_MODEL = MODELS / "edge-a"
CLOUD_MODEL = MODELS / "cloud"
BUNDLES = REFERENCE / "bundles"
BUNDLE = BUNDLES / "edge-a-cloud"
START_S = 300.0
MAX_NEW_TOKENS = 8
ENVIRONMENT = {
    "GRPC_VERBOSITY": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // 2)),
    "TOKENIZERS_PARALLELISM": "false",
}
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens pages of this machine, never through a proxy."""


@dataclass(frozen=True)
class Ready:
    """A service's addresses.

    Attributes:
        address: host:port for agents.
        metrics: address of its metrics page.
        open_address: host:port for enrolment; empty for a service without identities.
    """

    address: str
    metrics: str
    open_address: str = ""


def cloud_server(
    log: Path, *more: str, model: Path = CLOUD_MODEL, bundle: Path = BUNDLE, threads: int = 1
) -> Child:
    """A service on free loopback ports; `with` starts it, `ready` waits for it.

    Args:
        log: file for its standard error.
        more: further command-line arguments.
        model: the cloud model.
        bundle: the bundle that it serves.
        threads: CPU threads of its engine.
    """
    serve = ["cloud_server", "serve", "--model", str(model), "--bundles", str(bundle)]
    serve += ["--port", "0", "--metrics-port", "0", "--threads", str(threads), *more]
    return Child("cloud-server", serve, log, ENVIRONMENT)


def ready(server: Child) -> Ready:
    """Wait until a service takes requests.

    Raises:
        ChildError: it ended, or was not ready in time.
    """
    told = server.ready(START_S)
    metrics = f"http://127.0.0.1:{told['metrics_port']}/metrics"
    open_port = told.get("open_port")
    return Ready(
        f"127.0.0.1:{told['port']}", metrics, f"127.0.0.1:{open_port}" if open_port else ""
    )


def edge_agent(log: Path, address: str, *more: str, model: Path = EDGE_MODEL) -> Child:
    """An agent that watches a source; `with` starts it."""
    watch = ["edge_agent", "run", "--server", address, "--model", str(model), *more]
    return Child("edge-agent", watch, log, ENVIRONMENT)


def agent_answers(
    address: str,
    source: str,
    total: int,
    out: Path,
    model: Path,
    show: Terminal,
    in_flight: int = 1,
) -> list[dict[str, Any]]:
    """Let an agent ask every question of a source and read its records.

    Args:
        address: the service, host:port.
        source: source of pictures and questions, such as `yard://test?count=60`.
        total: number of questions.
        out: folder for the answers, the log, the last metrics page.
        model: the edge model.
        show: shows progress.
        in_flight: requests at once.

    Raises:
        ChildError: the agent failed.
    """
    output = out / f"answers-{in_flight}.jsonl"
    output.unlink(missing_ok=True)
    port = _free_port()
    arguments = [
        *("--source", source, "--question-mode", "infer", "--in-flight", str(in_flight)),
        *("--max-new-tokens", str(MAX_NEW_TOKENS), "--output", str(output)),
        *("--state-dir", str(out / "state" / "agent"), "--metrics-port", str(port)),
    ]
    metrics = f"http://127.0.0.1:{port}/metrics"
    show.say(f"the edge agent answers {total} questions; metrics: {metrics}")
    with (
        edge_agent(out / f"edge-agent-{in_flight}.log", address, *arguments, model=model) as agent,
        show.stage(f"edge agent, {in_flight} in flight", total) as advance,
    ):
        seen, kept_at = 0, time.monotonic()

        def tick() -> None:
            nonlocal seen, kept_at
            lines = output.read_bytes().count(b"\n") if output.exists() else 0
            advance(lines - seen)
            seen = lines
            if time.monotonic() - kept_at > 1:
                keep_page(metrics, out / "edge-metrics.txt")
                kept_at = time.monotonic()

        agent.check(agent.wait(tick, timeout_s=120 + total))
    return read_answers(output, in_flight)


def read_answers(path: Path, in_flight: int = 1) -> list[dict[str, Any]]:
    """An agent's records; each also says how many requests were in flight at once."""
    with path.open(encoding="utf-8") as file:
        return [{**json.loads(line), "_in_flight": in_flight} for line in file]


def keep_page(url: str, path: Path, key: str = "") -> None:
    """Save a copy of a metrics page, if it can be read, before its process ends.

    Args:
        url: the page's URL.
        path: the copy's path.
        key: an operator's key, for a service with identities.
    """
    asked = urllib.request.Request(url)
    if key:
        asked.add_header("Authorization", f"Bearer {key}")
    try:
        with _DIRECT.open(asked, timeout=2) as page:
            path.write_bytes(page.read())
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return


def threads() -> int:
    """Threads of each process that runs a model: half of the cores.

    A client, a relay, a front end and an engine share the machine. With as many threads as cores in
    each they wait for one another, and the latencies would measure that.
    """
    return max(1, choose().share.threads // 2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

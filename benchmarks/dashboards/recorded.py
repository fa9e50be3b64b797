"""The recorded run: a service, a device with simulated sensors, every panel's query run on them.

`python -m benchmarks.dashboards.recorded` runs it by itself and names the queries without data; the
figures go to `build/bench/dashboards.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import ssl
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks import command
from benchmarks.dashboards import board, boards
from benchmarks.dashboards.stack import MONITORING, Stack, faster, free_port, stack
from benchmarks.serve.identities import Identities
from benchmarks.serve.site import Site, site
from edge_agent.identity.identity import Identity
from edge_agent.identity.identity_file import IdentityFile
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from protos.process.settings import installed_version
from reference.demo.halves import EDGE_MODEL, ENVIRONMENT
from reference.demo.processes import Child, ChildError

BY = 10.0
"""How many times faster than in earnest rules and routing run."""
_FLAGS = ("--device-series", "100")
LONG_S = 900.0
"""Longest wait for something to happen, on a machine that does other things too."""
_DAY_S = 86400
_PROMETHEUS = MONITORING / "prometheus"
_SETTINGS = """
[remote]
vitals_every_s = 1
"""


@dataclass
class Watched:
    """A service with a device, watched.

    Attributes:
        site: the service.
        stack: Prometheus and Alertmanager.
        folder: of the device.
        agent_port: port of its metrics.
    """

    site: Site
    stack: Stack
    folder: Path
    agent_port: int

    def kill_engine(self) -> None:
        """End the engine's process as a crash would."""
        for pid in self.site.tree()["engine"]:
            os.kill(pid, signal.SIGKILL)

    @contextmanager
    def device(self, source: str = "yard://test?count=2000") -> Iterator[Child]:
        """Start the device; it asks a question about each picture, until the block ends."""
        arguments = [
            *("run", "--config", str(self.folder / "edge.toml")),
            *("--state-dir", str(self.folder / "state"), "--server", self.site.at.address),
            *("--server-name", "localhost", "--model", str(EDGE_MODEL), "--source", source),
            *("--question-mode", "infer", "--output", str(self.folder / "answers.jsonl")),
            *("--allow-shadow", "--shadow-share", "1"),
            *("--spool", str(self.folder / "spool"), "--metrics-port", str(self.agent_port)),
        ]
        log = self.folder / "agent.log"
        module = ["benchmarks.dashboards.board", str(self.folder / "board"), *arguments]
        with Child("edge-agent", module, log, ENVIRONMENT) as agent:
            yield agent

    @contextmanager
    def simulated(self) -> Iterator[None]:
        """The device without an agent: it takes orders and tells its vitals, until the block ends.

        Raises:
            ChildError: the service does not let it.
        """
        known = self.site.identities.devices[0]
        roots = self.site.identities.authority.trusted_pem
        trusted = grpc.ssl_channel_credentials(roots, known.key, known.chain)
        body = pb.ReportBody(vitals=pb.Vitals(temperature_celsius=51.25, power_watts=6.5))
        raw = body.SerializeToString()
        report = pb.ReportRequest(id=hashlib.sha256(raw).digest(), body=raw)
        with grpc.secure_channel(self.site.at.address, trusted) as channel:
            stub = bridge_pb2_grpc.BridgeStub(channel)
            call = stub.Attend(pb.AttendRequest(agent_version=installed_version()))
            try:
                call.initial_metadata()  # comes when it is let in
                stub.Report(report, timeout=LONG_S)
            except grpc.RpcError as error:
                raise ChildError(f"the simulated device is not let in: {error}") from error
            yield
            call.cancel()

    def ask_over_http(self) -> None:
        """A request of an application; its answer does not matter."""
        identities = self.site.identities
        trusting = ssl.create_default_context(
            cadata=identities.authority.trusted_pem.decode(errors="replace")
        )
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusting)
        )
        asked = urllib.request.Request(f"https://localhost:{self.site.api_port}/v1/models")
        asked.add_header("Authorization", f"Bearer {identities.application}")
        with opener.open(asked, timeout=30) as page:
            page.read()


@contextmanager
def watched(folder: Path) -> Iterator[Watched]:
    """Start the service, and what watches it; all ends with the block.

    Raises:
        ConfigError: there is no Prometheus or Alertmanager.
        ChildError: something did not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    identities = Identities.make(folder / "directory", 1)
    home = folder / "device"
    _identity(home / "state", identities)
    board.furnish(home / "board")
    (home / "edge.toml").write_text(_SETTINGS, encoding="utf-8")
    agent_port = free_port()
    with ExitStack() as running:
        place = running.enter_context(site(folder, identities, *_FLAGS))
        targets = {
            "service": [re.sub(r"^http://|/metrics$", "", place.at.metrics)],
            "agents": [f"127.0.0.1:{agent_port}"],
        }
        roots = identities.authority.trusted_pem
        beside = stack(folder / "monitoring", targets, identities.operator, roots, BY)
        yield Watched(place, running.enter_context(beside), home, agent_port)


def _identity(state: Path, identities: Identities) -> None:
    """The device is enrolled already."""
    state.mkdir(parents=True)
    known, now_s = identities.devices[0], int(time.time())
    IdentityFile.under(state).save(
        Identity(
            known.tenant,
            known.device,
            "",
            known.key.decode(),
            known.chain.decode(),
            identities.authority.trusted_pem.decode(),
            now_s,
            now_s + 30 * _DAY_S,
        )
    )


def record(it: Watched, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Let things happen, then run every query.

    Returns:
        By dashboard and panel, `Fleet: Devices`: the number of values of each of its queries, as it
        is and without what it shows instead of nothing.

    Raises:
        ChildError: something did not happen in time.
    """
    c, e = "neural_bridge_cloud_", "neural_bridge_edge_"
    with it.device():
        say("a device starts and is answered")
        it.stack.until(f"sum ({c}answers_total) > 20", LONG_S)
        it.ask_over_http()
        it.stack.until(f"sum ({c}shadow_answers_total) > 0", LONG_S)
        it.stack.until(f"{c}drift_devices", LONG_S)
        it.stack.until(f"{c}device_power_watts > 0 and on () {c}known_devices > 0", LONG_S)
        it.stack.until(f"{e}answers_total > 0", LONG_S)
        say("the engine is killed and comes back")
        it.kill_engine()
        it.stack.until(f"sum ({c}engine_restarts_total) > 0", LONG_S)
        before = it.site.metric('answers_total{bundle="edge-a-cloud"}')
        it.stack.until(f"sum ({c}answers_total) > {before + 10}", LONG_S)
        it.stack.until('count (neural_bridge:slo_burn:ratio{window="3d"}) >= 4', LONG_S)
    say("every panel's queries are run")
    found = {}
    for shown in boards.ALL:
        for panel in shown.panels:
            values = {
                legend: (it.stack.values(_fast(expr)), it.stack.values(_bare(_fast(expr))))
                for legend, expr in panel.shows.items()
            }
            found[f"{shown.title}: {panel.title}"] = values
    return found


def _fast(expr: str) -> str:
    """The query as Grafana would send it, with windows as short as the rules'."""
    return faster(expr.replace("$__rate_interval", "5m"), BY)


def _bare(expr: str) -> str:
    """Without the 0 for what never happened."""
    return re.sub(r"\s*or vector\(0\)", "", expr)


def silent(found: dict[str, dict[str, Any]]) -> list[str]:
    """Panels none of whose queries had data of its own."""
    return [name for name, values in found.items() if not any(bare for _, bare in values.values())]


def figures(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for `build/bench/observe.json`."""
    whole = [name for name, values in found.items() if all(shown for shown, _ in values.values())]
    return [
        {
            "name": "panels whose every query returns data in the recorded run",
            "value": len(whole),
            "unit": "panels",
            "target": f"all {len(found)}",
            "met": len(whole) == len(found),
        },
        {
            "name": "panels that show what happened in it, not only a 0 for what did not",
            "value": len(found) - len(silent(found)),
            "unit": "panels",
            "target": "",
            "met": None,
        },
    ]


def alerts_with_cases() -> dict[str, Any]:
    """How many alerts have both cases; `tests/deploy/test_monitoring.py` runs them."""
    texts = [path.read_text(encoding="utf-8") for path in (_PROMETHEUS / "rules").glob("*.yaml")]
    alerts = {name for text in texts for name in re.findall(r"(?m)- alert: (\w+)$", text)}
    firing: set[str] = set()
    calm: set[str] = set()
    for path in (_PROMETHEUS / "tests").glob("*.yaml"):
        for name, expected in re.findall(
            r"alertname: (\w+)\n\s+exp_alerts:(.*)\n", path.read_text(encoding="utf-8")
        ):
            (calm if expected.strip() == "[]" else firing).add(name)
    both = alerts & firing & calm
    return {
        "name": "alerts with firing and non-firing tests",
        "value": len(both),
        "unit": "alerts",
        "target": f"all {len(alerts)}",
        "met": both == alerts,
    }


def measure(given: argparse.Namespace) -> int:
    """Run it, write the report, and print what has no data."""
    with tempfile.TemporaryDirectory(prefix="nb-recorded-") as folder:
        with watched(Path(folder)) as it:
            found = record(it, lambda text: print(f"recorded: {text}", file=sys.stderr, flush=True))
    rows = [*figures(found), alerts_with_cases()]
    report = {"command": command.command("dashboards.recorded"), "figures": rows, "panels": found}
    command.write(report, given.out / "dashboards.json")
    if given.json:
        print(json.dumps(report, indent=1))
    else:
        for name, values in found.items():
            for legend, (shown, bare) in values.items():
                if not bare:
                    print(f"{name}: {legend}: {'0 only' if shown else 'nothing'}")
        for row in rows:
            print(f"{row['name']}: {row['value']} {row['unit']} {row['target']}".rstrip())
    return 0 if all(row["met"] in (True, None) for row in rows) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command.parser("dashboards.recorded", "Run every panel's query on a recorded run.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=Path, default=command.REPORTS)
    return command.run(parser, measure, argv)


if __name__ == "__main__":
    raise SystemExit(main())
